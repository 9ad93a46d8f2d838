//! `check`: asks the control plane, has it judged, and prints it as people know it.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use archipelago_proto::v1;
use futures_util::{StreamExt as _, stream};

use super::{Context, watch};
use crate::checks::{Facts, Probed, Report, Verdict, judge};
use crate::cli::CheckArgs;
use crate::client::Client;
use crate::exit::{Failure, Outcome};
use crate::output::Text;

/// `check`.
///
/// # Errors
/// Exit code 1 when something does not work, after printing all of it; 4 when no control plane answers.
pub(super) async fn run(context: &Context, args: CheckArgs) -> Outcome {
    let CheckArgs { pre, wait, watch } = args;
    watch::run(context, watch, async |context| once(context, pre, wait).await).await
}

/// What is found now, or once everything works.
pub(super) async fn once(context: &Context, pre: bool, wait: Duration) -> Outcome {
    let client = context.client()?;
    let deadline = Instant::now() + wait;
    let report = loop {
        let report = judge(&facts(&client, pre).await?, pre);
        // A cluster that was declared and has not joined fails nothing; but who waits, waits for it, too.
        if (report.success && report.has_all_joined()) || Instant::now() >= deadline {
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

async fn facts(client: &Client, pre: bool) -> Outcome<Facts> {
    let now = SystemTime::now();
    let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let status = client.status().await?;
    // Before anything is judged: an idle tunnel beats slower than one that has just been used.
    let probed = if pre { Vec::new() } else { probed(client, &status).await };
    Ok(Facts {
        status,
        tunnels: client.tunnels().await?,
        probed,
        now: i64::try_from(unix.as_secs()).unwrap_or(i64::MAX),
        credential_left: client.credential_left(now),
    })
}

/// Has every connected gateway send a request through each of its tunnels.
async fn probed(client: &Client, status: &v1::StatusResponse) -> Vec<Probed> {
    let connected = status
        .clusters
        .iter()
        .flat_map(|cluster| cluster.gateways.iter().map(|gateway| (cluster.name.clone(), gateway)))
        .filter(|(_, gateway)| gateway.state != "disconnected")
        .map(|(cluster, gateway)| (cluster, gateway.name.clone()));
    let asked = connected.map(|(cluster, gateway)| async move {
        let request = v1::ExplainRequest {
            cluster: cluster.clone(),
            gateway: gateway.clone(),
            query: Some(v1::ExplainQuery { probe_tunnels: true, ..Default::default() }),
        };
        let outcome = match client.explain(request).await {
            Ok(answer) if answer.probed => Ok(answer.probes),
            Ok(_) => Err("it, or the control plane, is of a version that knows beats only".to_owned()),
            Err(failure) => Err(failure.to_string()),
        };
        Probed { cluster, gateway, outcome }
    });
    stream::iter(asked).buffered(ASKED_AT_ONCE_MAX).collect().await
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

/// What a member asks of its gateways at once is limited, too.
const ASKED_AT_ONCE_MAX: usize = 8;
/// Gateways beat at least once a second.
const BETWEEN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
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
