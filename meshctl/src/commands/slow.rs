//! `slow`: where the time of the slowest requests goes.

use archipelago_proto::v1::{NoAnswerReason, SlowQuestion, answer, gateway_answer, question};

use super::Context;
use crate::cli::SlowArgs;
use crate::exit::{Failure, Outcome};
use crate::slow::{Facts, KEPT, SlowView, analyse};

/// `slow SERVICE …`.
pub(super) async fn run(context: &Context, args: SlowArgs) -> Outcome {
    let SlowArgs { service, since, p99 } = args;
    let since = since.min(KEPT);
    let client = context.client()?;
    let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let question = SlowQuestion { service: service.to_string(), since_ms };
    let mut facts = Facts::default();
    for said in client.ask(question::Body::Slow(question)).await? {
        let gateway = format!("{}/{}", said.cluster, said.gateway);
        match said.outcome {
            Some(gateway_answer::Outcome::Answer(said)) => match said.body {
                Some(answer::Body::Slow(answer)) => facts.answers.push((gateway, answer)),
                _ => facts.missing.push((gateway, "it answered something else".to_owned())),
            },
            Some(gateway_answer::Outcome::Missing(missing)) => {
                let reason = match missing.reason() {
                    NoAnswerReason::NotSupported => {
                        "its version, or that of its control-plane member, keeps no such record"
                    }
                    NoAnswerReason::NotConnected => "it is connected to no member of the control plane",
                    _ => &missing.detail,
                };
                facts.missing.push((gateway, reason.to_owned()));
            }
            None => facts.missing.push((gateway, "no answer that is known here".to_owned())),
        }
    }
    facts.missing.sort();
    let findings = analyse(facts, p99);
    if findings.seen == 0 {
        let name = service.to_string();
        let services = client.services().await?;
        if !services.iter().any(|known| format!("{}/{}", known.namespace, known.name) == name) {
            return Err(Failure::refused(format!("there is no service {name}")).hint("`meshctl services` lists them"));
        }
    }
    let view = SlowView::new(&service, since, findings);
    context.output.print(&view, || view.text())
}
