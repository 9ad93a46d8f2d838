//! `Telemetry.Top`: asks all gateways every so often, and tells what happened since the last time. The figures are made by
//! `archipelago-telemetry`; here is when to ask, and what is sent.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_proto::v1::{
    LatencyQuestion, MissingGateway, NoAnswer, NoAnswerReason, RestartedGateway, TopBy, TopRequest, TopRow,
    TopSnapshot, TopTcpRow, answer, gateway_answer::Outcome, question,
};
use archipelago_telemetry::{
    Snapshot, Window,
    rows::{By, FlowRow, Row, flow_rows, rows},
    window::{Gateway, Limits, Next},
};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{MissedTickBehavior, interval_at},
};
use tonic::Status;

use super::Context;

/// What an operator looks at.
#[derive(Debug)]
pub(super) struct Look {
    services: Vec<String>,
    interval: Duration,
    by: By,
    rows_max: usize,
    with_counts: bool,
}

impl Look {
    /// Checks what was asked for.
    pub(super) fn new(request: TopRequest) -> Result<Self, Status> {
        let by = match TopBy::try_from(request.by) {
            Ok(TopBy::Service) => By::Service,
            Ok(TopBy::Destination) => By::Destination,
            Ok(TopBy::Source) => By::Source,
            Ok(TopBy::Version) => By::Version,
            Err(_) => return Err(Status::invalid_argument("this member cannot tell apart by that: upgrade it")),
        };
        let TopRequest { services, interval_ms, by: _, rows_max, with_counts } = request;
        if services.len() > SERVICES_MAX {
            return Err(Status::invalid_argument(format!("at most {SERVICES_MAX} services are looked at by name")));
        }
        let is_name = |name: &String| name.len() <= SERVICE_BYTES_MAX && name.split('/').count() == 2;
        if let Some(service) = services.iter().find(|service| !is_name(service)) {
            let service: String = service.chars().take(SERVICE_BYTES_MAX).collect();
            return Err(Status::invalid_argument(format!("{service:?} is not a service: give namespace/name")));
        }
        let interval = if interval_ms == 0 { INTERVAL } else { Duration::from_millis(interval_ms) };
        if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
            return Err(Status::invalid_argument(format!(
                "an interval is between {INTERVAL_MIN:?} and {INTERVAL_MAX:?}"
            )));
        }
        let rows_max = usize::try_from(rows_max).ok().filter(|max| (1..=ROWS_MAX).contains(max)).unwrap_or(ROWS_MAX);
        Ok(Self { services, interval, by, rows_max, with_counts })
    }

    /// Looks until nobody takes it any more.
    pub(super) async fn run(
        self,
        context: Arc<Context>,
        snapshots: mpsc::Sender<Result<TopSnapshot, Status>>,
        _permit: OwnedSemaphorePermit,
    ) {
        let began = Instant::now();
        let mut window = Window::new(self.services.clone(), Limits::default(), Duration::ZERO);
        let mut due = interval_at((began + self.interval).into(), self.interval);
        // Who is slow has longer windows, not more of them.
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if let Err(status) = ask(&context, &mut window, began).await {
            let _ = snapshots.send(Err(status)).await;
            return;
        }
        let begins = beginning(&window.close(began.elapsed()));
        if snapshots.send(Ok(begins)).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                () = snapshots.closed() => return,
                () = context.stopping.cancelled() => {
                    let status = Status::unavailable("this member is shutting down, ask another");
                    let _ = snapshots.try_send(Err(status));
                    return;
                }
                _ = due.tick() => {}
            }
            let told = match ask(&context, &mut window, began).await {
                Ok(()) => Ok(self.told(&window.close(began.elapsed()))),
                Err(status) => Err(status),
            };
            let is_over = told.is_err();
            if snapshots.send(told).await.is_err() || is_over {
                return;
            }
        }
    }

    fn told(&self, snapshot: &Snapshot) -> TopSnapshot {
        let rows = rows(snapshot, self.by);
        let count_all = rows.len();
        let mut bytes = 0;
        let told: Vec<TopRow> = rows
            .into_iter()
            .take(self.rows_max)
            .map(|shown| row(shown, self.with_counts))
            .take_while(|row| {
                bytes += row.encoded_len();
                bytes <= ROWS_BYTES_MAX
            })
            .collect();
        let tcp_rows = flow_rows(snapshot, self.by);
        let count_tcp = tcp_rows.len();
        let tcp_told: Vec<TopTcpRow> = tcp_rows
            .into_iter()
            .take(self.rows_max)
            .map(tcp_row)
            .take_while(|row| {
                bytes += row.encoded_len();
                bytes <= ROWS_BYTES_MAX
            })
            .collect();
        let no_tcp = no_answer(NoAnswerReason::NotSupported, "is of a build that does not count TCP connections");
        TopSnapshot {
            elapsed_micros: u64::try_from(snapshot.elapsed.as_micros()).unwrap_or(u64::MAX),
            rows_left_off: count(count_all - told.len()),
            rows: told,
            gateways_reported: count(snapshot.reported),
            missing: snapshot.missing.iter().map(missing).collect(),
            restarted: snapshot
                .restarted
                .iter()
                .map(|((cluster, gateway), times)| RestartedGateway {
                    cluster: cluster.clone(),
                    gateway: gateway.clone(),
                    times: *times,
                })
                .collect(),
            silent_workers: snapshot.silent_workers,
            begins: false,
            tcp_rows_left_off: count(count_tcp - tcp_told.len()),
            tcp_rows: tcp_told,
            tcp_missing: snapshot.without_flows.iter().map(|gateway| missing((gateway, &no_tcp))).collect(),
            tells_tcp: true,
        }
    }
}

