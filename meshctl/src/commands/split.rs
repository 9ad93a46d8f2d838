//! `split` and `switch`.

use serde_json::Value;

use super::write::Subject;
use super::{Context, watch, write};
use crate::cli::{SplitCommand, SplitSetArgs, SwitchArgs};
use crate::client::Client;
use crate::exit::{Failure, Outcome};
use crate::names::ServiceName;
use crate::ordered::Ordered;
use crate::output::{Table, Text};
use archipelago_model::edit::split::{RouteMatch, SplitEdit, clear_route, set_split};
use archipelago_model::edit::{self, Edit, switch};

const KIND: &str = "TrafficSplit";

/// `split set|get|clear`.
pub(super) async fn split(context: &Context, command: SplitCommand) -> Outcome {
    match command {
        SplitCommand::Set(args) => set(context, args).await,
        SplitCommand::Get { service, watch } => {
            watch::run(context, watch, async |context| get(context, &service).await).await
        }
        SplitCommand::Clear { service, route, wait } => {
            let client = context.client()?;
            let route = RouteMatch::from(route);
            let change = |current: Option<&Value>| {
                let current = current.ok_or_else(|| none(&service))?;
                if route.is_empty() {
                    return Ok(Edit::Delete);
                }
                clear_route(current, &route).ok_or_else(|| {
                    Failure::refused(format!("the split of {service} has no route that matches exactly this"))
                        .hint(format!("`meshctl split get {service}` shows its routes"))
                })
            };
            let what = format!("split clear {service}");
            write::edit(context, &client, &what, Subject::About(KIND, &service), change, wait.wait).await
        }
    }
}

/// `switch`.
pub(super) async fn switch(context: &Context, args: SwitchArgs) -> Outcome {
    let SwitchArgs { service, to, wait, .. } = args;
    let client = context.client()?;
    if to.is_some() {
        known(&client, &service).await?;
    }
    // With an undo a conflict means that the switch to undo may be another one now: the split is read again, and what
    // stands there is undone. A retry of the same request is answered by what it did the first time.
    let change = |current: Option<&Value>| match &to {
        Some(target) => Ok(Edit::Apply(switch::switch(current, &service, target))),
        None => current.and_then(switch::undo).ok_or_else(|| {
            Failure::refused(format!("there is no switch of {service} to undo"))
                .hint(format!("`meshctl split get {service}` shows the split in force"))
        }),
    };
    let what = format!("switch {service}");
    write::edit(context, &client, &what, Subject::About(KIND, &service), change, wait.wait).await
}

async fn set(context: &Context, args: SplitSetArgs) -> Outcome {
    let sticky = args.sticky();
    let SplitSetArgs { service, shares, route, wait, .. } = args;
    let edit = SplitEdit { shares, route: route.into(), sticky };
    if edit.shares.is_empty() && (edit == SplitEdit::default() || !edit.route.is_empty()) {
        return Err(Failure::refused("no share is given").hint(format!(
            "write `meshctl split set {service} CLUSTER=90 CLUSTER=10`; `meshctl cluster list` names them"
        )));
    }
    let client = context.client()?;
    let subject = Subject::About(KIND, &service);
    if subject.read(&client).await?.is_none() {
        known(&client, &service).await?;
    }
    let change = |current: Option<&Value>| Ok(Edit::Apply(set_split(current, &service, &edit)));
    write::edit(context, &client, &format!("split set {service}"), subject, change, wait.wait).await
}

async fn get(context: &Context, service: &ServiceName) -> Outcome {
    let client = context.client()?;
    let split = Subject::About(KIND, service).read(&client).await?.ok_or_else(|| none(service))?.document;
    let answer = client.get(KIND, &service.namespace, edit::name(&split)).await?;
    let printed: Option<Ordered> =
        answer.resources.first().and_then(|resource| serde_json::from_str(&resource.json).ok());
    // Deleted between the two questions: then as it was.
    match printed {
        Some(printed) => context.output.print(&printed, || text(service, &split)),
        None => context.output.print(&split, || text(service, &split)),
    }
}

