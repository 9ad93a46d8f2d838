//! `Events`: what every member remembers, as one list in order; and what goes on.
//!
//! The member that is asked asks the others. One that does not answer in time is named, and the rest is shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use archipelago_model::event::{self, HoldBack};
use archipelago_proto::v1::{
    Event, EventFilter, EventSource, EventSourceState, FollowedEvents, ListEventsRequest, ListEventsResponse,
    events_server::Events,
};
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Context, operator};
use crate::chronicle::source_of;
use crate::consensus::unix_ms;

pub(super) struct EventsService(pub(super) Arc<Context>);

pub(super) type Followed = ReceiverStream<Result<FollowedEvents, Status>>;

#[tonic::async_trait]
impl Events for EventsService {
    async fn list(&self, request: Request<ListEventsRequest>) -> Result<Response<ListEventsResponse>, Status> {
        operator(&request)?;
        let request = admit(request.into_inner());
        let consensus = &self.0.consensus;
        let others = consensus.peers.ids().into_iter().map(|id| {
            let request = request.clone();
            async move {
                let asked = async {
                    let mut client = consensus.peers.client(id).await?;
                    client.list_events(request).await
                };
                match timeout(MEMBER_TIMEOUT, asked).await {
                    Ok(Ok(answer)) => answer.into_inner(),
                    // A member of before events does not know the question.
                    Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
                        missing(id, EventSourceState::NotReported)
                    }
                    Ok(Err(_)) | Err(_) => missing(id, EventSourceState::Unreachable),
                }
            }
        });
        let mut answers = join_all(others).await;
        answers.push(self.0.own_events(&request));
        let sources = merge_sources(answers.iter().flat_map(|answer| answer.sources.iter().cloned()));
        let events = event::merge(answers.into_iter().map(|answer| answer.events), limit(&request));
        Ok(Response::new(ListEventsResponse { events: within(events), sources }))
    }

    type FollowStream = Followed;

    async fn follow(&self, request: Request<ListEventsRequest>) -> Result<Response<Followed>, Status> {
        operator(&request)?;
        let request = admit(request.into_inner());
        let (out, receiver) = mpsc::channel(BATCHES_MAX);
        let context = Arc::clone(&self.0);
        let busy = || Status::resource_exhausted("too many follow the events of this member; ask another one");
        if context.chronicle.followers.available_permits() == 0 {
            return Err(busy());
        }
        tokio::spawn(async move {
            let Ok(_slot) = context.chronicle.followers.try_acquire() else {
                drop(out.send(Err(busy())).await);
                return;
            };
            follow(&context, request, &out).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Context {
    /// What this member remembers.
    pub(super) fn own_events(&self, request: &ListEventsRequest) -> ListEventsResponse {
        let filter = request.filter.clone().unwrap_or_default();
        let (events, _) = self.chronicle.after(0, &filter, limit(request));
        ListEventsResponse { events, sources: self.event_sources() }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let gateways = self.sessions.who_says_events();
        self.chronicle.sources(gateways.iter().map(|(gateway, says)| (gateway.as_str(), *says)))
    }

    /// What this member remembers, and then what it hears, until `out` is closed or it stops.
    pub(super) async fn tail_events(self: Arc<Self>, request: ListEventsRequest, out: mpsc::Sender<FollowedEvents>) {
        let filter = request.filter.clone().unwrap_or_default();
        let mut changes = self.chronicle.subscribe();
        let mut version = 0;
        let mut told = None;
        loop {
            changes.mark_unchanged();
            let lost = if told.is_none() { 0 } else { self.chronicle.forgotten_after(version) };
            let (events, now) = self.chronicle.after(version, &filter, limit(&request));
            version = now;
            let sources = self.event_sources();
            let are_news = told.as_ref() != Some(&sources);
            if are_news || lost > 0 || !events.is_empty() {
                let said = if are_news { sources.clone() } else { Vec::new() };
                if out.send(FollowedEvents { events, sources: said, lost }).await.is_err() {
                    return;
                }
                told = Some(sources);
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = out.closed() => return,
                changed = changes.changed() => if changed.is_err() { return },
                // Who is connected changes without an event of its own.
                () = sleep(SOURCES_LOOK) => {}
            }
            sleep(GATHER).await;
        }
    }
}

/// Follows all members for one operator, or for all pages.
pub(crate) async fn follow(
    context: &Arc<Context>,
    request: ListEventsRequest,
    out: &mpsc::Sender<Result<FollowedEvents, Status>>,
) {
    let (heard, mut inbox) = mpsc::channel(BATCHES_MAX);
    // They end with this.
    let mut tails = JoinSet::new();
    tails.spawn(Arc::clone(context).tail_own(request.clone(), heard.clone()));
    for id in context.consensus.peers.ids() {
        tails.spawn(tail_member(Arc::clone(context), id, request.clone(), heard.clone()));
    }
    let began = Instant::now();
    let elapsed = || i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
    let mut held = HoldBack::new(HOLD_MS);
    let mut sources: BTreeMap<u64, Vec<EventSource>> = BTreeMap::new();
    let (mut lost, mut are_news) = (0_u64, false);
    loop {
        tokio::select! {
            () = context.stopping.cancelled() => return,
            () = out.closed() => return,
            said = inbox.recv() => {
                let Some((member, said)) = said else { return };
                let now = elapsed();
                said.events.into_iter().for_each(|event| held.take(event, now));
                lost = lost.saturating_add(said.lost);
                if !said.sources.is_empty() {
                    sources.insert(member, said.sources);
                    are_news = true;
                }
            }
            () = sleep(TICK), if !held.is_empty() || are_news => {}
        }
        let events = held.due(elapsed());
        // The first word of each member is waited for: sources alone say little.
        let settled = elapsed() >= HOLD_MS;
        if events.is_empty() && !(are_news && settled) {
            continue;
        }
        let said = if are_news { merge_sources(sources.values().flatten().cloned()) } else { Vec::new() };
        are_news = false;
        let mut said = FollowedEvents { events: Vec::new(), sources: said, lost: std::mem::take(&mut lost) };
        let mut chunks = events.chunks(CHUNK);
        said.events = chunks.next().unwrap_or_default().to_vec();
        let rest = chunks.map(|chunk| FollowedEvents { events: chunk.to_vec(), ..FollowedEvents::default() });
        for said in std::iter::once(said).chain(rest) {
            if out.send(Ok(said)).await.is_err() {
                return;
            }
        }
    }
}

type Heard = mpsc::Sender<(u64, FollowedEvents)>;

impl Context {
    async fn tail_own(self: Arc<Self>, request: ListEventsRequest, heard: Heard) {
        let member = self.consensus.node_id;
        let (out, mut said) = mpsc::channel(1);
        let pass = async {
            while let Some(said) = said.recv().await {
                if heard.send((member, said)).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(self.tail_events(request, out), pass);
    }
}

/// Follows another member, over breaks of the connection.
async fn tail_member(context: Arc<Context>, member: u64, mut request: ListEventsRequest, heard: Heard) {
    loop {
        let began = unix_ms();
        let state = match tail_once(&context, member, &request, &heard).await {
            Ok(()) => EventSourceState::Unreachable,
            Err(status) if status.code() == tonic::Code::Unimplemented => EventSourceState::NotReported,
            Err(_) => EventSourceState::Unreachable,
        };
        let gone = FollowedEvents { sources: missing(member, state).sources, ..FollowedEvents::default() };
        if heard.send((member, gone)).await.is_err() {
            return;
        }
        sleep(RETRY).await;
        // What it had said by then is known; a member that was restarted hears from its gateways what happened meanwhile.
        let filter = request.filter.get_or_insert_default();
        filter.since_unix_ms = filter.since_unix_ms.max(began - OVERLAP_MS);
    }
}

async fn tail_once(context: &Context, member: u64, request: &ListEventsRequest, heard: &Heard) -> Result<(), Status> {
    let mut client = context.consensus.peers.client(member).await?;
    let mut said = client.follow_events(request.clone()).await?.into_inner();
    while let Some(said) = said.message().await? {
        if heard.send((member, said)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// What stands for a member that does not answer.
fn missing(member: u64, state: EventSourceState) -> ListEventsResponse {
    let source = EventSource { source: source_of(member), state: state.into(), ..EventSource::default() };
    ListEventsResponse { events: Vec::new(), sources: vec![source] }
}

/// Each source once; who heard of it knows more than who did not, and of the log the longest memory counts.
fn merge_sources(all: impl Iterator<Item = EventSource>) -> Vec<EventSource> {
    let mut merged: BTreeMap<String, EventSource> = BTreeMap::new();
    for source in all {
        match merged.get_mut(&source.source) {
            None => drop(merged.insert(source.source.clone(), source)),
            Some(known) if source.state() == known.state() => {
                let since = [known.since_unix_ms, source.since_unix_ms].into_iter().filter(|since| *since > 0).min();
                known.since_unix_ms = since.unwrap_or(0);
                known.lost = known.lost.max(source.lost);
            }
            Some(known) if source.state() == EventSourceState::Heard => *known = source,
            Some(_) => {}
        }
    }
    merged.into_values().collect()
}

/// The newest that fit one message.
fn within(mut events: Vec<Event>) -> Vec<Event> {
    let mut bytes = 0;
    let fit = events.iter().rev().take_while(|event| {
        bytes += prost::Message::encoded_len(*event) + 8;
        bytes <= BYTES_MAX
    });
    let fit = fit.count();
    events.drain(..events.len() - fit);
    events
}

fn limit(request: &ListEventsRequest) -> usize {
    usize::try_from(request.limit).unwrap_or(EVENTS_MAX)
}

/// Puts the bounds into a request, so that all members see the same.
fn admit(mut request: ListEventsRequest) -> ListEventsRequest {
    let max = u32::try_from(EVENTS_MAX).unwrap_or(u32::MAX);
    request.limit = if request.limit == 0 { max } else { request.limit.min(max) };
    let EventFilter { kinds, .. } = request.filter.get_or_insert_default();
    kinds.truncate(event::KINDS.len());
    request
}

/// As many as one screen after the other; what is older is asked for by service, cluster or kind.
const EVENTS_MAX: usize = 4_096;
/// Below what clients of gRPC take by default (4 MiB).
const BYTES_MAX: usize = 3 << 20;
const MEMBER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an event waits for earlier ones of other members: a few round trips.
const HOLD_MS: i64 = 500;
const TICK: Duration = Duration::from_millis(100);
/// A burst of events is one message.
const GATHER: Duration = Duration::from_millis(50);
const SOURCES_LOOK: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
/// What was on its way when the connection broke.
const OVERLAP_MS: i64 = 30_000;
const BATCHES_MAX: usize = 16;
const CHUNK: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_is_named_once_by_who_knows_most() {
        let source = |source: &str, state: EventSourceState, since_unix_ms: i64, lost: u64| EventSource {
            source: source.into(),
            state: state.into(),
            since_unix_ms,
            lost,
        };
        use EventSourceState::{Heard, NotReported, Unreachable};
        let all = [
            source("log", Heard, 50, 0),
            source("log", Heard, 0, 0),
            source("log", Heard, 20, 0),
            source("paris/gw-1", NotReported, 0, 0),
            source("paris/gw-1", Heard, 30, 2),
            source("cp-3", Unreachable, 0, 0),
            source("paris/gw-1", Unreachable, 0, 0),
        ];
        let merged = merge_sources(all.into_iter());
        let expected =
            [source("cp-3", Unreachable, 0, 0), source("log", Heard, 20, 0), source("paris/gw-1", Heard, 30, 2)];
        assert_eq!(merged, expected);
    }

    #[test]
    fn a_request_is_bounded_and_an_answer_fits_its_message() {
        let asked = |limit: u32| admit(ListEventsRequest { limit, ..ListEventsRequest::default() }).limit;
        assert_eq!((asked(0), asked(7), asked(u32::MAX)), (4_096, 7, 4_096));
        let event = |id: u64| Event { id, message: "x".repeat(2_000), ..Event::default() };
        let events = within((1..=4_096).map(event).collect());
        assert!(events.len() < 4_096 && events.len() > 1_000);
        assert_eq!(events.last().map(|event| event.id), Some(4_096), "the newest stay");
    }
}
