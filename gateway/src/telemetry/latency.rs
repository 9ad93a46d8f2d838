//! How long requests took, by service, version, clusters and outcome: written down by each worker alone, counted beside the data path.
//!
//! A worker notes the bucket of each request: two bytes. Four times a second, and when somebody asks, it hands that over through an inbox
//! whose lock is held for one push; what has come is added to the [`Store`] by whoever asks, or once a second. No worker waits for that.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use archipelago_proto::v1::{LatencyAnswer, LatencyQuestion};
use archipelago_telemetry::store::Limits;
use archipelago_telemetry::{self as telemetry, Flow, FlowKey, Outcome, Store, Tally};

use crate::exchange::books::{Done, Record, Reporter};
use crate::exchange::grpc::Status;
use crate::telemetry::Name;

/// Those of a gateway.
#[derive(Debug)]
pub struct Latencies {
    inbox: Mutex<Vec<Batch>>,
    store: Mutex<Store>,
}

/// What a worker noted since it handed over the last one.
#[derive(Debug)]
enum Batch {
    Requests(Vec<(telemetry::Key, Tally)>),
    Connections(Vec<(FlowKey, Flow)>),
}

impl Latencies {
    /// None yet. `random` tells this process from others of the same gateway.
    pub fn new(random: u64) -> Self {
        Self { inbox: Mutex::default(), store: Mutex::new(Store::new(random.max(1), Limits::default())) }
    }

    /// Answers with everything that workers have handed over, as far as it fits.
    pub fn answer(&self, question: &LatencyQuestion, bytes_max: usize) -> LatencyAnswer {
        self.settle().answer(question, bytes_max)
    }

    /// Adds what comes in every so often, for ever.
    pub async fn settle_on(self: Arc<Self>, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            let this = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || drop(this.settle())).await.is_err() {
                return;
            }
        }
    }

    fn settle(&self) -> std::sync::MutexGuard<'_, Store> {
        // The store first: what has left the inbox is in it before anybody else looks.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let batches = mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner));
        for batch in batches {
            match batch {
                Batch::Requests(tallies) => store.add(tallies),
                Batch::Connections(flows) => store.add_flows(flows),
            }
        }
        store
    }

    /// Takes a batch, unless too many wait.
    fn put(&self, batch: impl FnOnce() -> Batch) {
        let is_full = |inbox: &Vec<Batch>| inbox.len() >= BATCHES_MAX;
        if is_full(&self.inbox.lock().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let batch = batch();
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
    }
}

/// One worker's notes.
#[derive(Debug)]
pub struct WorkerLatencies {
    shared: Arc<Latencies>,
    notes: RefCell<HashMap<Key, Tally, foldhash::fast::RandomState>>,
}

impl WorkerLatencies {
    /// For one worker.
    pub fn new(shared: &Arc<Latencies>) -> Self {
        Self { shared: Arc::clone(shared), notes: RefCell::default() }
    }

    /// Notes a finished request.
    pub fn record(&self, done: &Done<'_>) {
        let micros = u64::try_from(done.duration.as_micros()).unwrap_or(u64::MAX);
        let mut notes = self.notes.borrow_mut();
        let key = Key::of(done.record);
        let key = if notes.len() < SERIES_MAX || notes.contains_key(&key) { key } else { key.overflowing() };
        notes.entry(key).or_default().record(micros);
    }

    /// Hands them over; kept until next time if there is no room.
    pub fn flush(&self) {
        let mut notes = self.notes.borrow_mut();
        if notes.is_empty() {
            return;
        }
        self.shared.put(|| Batch::Requests(notes.drain().map(|(key, tally)| (key.told(), tally)).collect()));
    }

    /// Hands over what happened to TCP connections; not asked for if there is no room.
    pub fn flush_flows(&self, flows: impl FnOnce() -> Vec<(FlowKey, Flow)>) {
        self.shared.put(|| Batch::Connections(flows()));
    }
}

/// A series as a worker knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    service: Option<Name>,
    version: Option<Name>,
    source: Option<Name>,
    destination: Option<Name>,
    reporter: Reporter,
    outcome: Outcome,
    overflow: bool,
}

impl Key {
    fn of(record: &Record) -> Self {
        Self {
            service: record.service.clone(),
            version: record.version.clone(),
            source: Some(record.source_cluster.clone()),
            destination: record.destination_cluster.clone(),
            reporter: record.reporter,
            outcome: outcome(record),
            overflow: false,
        }
    }

    fn overflowing(self) -> Self {
        Self { service: None, version: None, source: None, destination: None, overflow: true, ..self }
    }

    /// As text, equal for all workers.
    fn told(&self) -> telemetry::Key {
        let text = |name: &Option<Name>| name.as_deref().unwrap_or_default().into();
        telemetry::Key {
            service: text(&self.service),
            version: text(&self.version),
            source: text(&self.source),
            destination: text(&self.destination),
            reporter: match self.reporter {
                Reporter::Source => telemetry::Reporter::Source,
                Reporter::Destination => telemetry::Reporter::Destination,
            },
            outcome: self.outcome,
            overflow: self.overflow,
        }
    }
}

