//! What `meshctl slow` prints.

use std::time::Duration;

use serde::Serialize;

use super::{Findings, Guilty, Hop, Place, Verdict};
use crate::duration;
use crate::names::ServiceName;
use crate::output::{Table, Text};

/// `slow`. Times in milliseconds; names are an interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlowView {
    service: String,
    since: String,
    /// Requests that ended; the others are some of them.
    requests: u64,
    median_ms: Option<f64>,
    p99_ms: Option<f64>,
    verdict: VerdictView,
    hops: Vec<HopView>,
    slowest: Vec<RequestView>,
    gateways: GatewaysView,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VerdictView {
    /// `hop`, `nothing` or `no-requests`.
    kind: &'static str,
    hop: Option<Hop>,
    from: Option<String>,
    cluster: Option<String>,
    gateway: Option<String>,
    endpoint: Option<String>,
    /// Slow requests of which it is so, and those that were looked at.
    requests: usize,
    of: usize,
    time_ms: Option<f64>,
    usual_ms: Option<f64>,
    /// Requests that are not slow spend as much there.
    is_usual: bool,
    /// The same in a sentence.
    text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HopView {
    hop: Hop,
    slow_ms: f64,
    usual_ms: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestView {
    total_ms: f64,
    age_ms: u64,
    /// 0: its sender was gone before there was one.
    status: u32,
    flags: String,
    from: String,
    cluster: String,
    gateway: Option<String>,
    endpoint: Option<String>,
    /// What took most of it, and how much.
    hop: Hop,
    hop_ms: f64,
    method: Option<String>,
    path: Option<String>,
    trace_id: Option<String>,
    attempts: u32,
    /// `null`: the far gateway did not say.
    far_attempts: Option<u32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewaysView {
    answered: usize,
    silent_workers: u32,
    /// Without an answer: what entered there is not in this.
    missing: Vec<MissingView>,
    /// They do not say how long they took for others.
    without_ledger: Vec<String>,
}

#[derive(Debug, Serialize)]
struct MissingView {
    gateway: String,
    reason: String,
}

impl SlowView {
    pub(crate) fn new(service: &ServiceName, since: Duration, findings: Findings) -> Self {
        let verdict = VerdictView::new(&findings);
        let some = |text: String| (!text.is_empty()).then_some(text);
        let known = findings.seen > 0;
        let slowest = findings.slow.into_iter().take(SLOWEST_MAX).map(|one| {
            let request = one.request;
            let hops = request.hops.unwrap_or_default();
            let hop = Hop::ALL.into_iter().max_by_key(|hop| hop.of(&hops)).unwrap_or(Hop::FirstByte);
            let has_answer = request.far_attempts > 0;
            RequestView {
                total_ms: ms(request.total_us),
                age_ms: request.age_ms,
                status: request.status,
                flags: request.flags,
                from: one.from,
                cluster: request.cluster,
                gateway: some(request.gateway),
                endpoint: some(request.endpoint),
                hop,
                hop_ms: ms(hop.of(&hops)),
                method: some(request.method),
                path: some(request.path),
                trace_id: some(request.trace_id),
                attempts: request.attempts,
                far_attempts: has_answer.then_some(request.far_attempts),
            }
        });
        Self {
            service: service.to_string(),
            since: duration::display(since),
            requests: findings.seen,
            median_ms: known.then(|| ms(findings.median)),
            p99_ms: known.then(|| ms(findings.p99)),
            verdict,
            hops: findings
                .parts
                .iter()
                .filter(|part| part.slow > 0 || part.usual > 0)
                .map(|part| HopView { hop: part.hop, slow_ms: ms(part.slow), usual_ms: ms(part.usual) })
                .collect(),
            slowest: slowest.collect(),
            gateways: GatewaysView {
                answered: findings.gateways,
                silent_workers: findings.silent_workers,
                missing: findings
                    .missing
                    .into_iter()
                    .map(|(gateway, reason)| MissingView { gateway, reason })
                    .collect(),
                without_ledger: findings.silent,
            },
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> Text {
        let mut text = Text::default().line(one_line(&self.verdict.text));
        let mut hops = Table::new(&["HOP", "SLOW", "USUAL", "WHAT"]);
        for part in &self.hops {
            let times = [part.slow_ms, part.usual_ms].map(shown);
            let [slow, usual] = times;
            hops.row([part.hop.word().into(), slow.into(), usual.into(), part.hop.meaning().into()]);
        }
        if !hops.is_empty() {
            text = text.line("").table(hops);
        }
        let mut slowest = Table::new(&["TOTAL", "STATUS", "FROM", "SERVED BY", "MOSTLY", "AGO", "REQUEST", "TRACE"]);
        for one in &self.slowest {
            let status = match (one.status, one.flags.as_str()) {
                (0, flags) => flags.to_owned(),
                (status, "") => status.to_string(),
                (status, flags) => format!("{status} {flags}"),
            };
            let place = Place {
                cluster: Some(one.cluster.clone()).filter(|cluster| !cluster.is_empty()),
                endpoint: one.endpoint.clone(),
                ..Place::default()
            };
            let request =
                format!("{} {}", one.method.as_deref().unwrap_or("-"), one.path.as_deref().unwrap_or_default());
            slowest.row(
                [
                    shown(one.total_ms),
                    status,
                    one.from.clone(),
                    served(&place),
                    format!("{} {}", one.hop.word(), shown(one.hop_ms)),
                    duration::display(Duration::from_secs(one.age_ms / 1_000)),
                    request.trim_end().to_owned(),
                    one.trace_id.clone().unwrap_or_default(),
                ]
                .map(Into::into),
            );
        }
        if !slowest.is_empty() {
            text = text.line("").table(slowest);
        }
        let gateways = &self.gateways;
        let mut notes = Vec::new();
        for missing in &gateways.missing {
            notes.push(format!("{} did not report: {}", missing.gateway, missing.reason));
        }
        for gateway in &gateways.without_ledger {
            notes.push(format!("{gateway} does not report how long it takes for other clusters: update it"));
        }
        if gateways.silent_workers > 0 {
            notes.push(format!("{} workers did not answer their gateways in time", gateways.silent_workers));
        }
        if !notes.is_empty() {
            text = text.line("");
        }
        notes.iter().fold(text, |text, note| text.line(one_line(note)))
    }
}

impl VerdictView {
    fn new(findings: &Findings) -> Self {
        let of = findings.slow.len();
        let mut view = Self {
            kind: "nothing",
            hop: None,
            from: None,
            cluster: None,
            gateway: None,
            endpoint: None,
            requests: 0,
            of,
            time_ms: None,
            usual_ms: None,
            is_usual: false,
            text: String::new(),
        };
        match &findings.verdict {
            Verdict::NoRequests => {
                view.kind = "no-requests";
                view.text = "no request of it ended in that time at any gateway that reported".to_owned();
            }
            Verdict::Nothing => {
                let (p99, median) = (measured(findings.p99), measured(findings.median));
                view.text = format!(
                    "nothing stands out: of {} requests (p99 {p99}, median {median}) the {of} slowest spend their time on different things",
                    findings.seen
                );
            }
            Verdict::Guilty(guilty) => {
                view.kind = "hop";
                view.hop = Some(guilty.hop);
                view.text = sentence(findings, guilty);
                (view.requests, view.is_usual) = (guilty.requests, guilty.is_usual);
                (view.time_ms, view.usual_ms) = (Some(ms(guilty.time)), Some(ms(guilty.usual)));
                let Place { from, cluster, gateway, endpoint } = guilty.place.clone();
                (view.from, view.cluster, view.gateway, view.endpoint) = (from, cluster, gateway, endpoint);
            }
        }
        view
    }
}

/// "95 of the 100 slowest requests (p99 412 ms): 400 ms until the endpoint begins to answer, at 127.0.0.1:9001 in tokyo (usually …)".
fn sentence(findings: &Findings, guilty: &Guilty) -> String {
    let Guilty { hop, place, requests, time, usual, is_usual } = guilty;
    let place = place_text(*hop, place);
    let held = if *is_usual {
        "requests that are not among the slowest spend as much there".to_owned()
    } else {
        format!("usually {}", measured(*usual))
    };
    format!(
        "{requests} of the {} slowest requests (p99 {}): {} {}{place} ({held})",
        findings.slow.len(),
        measured(findings.p99),
        measured(*time),
        hop.meaning(),
    )
}

fn place_text(hop: Hop, place: &Place) -> String {
    let is_way = matches!(hop, Hop::Tunnel | Hop::TunnelWait | Hop::Beyond);
    match (place, is_way) {
        (Place { from: Some(from), gateway: Some(gateway), .. }, true) => format!(", from {from} to {gateway}"),
        (Place { from: Some(from), cluster: Some(cluster), .. }, true) => format!(", from {from} to {cluster}"),
        (Place { cluster: Some(cluster), .. }, true) => format!(", to {cluster}"),
        (Place { endpoint: Some(_), gateway: Some(gateway), .. }, _) => {
            format!(", at {} behind {gateway}", served(place))
        }
        (Place { endpoint: Some(_), .. }, _) => format!(", at {}", served(place)),
        (Place { gateway: Some(gateway), .. }, _) => format!(", at {gateway}"),
        (Place { cluster: Some(cluster), .. }, _) => format!(", at several places in {cluster}"),
        _ => ", in several clusters".to_owned(),
    }
}

fn served(place: &Place) -> String {
    match (&place.endpoint, &place.cluster) {
        (Some(endpoint), Some(cluster)) => format!("{endpoint} in {cluster}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => "-".to_owned(),
    }
}

/// What somebody else says stays within a line; the rest of it that a terminal would obey is seen to where it is printed.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\t'], " ")
}

#[expect(clippy::cast_precision_loss, reason = "for display, and no request takes a century")]
fn ms(micros: u64) -> f64 {
    micros as f64 / 1e3
}

fn measured(micros: u64) -> String {
    duration::measured(micros)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "made of whole microseconds above")]
fn shown(ms: f64) -> String {
    duration::measured((ms * 1e3).round() as u64)
}

/// Rows of a table that fits a screen.
const SLOWEST_MAX: usize = 10;
