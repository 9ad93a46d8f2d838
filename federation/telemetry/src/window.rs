//! What happened at all gateways between two moments, out of what each has counted since it began.
//!
//! The first answer of a gateway is where its window begins. From then on what it counted more belongs to the window in which its
//! answer comes: after one that was lost, the next brings both. One that began again (another incarnation) had nothing before, so all of
//! it is new; what its former process counted after its last answer is gone with it, and the restart is told.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::time::Duration;

use archipelago_proto::v1::{LatencyAnswer, LatencyQuestion, NoAnswer, NoAnswerReason};

use crate::counts::Counts;
use crate::flow::{Flow, FlowKey};
use crate::key::{Key, Refused};

/// One asker's view of all gateways. Time is what the caller's clock says, from any moment on.
#[derive(Debug)]
pub struct Window {
    services: Vec<String>,
    gateways: BTreeMap<Gateway, Seen>,
    measured: BTreeMap<Key, Measured>,
    flows: BTreeMap<FlowKey, MeasuredFlow>,
    missing: BTreeMap<Gateway, NoAnswer>,
    restarted: BTreeMap<Gateway, u32>,
    silent_workers: u32,
    began: Duration,
    /// Not empty, of everything that is kept.
    buckets: usize,
    limits: Limits,
}

/// "cluster", name.
pub type Gateway = (String, String);

/// What a window may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Series of one gateway.
    pub series_max: usize,
    /// Buckets that are not empty, of all gateways.
    pub buckets_max: usize,
}

/// What happened to requests of one series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// How long they took.
    pub counts: Counts,
    /// Requests in a second: of each gateway over the time since its answer before.
    pub per_second: f64,
}

/// What happened to TCP connections of one series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MeasuredFlow {
    /// What came.
    pub flow: Flow,
    /// Connections begun in a second, taken or not.
    pub per_second: f64,
    /// Bytes towards the service in a second.
    pub sent_per_second: f64,
    /// Bytes towards clients in a second.
    pub received_per_second: f64,
    /// Open at the end, also those that began long before.
    pub open: u64,
}

/// What happened in a window.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// By series, those only of which there was something.
    pub measured: BTreeMap<Key, Measured>,
    /// TCP connections by series, those only of which there was something.
    pub flows: BTreeMap<FlowKey, MeasuredFlow>,
    /// Gateways whose figures are in it, but none of TCP connections, since their build counts none.
    pub without_flows: BTreeSet<Gateway>,
    /// How long it was.
    pub elapsed: Duration,
    /// Gateways whose figures are in it.
    pub reported: usize,
    /// Gateways whose figures are not in it, or not all of them, and why.
    pub missing: BTreeMap<Gateway, NoAnswer>,
    /// Gateways that began again in it, and how often: of each, what it counted after its last answer is lost.
    pub restarted: BTreeMap<Gateway, u32>,
    /// Workers whose latest requests are not in it yet.
    pub silent_workers: u32,
}

/// What follows an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// That was all of it.
    Done,
    /// The gateway has more to say to this.
    Ask(LatencyQuestion),
}

/// What is known of one gateway.
#[derive(Debug, Default)]
struct Seen {
    /// The latest first.
    processes: Vec<Process>,
    last: Option<Duration>,
    /// Its figures of this window are complete.
    is_complete: bool,
    /// It counts TCP connections.
    tells_flows: bool,
}

#[derive(Debug)]
struct Process {
    incarnation: u64,
    /// Everything up to here is known.
    since: u64,
    /// Of the answer that is being taken in parts: its first part's.
    as_of: u64,
    /// Where its next part begins; 0: none is being taken.
    next_series: u32,
    /// It was there when the window of this gateway began, and until then its series are where they begin.
    is_baseline: bool,
    series: HashMap<Key, Counts>,
    flows: HashMap<FlowKey, Flow>,
}

impl Window {
    /// One over these services ("namespace/name"), or all if none is named.
    #[must_use]
    pub fn new(services: Vec<String>, limits: Limits, now: Duration) -> Self {
        Self {
            services,
            gateways: BTreeMap::new(),
            measured: BTreeMap::new(),
            flows: BTreeMap::new(),
            missing: BTreeMap::new(),
            restarted: BTreeMap::new(),
            silent_workers: 0,
            began: now,
            buckets: 0,
            limits,
        }
    }

    /// What to ask a gateway. Parts of an answer before that never came are given up.
    pub fn question(&mut self, gateway: &Gateway) -> LatencyQuestion {
        let latest = self.gateways.get_mut(gateway).and_then(|seen| seen.processes.first_mut());
        let (incarnation, since) = latest.map_or((0, 0), |process| {
            process.next_series = 0;
            (process.incarnation, process.since)
        });
        LatencyQuestion { incarnation, since, services: self.services.clone(), first_series: 0 }
    }

