//! What a cluster still serves, out of what gateways say: the count-down of a drain.
//!
//! The cluster's own gateways see all that its endpoints serve, whoever asked for it. Where one of them does not answer, what the
//! gateways of other clusters have sent there is known at least.

use std::collections::BTreeMap;

use archipelago_proto::v1::{GatewayAnswer, NoAnswerReason, UnderWayAnswer, answer, gateway_answer};
use serde::Serialize;

use crate::output::{Table, Text};

/// What is under way at a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnderWayView {
    pub(crate) cluster: String,
    /// False: not all of its gateways answered, so that there may be more.
    pub(crate) is_complete: bool,
    pub(crate) requests: u64,
    /// TCP.
    pub(crate) connections: u64,
    /// The most first.
    pub(crate) services: Vec<ServiceUnderWay>,
    /// Of its own gateways: "cluster/gateway: why it said nothing".
    pub(crate) missing: Vec<String>,
}

/// The part of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceUnderWay {
    pub(crate) service: String,
    pub(crate) requests: u64,
    pub(crate) connections: u64,
}

type Counts = BTreeMap<String, (u64, u64)>;

impl UnderWayView {
    /// Of what all gateways answered to a question about `cluster`.
    pub(crate) fn new(cluster: &str, answers: Vec<GatewayAnswer>) -> Self {
        let (mut served, mut sent, mut missing) = (Counts::new(), Counts::new(), Vec::new());
        for said in answers {
            let is_own = said.cluster == cluster;
            let why = match said.outcome {
                Some(gateway_answer::Outcome::Answer(told)) => match told.body {
                    Some(answer::Body::UnderWay(told)) => {
                        let silent = told.silent_workers;
                        add(if is_own { &mut served } else { &mut sent }, cluster, told);
                        (silent > 0).then(|| format!("{silent} of its workers are silent"))
                    }
                    _ => Some("it answered something else".to_owned()),
                },
                Some(gateway_answer::Outcome::Missing(why)) => Some(match why.reason() {
                    NoAnswerReason::NotSupported => "its version does not count this".to_owned(),
                    NoAnswerReason::NotConnected => "it is connected to no member of the control plane".to_owned(),
                    _ => why.detail,
                }),
                None => Some("no answer that is known here".to_owned()),
            };
            if let Some(why) = why.filter(|_| is_own) {
                missing.push(format!("{}/{}: {why}", said.cluster, said.gateway));
            }
        }
        if !missing.is_empty() {
            for (service, (requests, connections)) in sent {
                let known = served.entry(service).or_default();
                *known = (known.0.max(requests), known.1.max(connections));
            }
        }
        missing.sort();
        let services = served.into_iter().filter(|(_, (requests, connections))| requests + connections > 0);
        let services =
            services.map(|(service, (requests, connections))| ServiceUnderWay { service, requests, connections });
        let mut services: Vec<_> = services.collect();
        services.sort_by_key(|service| std::cmp::Reverse(service.requests + service.connections));
        Self {
            cluster: cluster.to_owned(),
            is_complete: missing.is_empty(),
            requests: services.iter().map(|service| service.requests).sum(),
            connections: services.iter().map(|service| service.connections).sum(),
            services,
            missing,
        }
    }

    /// Nothing is, as far as is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let Self { cluster, requests, connections, .. } = self;
        let at_least = if self.is_complete { "" } else { "at least " };
        if self.is_empty() {
            return format!("{cluster}: nothing is left{}", if self.is_complete { "" } else { ", as far as is known" });
        }
        let shown = self.services.iter().take(SERVICES_SHOWN).map(
            |ServiceUnderWay { service, requests, connections }| match (requests, connections) {
                (requests, 0) => format!("{service} {requests}"),
                (0, connections) => format!("{service} {connections} TCP"),
                (requests, connections) => format!("{service} {requests} and {connections} TCP"),
            },
        );
        let mut shown: Vec<_> = shown.collect();
        if self.services.len() > SERVICES_SHOWN {
            shown.push(format!("{} more services", self.services.len() - SERVICES_SHOWN));
        }
        let (requests, connections) = (counted(*requests, "request"), counted(*connections, "TCP connection"));
        let left = format!("{at_least}{requests} and {connections} left");
        format!("{cluster}: {left} ({})", shown.join(", "))
    }

    /// For people.
    pub(crate) fn text(&self) -> Text {
        let mut table = Table::new(&["SERVICE", "REQUESTS", "CONNECTIONS"]);
        for ServiceUnderWay { service, requests, connections } in &self.services {
            table.row([service.clone().into(), (*requests).into(), (*connections).into()]);
        }
        let mut text = if self.is_empty() { Text::default().line(self.line()) } else { table.into() };
        for missing in &self.missing {
            text = text.line(format!("not counted: {missing}"));
        }
        text
    }
}

