//! `explain`: one request, decided by a live gateway.

use archipelago_proto::v1;
use serde::Serialize;

use super::Context;
use crate::cli::ExplainArgs;
use crate::exit::{Failure, Outcome};
use crate::output::{Table, Text};
use crate::views::qualified;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExplainView {
    /// The gateway that was asked.
    from: String,
    service: String,
    rule: String,
    chosen_cluster: Option<String>,
    chosen_gateway: Option<String>,
    chosen_endpoint: Option<String>,
    reasons: Vec<String>,
    failure: Option<String>,
}

/// `explain …`.
pub(super) async fn run(context: &Context, args: ExplainArgs) -> Outcome {
    let request = v1::ExplainRequest {
        cluster: args.from.cluster,
        gateway: args.from.gateway.unwrap_or_default(),
        query: Some(v1::ExplainQuery {
            host: args.to.host(),
            method: args.method.to_ascii_uppercase(),
            path: args.path,
            headers: args.headers.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value)).collect(),
            probe_tunnels: false,
        }),
    };
    let answer = context.client()?.explain(request).await?;
    let some = |text: String| (!text.is_empty()).then_some(text);
    let view = ExplainView {
        from: qualified(&answer.cluster, &answer.gateway),
        service: answer.service,
        rule: answer.rule,
        chosen_cluster: some(answer.chosen_cluster),
        chosen_gateway: some(answer.chosen_gateway),
        chosen_endpoint: some(answer.chosen_endpoint),
        reasons: answer.reasons,
        failure: some(answer.failure),
    };
    context.output.print(&view, || text(&view))?;
    match view.failure {
        None => Ok(()),
        Some(failure) => Err(Failure::refused(format!("no backend would be chosen: {failure}"))
            .hint("`meshctl services` shows where the service is ready")),
    }
}

fn text(view: &ExplainView) -> Text {
    let mut table = Table::new(&["", ""]);
    let dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    for (name, value) in [
        ("asked", view.from.clone()),
        ("service", view.service.clone()),
        ("rule", view.rule.clone()),
        ("cluster", dash(&view.chosen_cluster)),
        ("gateway", dash(&view.chosen_gateway)),
        ("endpoint", dash(&view.chosen_endpoint)),
    ] {
        table.row([name.into(), value.into()]);
    }
    let reasons = view.reasons.iter().enumerate();
    reasons.fold(Text::default().table(table).line("").line("because"), |text, (index, reason)| {
        text.line(format!("  {}. {reason}", index + 1))
    })
}