/// A verb about a service that nobody has is a typing error, unlike a file that comes before its deployment.
async fn known(client: &Client, service: &ServiceName) -> Outcome {
    let services = client.services().await?;
    if services.iter().any(|known| known.namespace == service.namespace && known.name == service.name) {
        return Ok(());
    }
    let names: Vec<String> = services.iter().map(|known| format!("{}/{}", known.namespace, known.name)).collect();
    Err(Failure::refused(format!("no cluster has a service {service}")).hint(if names.is_empty() {
        "no service is known yet; `meshctl services` shows them".to_owned()
    } else {
        format!("there are {}; with `meshctl apply` a split may come before its service", names.join(", "))
    }))
}

fn none(service: &ServiceName) -> Failure {
    Failure::refused(format!("{service} has no split")).hint(format!(
        "make one with `meshctl split set {service} CLUSTER=90 CLUSTER=10`; `meshctl cluster list` names them"
    ))
}

fn text(service: &ServiceName, split: &Value) -> Text {
    let spec = split.get("spec");
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut table = Table::new(&["REQUESTS", "CLUSTER", "VERSION", "WEIGHT", "SHARE"]);
    let mut rows = |which: &str, backends: Vec<Value>| {
        let weight = |backend: &Value| backend.get("weight").and_then(Value::as_u64).unwrap_or(0);
        let total: u64 = backends.iter().map(weight).sum();
        for (index, backend) in backends.iter().enumerate() {
            let field =
                |name: &str, otherwise: &str| backend.get(name).and_then(Value::as_str).unwrap_or(otherwise).to_owned();
            let share = (weight(backend) * 100).checked_div(total).unwrap_or(0);
            table.row([
                if index == 0 { which.into() } else { "".into() },
                field("cluster", "-").into(),
                field("version", "any").into(),
                weight(backend).into(),
                format!("{share}%").into(),
            ]);
        }
    };
    for route in list(spec.and_then(|spec| spec.get("routes"))) {
        rows(&describe(route.get("match")), list(route.get("backends")));
    }
    rows("everything else", list(spec.and_then(|spec| spec.get("backends"))));
    let sticky = spec.and_then(|spec| spec.get("sticky"));
    let by = ["header", "cookie"].into_iter().find_map(|kind| {
        let name = sticky?.get(kind)?.as_str()?;
        Some(format!("sticky by {kind} {name}"))
    });
    let heading = format!("{service}, {}", by.unwrap_or_else(|| "every request draws anew".to_owned()));
    Text::default().line(heading).line("").table(table)
}

/// `header x-preview=pr-42, path /beta`.
fn describe(matched: Option<&Value>) -> String {
    let mut parts = Vec::new();
    for (field, word) in [("headers", "header"), ("cookies", "cookie")] {
        for (key, value) in matched.and_then(|matched| matched.get(field)?.as_object()).into_iter().flatten() {
            parts.push(format!("{word} {key}={}", value.as_str().unwrap_or_default()));
        }
    }
    for (field, word) in [("pathPrefix", "path"), ("method", "method")] {
        if let Some(value) = matched.and_then(|matched| matched.get(field)?.as_str()) {
            parts.push(format!("{word} {value}"));
        }
    }
    if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_split_reads_like_its_rules() {
        let split = json!({ "spec": {
            "service": "checkout", "sticky": { "header": "x-user" },
            "routes": [{ "match": { "headers": { "x-preview": "pr-42" }, "pathPrefix": "/beta" },
                         "backends": [{ "cluster": "tokyo", "version": "v2", "weight": 1 }] }],
            "backends": [{ "cluster": "paris", "weight": 9 }, { "cluster": "tokyo", "weight": 1 }],
        }});
        let expected = "\
shop/checkout, sticky by header x-user

REQUESTS                               CLUSTER   VERSION   WEIGHT   SHARE
header x-preview=pr-42, path /beta     tokyo     v2        1        100%
everything else                        paris     any       9        90%
                                       tokyo     any       1        10%
";
        let text = text(&"shop/checkout".parse().unwrap(), &split).render(false);
        // Widths follow the longest cell; only the words count here.
        let squeeze = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        assert_eq!(squeeze(&text), squeeze(expected));
    }
}