fn add(counts: &mut Counts, cluster: &str, told: UnderWayAnswer) {
    for row in told.rows.into_iter().filter(|row| row.cluster == cluster) {
        let known = counts.entry(row.service).or_default();
        *known = (known.0 + row.requests, known.1 + row.connections);
    }
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// In a line.
const SERVICES_SHOWN: usize = 4;

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::{Answer, NoAnswer, UnderWayRow};

    use super::*;

    fn answered(gateway: &str, rows: &[(&str, &str, u64, u64)]) -> GatewayAnswer {
        let rows = rows.iter().map(|&(service, cluster, requests, connections)| UnderWayRow {
            service: service.into(),
            cluster: cluster.into(),
            requests,
            connections,
        });
        let told = UnderWayAnswer { rows: rows.collect(), silent_workers: 0 };
        let answer = Answer { body: Some(answer::Body::UnderWay(told)), ..Answer::default() };
        said(gateway, gateway_answer::Outcome::Answer(answer))
    }

    fn silent(gateway: &str) -> GatewayAnswer {
        let why = NoAnswer { reason: NoAnswerReason::NotConnected.into(), detail: String::new() };
        said(gateway, gateway_answer::Outcome::Missing(why))
    }

    fn said(gateway: &str, outcome: gateway_answer::Outcome) -> GatewayAnswer {
        let (cluster, gateway) = gateway.split_once('/').unwrap();
        GatewayAnswer { cluster: cluster.into(), gateway: gateway.into(), outcome: Some(outcome) }
    }

    /// What others have sent there is in what its own gateways serve, and not counted twice.
    #[test]
    fn its_own_gateways_know_all_of_it() {
        let view = UnderWayView::new(
            "paris",
            vec![
                answered("paris/gw-1", &[("shop/web", "paris", 3, 0), ("shop/web", "tokyo", 9, 0)]),
                answered("paris/gw-2", &[("shop/web", "paris", 1, 0), ("shop/ledger", "paris", 0, 6)]),
                answered("tokyo/gw-1", &[("shop/web", "paris", 2, 0)]),
                silent("tokyo/gw-2"),
            ],
        );
        assert!(view.is_complete && view.missing.is_empty());
        assert_eq!((view.requests, view.connections), (4, 6));
        assert_eq!(view.line(), "paris: 4 requests and 6 TCP connections left (shop/ledger 6 TCP, shop/web 4)");
    }

    #[test]
    fn without_them_the_others_know_a_part() {
        let view = UnderWayView::new(
            "paris",
            vec![
                answered("paris/gw-1", &[("shop/web", "paris", 1, 0)]),
                silent("paris/gw-2"),
                answered("tokyo/gw-1", &[("shop/web", "paris", 2, 0)]),
                answered("tokyo/gw-2", &[("shop/web", "paris", 3, 0)]),
            ],
        );
        assert!(!view.is_complete);
        assert_eq!(view.missing, ["paris/gw-2: it is connected to no member of the control plane"]);
        assert_eq!(view.line(), "paris: at least 5 requests and 0 TCP connections left (shop/web 5)");
        let nothing = UnderWayView::new("paris", vec![silent("paris/gw-2"), answered("tokyo/gw-1", &[])]);
        assert!(nothing.is_empty());
        assert_eq!(nothing.line(), "paris: nothing is left, as far as is known");
    }
}