/// What the first look showed: of whom there will be figures.
fn beginning(first: &Snapshot) -> TopSnapshot {
    let (begin, absent): (Vec<_>, Vec<_>) =
        first.missing.iter().partition(|(_, why)| why.reason() == NoAnswerReason::First);
    TopSnapshot {
        gateways_reported: count(begin.len()),
        missing: absent.into_iter().map(missing).collect(),
        begins: true,
        ..TopSnapshot::default()
    }
}

fn missing(((cluster, gateway), why): (&Gateway, &NoAnswer)) -> MissingGateway {
    MissingGateway { cluster: cluster.clone(), gateway: gateway.clone(), why: Some(why.clone()) }
}

/// Asks every gateway what is new, in as many parts as it takes.
pub(crate) async fn ask(context: &Arc<Context>, window: &mut Window, began: Instant) -> Result<(), Status> {
    let deadline = Instant::now() + ASK_TIME_MAX;
    let mut rest: Option<BTreeMap<Gateway, LatencyQuestion>> = None;
    loop {
        let inquiry = context.inquire(|cluster, gateway| {
            let gateway = (cluster.to_owned(), gateway.to_owned());
            let question = match &mut rest {
                None => window.question(&gateway),
                Some(rest) => rest.remove(&gateway)?,
            };
            Some(question::Body::Latency(question))
        })?;
        let (sender, mut answers) = mpsc::channel(super::ANSWERS_QUEUED_MAX);
        tokio::spawn(inquiry.run(move |answer| {
            let sender = sender.clone();
            async move { sender.send(answer).await }
        }));
        let mut more = BTreeMap::new();
        while let Some(answer) = answers.recv().await {
            let gateway = (answer.cluster, answer.gateway);
            let missing = match answer.outcome {
                Some(Outcome::Answer(told)) => match told.body {
                    Some(answer::Body::Latency(told)) => {
                        // One that cannot be used is missing, with the reason, by the window's own word.
                        if let Ok(Next::Ask(question)) = window.take(&gateway, &told, began.elapsed()) {
                            more.insert(gateway, question);
                        }
                        continue;
                    }
                    _ => no_answer(NoAnswerReason::Failed, "answered something else than was asked"),
                },
                Some(Outcome::Missing(why)) => why,
                None => no_answer(NoAnswerReason::Failed, "said nothing"),
            };
            window.missing(gateway, missing);
        }
        if more.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            for gateway in more.into_keys() {
                let why = no_answer(NoAnswerReason::TimedOut, "has more to say than there is time: name services");
                window.missing(gateway, why);
            }
            return Ok(());
        }
        rest = Some(more);
    }
}

fn row(row: Row, with_counts: bool) -> TopRow {
    let owned = |name: Option<Box<str>>| name.map(String::from).unwrap_or_default();
    TopRow {
        sources: row.sources.iter().map(ToString::to_string).collect(),
        destinations: row.destinations.iter().map(ToString::to_string).collect(),
        overflow: row.overflow,
        requests_per_second: row.per_second,
        succeeded: row.succeeded,
        failed: row.failed,
        abandoned: row.abandoned,
        p50_micros: row.counts.quantile(0.5),
        p90_micros: row.counts.quantile(0.9),
        p99_micros: row.counts.quantile(0.99),
        p999_micros: row.counts.quantile(0.999),
        counts: if with_counts { row.counts.encode() } else { Vec::new() },
        service: owned(row.service),
        version: owned(row.version),
    }
}

fn tcp_row(row: FlowRow) -> TopTcpRow {
    let owned = |name: Option<Box<str>>| name.map(String::from).unwrap_or_default();
    let connected = &row.flow.connected;
    TopTcpRow {
        sources: row.sources.iter().map(ToString::to_string).collect(),
        destinations: row.destinations.iter().map(ToString::to_string).collect(),
        overflow: row.overflow,
        connections_per_second: row.per_second,
        connected: connected.total(),
        failed: row.flow.failed,
        open: row.open,
        sent_bytes_per_second: row.sent_per_second,
        received_bytes_per_second: row.received_per_second,
        p50_micros: connected.quantile(0.5),
        p90_micros: connected.quantile(0.9),
        p99_micros: connected.quantile(0.99),
        p999_micros: connected.quantile(0.999),
        service: owned(row.service),
        version: owned(row.version),
    }
}

fn no_answer(reason: NoAnswerReason, detail: &str) -> NoAnswer {
    NoAnswer { reason: reason.into(), detail: detail.to_owned() }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

const INTERVAL: Duration = Duration::from_secs(1);
/// As often as workers hand over.
const INTERVAL_MIN: Duration = Duration::from_millis(250);
const INTERVAL_MAX: Duration = Duration::from_secs(3_600);
const SERVICES_MAX: usize = 100;
/// Two labels and a slash.
const SERVICE_BYTES_MAX: usize = 127;
/// More than anybody reads; 300 KiB.
const ROWS_MAX: usize = 1_000;
/// Below what a client of gRPC takes in one message by default.
const ROWS_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Of a gateway with ten megabytes to say, ten parts.
const ASK_TIME_MAX: Duration = Duration::from_secs(10);