    /// Takes an answer in.
    ///
    /// # Errors
    /// It cannot be used; the gateway is missing from this window, and begins anew with its next answer.
    pub fn take(&mut self, gateway: &Gateway, answer: &LatencyAnswer, now: Duration) -> Result<Next, Unusable> {
        let taken = self.take_in(gateway, answer, now);
        if let Err(error) = &taken {
            self.forget(gateway);
            let why = NoAnswer { reason: NoAnswerReason::Failed.into(), detail: error.to_string() };
            self.missing.insert(gateway.clone(), why);
        }
        taken
    }

    /// There is no answer of this gateway, because of this.
    pub fn missing(&mut self, gateway: Gateway, why: NoAnswer) {
        if let Some(seen) = self.gateways.get_mut(&gateway) {
            seen.is_complete = false;
        }
        self.missing.insert(gateway, why);
    }

    /// Ends the window, and begins the next. A gateway that neither answered nor was missing is there no more.
    pub fn close(&mut self, now: Duration) -> Snapshot {
        let gone =
            self.gateways.iter().filter(|(gateway, seen)| !seen.is_complete && !self.missing.contains_key(gateway));
        for gateway in gone.map(|(gateway, _)| gateway.clone()).collect::<Vec<_>>() {
            self.forget(&gateway);
        }
        let mut snapshot = Snapshot {
            measured: std::mem::take(&mut self.measured),
            flows: std::mem::take(&mut self.flows),
            without_flows: BTreeSet::new(),
            elapsed: now.saturating_sub(self.began),
            reported: 0,
            missing: std::mem::take(&mut self.missing),
            restarted: std::mem::take(&mut self.restarted),
            silent_workers: std::mem::take(&mut self.silent_workers),
        };
        for (gateway, seen) in &mut self.gateways {
            if !std::mem::take(&mut seen.is_complete) {
                continue;
            }
            snapshot.reported += 1;
            if !seen.tells_flows {
                snapshot.without_flows.insert(gateway.clone());
            }
            // What a former process still has open, nobody tells.
            let flows = seen.processes.first().into_iter().flat_map(|process| &process.flows);
            for (key, flow) in flows.filter(|(_, flow)| flow.open() > 0) {
                snapshot.flows.entry(key.clone()).or_default().open += flow.open();
            }
        }
        self.buckets -= snapshot.measured.values().map(|measured| measured.counts.buckets()).sum::<usize>();
        self.buckets -= snapshot.flows.values().map(|measured| measured.flow.connected.buckets()).sum::<usize>();
        self.began = now;
        snapshot
    }

