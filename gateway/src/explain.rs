//! What this gateway would do with a request, and why: the decision of a request, asked with reasons.

use std::time::Instant;

use archipelago_http::Fields;
use archipelago_proto::v1::{ExplainQuery, ExplainResponse};
use http::Method;

use crate::balance::hash::Key;
use crate::config::{Rule, Service, StickyKey};
use crate::route::host_name;
use crate::worker::Identity;
use crate::worker::view::{RouteQuery, Target, Tried, View};

/// Explains one request.
pub fn explain(view: &View, identity: &Identity, query: &ExplainQuery, random: u64, now: Instant) -> ExplainResponse {
    let mut response = ExplainResponse {
        gateway: identity.gateway.to_string(),
        cluster: identity.cluster.to_string(),
        ..ExplainResponse::default()
    };
    let mut why = vec![format!("revision {} of the configuration", view.snapshot.revision)];
    response.failure = decide(view, query, random, now, &mut response, &mut why).err().unwrap_or_default();
    response.reasons = why;
    response
}

/// One answer out of those of all workers, each of which decides by what its own tunnels have brought: that of the first which cannot
/// serve the request, if there are such. `None`: nobody answered.
pub fn merge(answers: Vec<ExplainResponse>) -> Option<ExplainResponse> {
    let (asked, failing) = (answers.len(), answers.iter().filter(|answer| !answer.failure.is_empty()).count());
    let of_all = answers.into_iter().enumerate();
    let (_, mut answer) = of_all.min_by_key(|(index, answer)| (answer.failure.is_empty(), *index))?;
    if (1..asked).contains(&failing) {
        answer.reasons.push(format!(
            "{failing} of {asked} workers cannot serve it: each hears of other gateways through tunnels of its own"
        ));
    }
    Some(answer)
}

fn decide(
    view: &View,
    query: &ExplainQuery,
    random: u64,
    now: Instant,
    response: &mut ExplainResponse,
    why: &mut Vec<String>,
) -> Result<(), String> {
    let snapshot = &view.snapshot;
    let host = host_name(&query.host);
    let index = snapshot
        .service_by_host(&query.host)
        .or_else(|| {
            let (service, namespace) = host.split_once('.')?;
            snapshot.service_by_key(&format!("{namespace}/{service}"))
        })
        .ok_or_else(|| match snapshot.closed_by_host(&query.host) {
            Some(closed) => format!("service {} is closed here: {}", closed.key, closed.why),
            None => format!("no service has the host name {host:?}"),
        })?;
    let (Some(service), Some(live)) = (snapshot.service(index), view.service(index)) else {
        return Err("no such service".into());
    };
    response.service = service.service.to_string();
    why.push(format!("host {host} is service {}, port {}", service.service, service.port));

    let headers = headers(query)?;
    let method = match query.method.as_str() {
        "" => Method::GET,
        text => Method::try_from(text).map_err(|_| format!("{text:?} is not an HTTP method"))?,
    };
    let path = if query.path.is_empty() { "/" } else { &query.path };
    let rule = service.rule(&method, path.as_bytes(), &headers).ok_or("no rule matches")?;
    passed_over(service, rule, why);
    response.rule = rule.name.to_string();
    why.push(format!("rule {} matches", rule.name));

    let key = match service.sticky_hash(&headers) {
        Some(hash) => {
            why.push(format!("sticky by {}", sticky(service.sticky.as_ref())));
            Key::Sticky(hash)
        }
        None => {
            if service.sticky.is_some() {
                why.push(format!("the request has no {}: drawn anew", sticky(service.sticky.as_ref())));
            }
            live.draw()
        }
    };
    let tried = Tried::default();
    let question = RouteQuery { service: index, rule, key, tried: &tried, random, now };
    let decision = view
        .decide(&question, why)
        .ok_or_else(|| format!("no cluster can serve {} under rule {}", service.key, rule.name))?;
    snapshot.cluster_name(decision.cluster).clone_into(&mut response.chosen_cluster);
    match decision.target {
        Target::Local(endpoint) => {
            response.chosen_gateway.clone_from(&response.gateway);
            response.chosen_endpoint = endpoint.address().to_string();
        }
        Target::Remote(remote) => {
            response.chosen_gateway = remote.handle.name().gateway.clone();
            why.push(match decision.version {
                Some(version) => format!("endpoint: chosen there, among those of version {version}"),
                None => "endpoint: chosen there".to_owned(),
            });
        }
    }
    if let Some(offset) = service.tcp_offset() {
        why.push(format!("TCP service: connect to the TCP base port + {offset}"));
    }
    Ok(())
}

/// Which rules came before and do not match; nobody reads thousands.
fn passed_over(service: &Service, rule: &Rule, why: &mut Vec<String>) {
    let rules = service.rules.as_slice();
    let before = rules.iter().position(|other| std::ptr::eq(other, rule)).unwrap_or(0);
    let named = if before > NAMED_MAX { 0 } else { before };
    why.extend(rules.iter().take(named).map(|rule| format!("rule {} does not match", rule.name)));
    if named < before {
        why.push(format!("the {before} rules before it do not match"));
    }
}

fn headers(query: &ExplainQuery) -> Result<Fields, String> {
    let mut fields = Fields::new();
    for (name, value) in &query.headers {
        fields.push_named(name.as_bytes(), value.as_bytes()).map_err(|error| format!("{name:?}: {error}"))?;
    }
    Ok(fields)
}

fn sticky(key: Option<&StickyKey>) -> String {
    match key {
        Some(StickyKey::Header(name)) => format!("header {name}"),
        Some(StickyKey::Cookie(name)) => format!("cookie {name}"),
        None => "nothing".to_owned(),
    }
}

/// As many as fit on a screen beside the rest.
const NAMED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_cannot_serve_is_heard_among_those_that_can() {
        let answer = |chosen: &str, failure: &str| ExplainResponse {
            chosen_cluster: chosen.into(),
            failure: failure.into(),
            ..ExplainResponse::default()
        };
        let (here, there, nowhere) = (answer("paris", ""), answer("tokyo", ""), answer("", "no cluster can serve it"));
        assert_eq!(merge(vec![]), None);
        assert_eq!(merge(vec![there.clone(), here.clone()]), Some(there.clone()));
        assert_eq!(merge(vec![nowhere.clone(), nowhere.clone()]), Some(nowhere.clone()));
        let mixed = merge(vec![there, nowhere.clone(), here]).unwrap();
        assert_eq!(mixed.failure, nowhere.failure);
        assert!(mixed.reasons[0].starts_with("1 of 3 workers cannot serve it"), "{:?}", mixed.reasons);
    }
}
