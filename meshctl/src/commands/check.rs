//! `check`: asks the control plane, has it judged, and prints it as people know it.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use super::Context;
use crate::checks::{Facts, Report, Verdict, judge};
use crate::cli::CheckArgs;
use crate::client::Client;
use crate::exit::{Failure, Outcome};
use crate::output::Text;

/// `check`.
///
/// # Errors
/// Exit code 1 when something does not work, after printing all of it; 4 when no control plane answers.
pub(super) async fn run(context: &Context, args: &CheckArgs) -> Outcome {
    let client = context.client()?;
    let deadline = Instant::now() + args.wait;
    let report = loop {
        let report = judge(&facts(&client).await?, args.pre);
        if report.success || Instant::now() >= deadline {
            break report;
        }
        tokio::time::sleep(BETWEEN).await;
    };
    context.output.print(&report, || text(&report))?;
    match report.success {
        true => Ok(()),
        false => Err(Failure::refused("not everything works: see the lines marked ×")),
    }
}

async fn facts(client: &Client) -> Outcome<Facts> {
    let now = SystemTime::now();
    let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Facts {
        status: client.status().await?,
        tunnels: client.tunnels().await?,
        now: i64::try_from(unix.as_secs()).unwrap_or(i64::MAX),
        credential_left: client.credential_left(now),
    })
}

/// Linkerd's form: a category, underlined, and its checks, the mark first.
fn text(report: &Report) -> Text {
    let mut out = String::new();
    for category in &report.categories {
        let name = category.category_name;
        let _ = writeln!(out, "{name}\n{}", "-".repeat(name.len()));
        for check in &category.checks {
            let _ = writeln!(out, "{} {}", mark(check.result), check.description);
            for line in check.error.iter().flat_map(|error| error.lines()) {
                let _ = writeln!(out, "    {line}");
            }
            if let Some(hint) = &check.hint {
                let _ = writeln!(out, "    see {hint} for hints");
            }
        }
        out.push('\n');
    }
    let _ = write!(out, "Status check results are {}", if report.success { "√" } else { "×" });
    Text::default().line(out)
}

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Success => "√",
        Verdict::Warning => "‼",
        Verdict::Error => "×",
    }
}

/// Gateways beat at least once a second.
const BETWEEN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use archipelago_proto::v1;

    use super::*;

    #[test]
    fn the_form_is_the_one_that_people_know() {
        let facts = Facts {
            status: v1::StatusResponse {
                members: vec![v1::MemberStatus { id: 1, role: "leader".into(), ..Default::default() }],
                ..Default::default()
            },
            credential_left: Duration::from_secs(90 * 24 * 3_600),
            ..Facts::default()
        };
        let report = judge(&facts, false);
        let printed = text(&report).render(false);
        assert!(
            printed
                .starts_with("operator\n--------\n√ the operator's credential is good for a month\n\ncontrol-plane\n"),
            "{printed}"
        );
        assert!(printed.contains("× there is a cluster\n    none has joined: meshctl cluster join"), "{printed}");
        assert!(printed.contains("/docs/check.md#clusters-none for hints\n"), "{printed}");
        assert!(printed.ends_with("\nStatus check results are ×\n"), "{printed}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["success"], false);
        assert_eq!(json["categories"][0]["categoryName"], "operator");
        assert_eq!(json["categories"][0]["checks"][0]["result"], "success");
    }
}