    fn take_in(&mut self, gateway: &Gateway, answer: &LatencyAnswer, now: Duration) -> Result<Next, Unusable> {
        let (cluster, _) = gateway;
        if answer.incarnation == 0 {
            return Err(Unusable::NoIncarnation);
        }
        let seen = self.gateways.entry(gateway.clone()).or_default();
        let is_first = seen.processes.is_empty();
        let was_cut = seen.processes.first().is_some_and(|process| process.next_series != 0);
        let asked = seen.processes.first().map(|process| process.incarnation);
        match seen.processes.iter().position(|process| process.incarnation == answer.incarnation) {
            // A former one can answer once more while its successor takes over.
            Some(place) => {
                let process = seen.processes.remove(place);
                seen.processes.insert(0, process);
            }
            None => {
                if !is_first {
                    *self.restarted.entry(gateway.clone()).or_default() += 1;
                }
                while seen.processes.len() >= PROCESSES_MAX {
                    let gone = seen.processes.pop();
                    self.buckets -= gone.map_or(0, |process| process.buckets());
                }
                seen.processes.insert(0, Process::new(answer.incarnation, is_first));
            }
        }
        let Some(process) = seen.processes.first_mut() else { return Ok(Next::Done) };
        if was_cut && asked != Some(process.incarnation) {
            // A part of another process' answer than the one that was begun: it lacks the beginning.
            process.next_series = 0;
            return Ok(Next::Ask(LatencyQuestion {
                incarnation: process.incarnation,
                since: process.since,
                services: self.services.clone(),
                first_series: 0,
            }));
        }
        if process.next_series == 0 {
            process.as_of = answer.as_of;
        }
        // At least a millisecond: no rate is infinite.
        let span = seen.last.map(|last| now.saturating_sub(last).max(SPAN_MIN));
        for told in &answer.series {
            let (key, counts) = Key::of_wire(cluster, told)?;
            let before = process.series.get(&key);
            let added = match before {
                None if process.is_baseline => Counts::default(),
                None => counts.clone(),
                Some(before) => counts.since(before).ok_or(Unusable::WentBack)?,
            };
            if before.is_none() && process.series.len() + process.flows.len() >= self.limits.series_max {
                return Err(Unusable::Series { series_max: self.limits.series_max });
            }
            self.buckets += counts.buckets();
            self.buckets -= before.map_or(0, Counts::buckets);
            process.series.insert(key.clone(), counts);
            if !added.is_empty() {
                let measured = self.measured.entry(key).or_default();
                #[allow(clippy::cast_precision_loss, reason = "a rate is for people and for ratios")]
                let per_second = span.map_or(0.0, |span| added.total() as f64 / span.as_secs_f64());
                self.buckets -= measured.counts.buckets();
                measured.counts.add(&added);
                measured.per_second += per_second;
                self.buckets += measured.counts.buckets();
            }
            if self.buckets > self.limits.buckets_max {
                return Err(Unusable::Buckets);
            }
        }
        for told in &answer.flows {
            let (key, flow) = FlowKey::of_wire(cluster, told)?;
            let before = process.flows.get(&key);
            let added = match before {
                None if process.is_baseline => Flow::default(),
                None => flow.clone(),
                Some(before) => flow.since(before).ok_or(Unusable::WentBack)?,
            };
            if before.is_none() && process.series.len() + process.flows.len() >= self.limits.series_max {
                return Err(Unusable::Series { series_max: self.limits.series_max });
            }
            self.buckets += flow.connected.buckets();
            self.buckets -= before.map_or(0, |before| before.connected.buckets());
            process.flows.insert(key.clone(), flow);
            if !added.is_empty() {
                let measured = self.flows.entry(key).or_default();
                #[allow(clippy::cast_precision_loss, reason = "a rate is for people")]
                let rate = |number: u64| span.map_or(0.0, |span| number as f64 / span.as_secs_f64());
                measured.per_second += rate(added.connected.total().saturating_add(added.failed));
                measured.sent_per_second += rate(added.sent_bytes);
                measured.received_per_second += rate(added.received_bytes);
                self.buckets -= measured.flow.connected.buckets();
                measured.flow.add(&added);
                self.buckets += measured.flow.connected.buckets();
            }
            if self.buckets > self.limits.buckets_max {
                return Err(Unusable::Buckets);
            }
        }
        let next = answer.next_series;
        if next != 0 && next <= process.next_series {
            return Err(Unusable::Circle);
        }
        process.next_series = next;
        if next != 0 {
            let question = LatencyQuestion {
                incarnation: process.incarnation,
                since: process.since,
                services: self.services.clone(),
                first_series: next,
            };
            return Ok(Next::Ask(question));
        }
        // Series that changed while the parts were taken come again next time.
        process.since = process.as_of;
        seen.last = Some(now);
        seen.tells_flows = answer.tells_flows;
        seen.is_complete = !std::mem::take(&mut process.is_baseline);
        if seen.is_complete {
            self.missing.remove(gateway);
        } else {
            let detail = "is looked at for the first time: its figures begin here".to_owned();
            self.missing.insert(gateway.clone(), NoAnswer { reason: NoAnswerReason::First.into(), detail });
        }
        self.silent_workers = self.silent_workers.saturating_add(answer.silent_workers.min(SILENT_MAX));
        Ok(Next::Done)
    }

    fn forget(&mut self, gateway: &Gateway) {
        if let btree_map::Entry::Occupied(seen) = self.gateways.entry(gateway.clone()) {
            let seen = seen.remove();
            self.buckets -= seen.processes.iter().map(Process::buckets).sum::<usize>();
        }
    }
}

impl Process {
    fn new(incarnation: u64, is_baseline: bool) -> Self {
        Self {
            incarnation,
            since: 0,
            as_of: 0,
            next_series: 0,
            is_baseline,
            series: HashMap::new(),
            flows: HashMap::new(),
        }
    }

    fn buckets(&self) -> usize {
        let connected = self.flows.values().map(|flow| flow.connected.buckets()).sum::<usize>();
        self.series.values().map(Counts::buckets).sum::<usize>() + connected
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { series_max: crate::store::SERIES_MAX + OVERFLOWS, buckets_max: BUCKETS_MAX }
    }
}

/// Why an answer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It says nothing of which process it is of.
    #[error("answered without saying which of its processes counted")]
    NoIncarnation,
    /// One of its series.
    #[error("answered with {0}")]
    Unreadable(#[from] Refused),
    /// Counts do not go back.
    #[error("counts less than before")]
    WentBack,
    /// Its parts do not end.
    #[error("answered with parts that do not follow each other")]
    Circle,
    /// More series than are kept of one gateway.
    #[error("has more than {series_max} series: name the services to look at")]
    Series {
        /// So many.
        series_max: usize,
    },
    /// More than is kept of all gateways together.
    #[error("there is more than one look can hold: name the services to look at")]
    Buckets,
}

/// One that serves, one that takes over, and one that was in between.
const PROCESSES_MAX: usize = 3;
/// 64 MiB.
const BUCKETS_MAX: usize = 8 * 1024 * 1024;
/// One for each reporter and outcome.
const OVERFLOWS: usize = 12;
const SPAN_MIN: Duration = Duration::from_millis(1);
/// More workers than a gateway has.
const SILENT_MAX: u32 = 4_096;

#[cfg(test)]
mod tests;