/// How a request ended, by Envoy's letters where its status does not say it; that of a gRPC call is gRPC's.
fn outcome(record: &Record) -> Outcome {
    match (record.flags, record.code) {
        ("DC", _) | (_, 0) => Outcome::Abandoned,
        ("UC", code) if code < 500 => Outcome::Broken,
        // Cut, because its endpoint gave nothing more of it; what the gateway says of itself to a gRPC caller has a status.
        ("UT", code) if code < 500 && record.grpc.status().is_none() => Outcome::Broken,
        (_, code) => Outcome::of_status(record.grpc.status().map_or(code, Status::class)),
    }
}

/// Half a minute of eight workers, should nobody take them.
const BATCHES_MAX: usize = 1_024;
/// Of one worker in a quarter of a second.
const SERIES_MAX: usize = 20_000;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn note(worker: &WorkerLatencies, service: &str, code: u16, flags: &'static str, millis: u64) {
        let mut record = Record::new(Reporter::Source, "paris".into(), Instant::now());
        (record.service, record.destination_cluster) = (Some(service.into()), Some("tokyo".into()));
        (record.code, record.flags) = (code, flags);
        let duration = Duration::from_millis(millis);
        worker.record(&Done { record: &record, duration, bytes_received: 0, bytes_sent: 0 });
    }

    fn told(latencies: &Latencies) -> Vec<(String, Outcome, u64)> {
        let answer = latencies.answer(&LatencyQuestion::default(), usize::MAX);
        let read = |series| telemetry::Key::of_wire("paris", series).unwrap();
        let mut told: Vec<_> = answer
            .series
            .iter()
            .map(read)
            .map(|(key, counts)| (key.service.to_string(), key.outcome, counts.total()))
            .collect();
        told.sort();
        told
    }

    #[test]
    fn what_workers_note_is_one_series_whoever_noted_it() {
        let latencies = Arc::new(Latencies::new(0));
        let workers = [WorkerLatencies::new(&latencies), WorkerLatencies::new(&latencies)];
        for worker in &workers {
            note(worker, "shop/web", 200, "", 5);
            note(worker, "shop/web", 503, "UH", 1);
            note(worker, "shop/web", 200, "UC", 1);
            note(worker, "shop/web", 502, "UC", 1);
            note(worker, "shop/web", 200, "DC", 1);
            note(worker, "shop/web", 0, "", 1);
            note(worker, "shop/web", 999, "", 1);
        }
        assert!(told(&latencies).is_empty(), "until it is handed over");
        workers.iter().for_each(WorkerLatencies::flush);
        let web = |outcome, count| ("shop/web".to_owned(), outcome, count);
        let all = [
            web(Outcome::Status2xx, 2),
            web(Outcome::Status5xx, 6),
            web(Outcome::Broken, 2),
            web(Outcome::Abandoned, 4),
        ];
        assert_eq!(told(&latencies), all);
        workers.iter().for_each(WorkerLatencies::flush);
        assert_eq!(told(&latencies), all, "each once");
    }

    #[test]
    fn a_call_is_counted_by_its_own_status() {
        use crate::exchange::grpc::Grpc;
        let how = |code, flags, grpc| {
            let mut record = Record::new(Reporter::Source, "paris".into(), Instant::now());
            (record.code, record.flags, record.grpc) = (code, flags, grpc);
            outcome(&record)
        };
        let status = |number| Grpc::Status(Status::new(number));
        assert_eq!(how(200, "", status(0)), Outcome::Status2xx);
        assert_eq!(how(200, "", status(5)), Outcome::Status4xx, "NOT_FOUND");
        assert_eq!(how(200, "", status(14)), Outcome::Status5xx, "UNAVAILABLE");
        assert_eq!(how(200, "UT", status(4)), Outcome::Status5xx, "the gateway's own word");
        assert_eq!(how(200, "UC", Grpc::Call), Outcome::Broken);
        assert_eq!(how(200, "DC", status(1)), Outcome::Abandoned);
        assert_eq!(how(200, "UT", Grpc::No), Outcome::Broken, "cut in the middle");
        assert_eq!(how(504, "UT", Grpc::No), Outcome::Status5xx);
    }

    #[test]
    fn nothing_is_lost_where_there_is_no_room() {
        let latencies = Arc::new(Latencies::new(7));
        let worker = WorkerLatencies::new(&latencies);
        for n in 0..SERIES_MAX + 5 {
            note(&worker, &format!("shop/{n}"), 200, "", 1);
        }
        worker.flush();
        // Nobody settles: from here on the worker keeps what it notes.
        for _ in 0..BATCHES_MAX + 10 {
            note(&worker, "shop/0", 200, "", 1);
            worker.flush();
        }
        assert_eq!(latencies.inbox.lock().unwrap().len(), BATCHES_MAX);
        let count = |latencies: &Latencies| told(latencies).iter().map(|(.., count)| count).sum::<u64>();
        let noted = SERIES_MAX as u64 + 5 + BATCHES_MAX as u64 + 10;
        assert_eq!(count(&latencies), noted - 11, "the worker keeps the rest");
        worker.flush();
        assert_eq!(count(&latencies), noted);
        assert_eq!(told(&latencies)[0].0, "", "those beyond what is kept have no name");
    }
}
