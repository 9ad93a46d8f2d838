//! Where a state comes from: once per member for all pages, and only while somebody looks.
//!
//! What this member knows anyway (sessions, the replicated state, its chronicle) is read whenever it changes, twice a second at most. What
//! has to be asked for is asked at a pace of its own: other members every second, what gateways count every two, slow requests every ten.

mod events;
mod federation;
mod services;
mod slowest;
mod traffic;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use archipelago_page::{
    json,
    state::{About, Missing, SlowRequest, State},
};
use archipelago_proto::v1::MemberStatus;
use bytes::Bytes;
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

pub(super) use self::federation::{lagging, rejected};
use self::{events::Ring, traffic::Traffic};
use super::{Dashboard, View};
use crate::{api::Context, consensus::unix_ms};

/// What had to be asked for. A copy costs little: nobody waits while a state is made of it.
#[derive(Debug, Clone, Default)]
struct Gathered {
    members: Vec<MemberStatus>,
    /// Of operators and members: who, and until when.
    certificates: Arc<Vec<(String, i64)>>,
    traffic: Option<Arc<Traffic>>,
    events: Arc<Ring>,
    slowest: Option<Vec<SlowRequest>>,
    /// What is missing, by what it is missing from.
    missing: BTreeMap<About, Vec<Missing>>,
}

/// The same, shared by those who ask.
#[derive(Debug, Default)]
struct Desk {
    gathered: Mutex<Gathered>,
    changed: Notify,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what somebody was told.
    fn note(&self, note: impl FnOnce(&mut Gathered)) {
        note(&mut self.lock());
        self.changed.notify_one();
    }
}

/// Keeps what pages are shown up to date, until the member stops.
pub(crate) async fn gather(context: Arc<Context>, dashboard: Arc<Dashboard>) {
    loop {
        tokio::select! {
            () = context.stopping.cancelled() => return,
            () = dashboard.looked.notified() => {}
        }
        if dashboard.views.receiver_count() > 0 {
            tokio::select! {
                () = context.stopping.cancelled() => return,
                () = look(&context, &dashboard) => {}
            }
            // Whoever comes next must not be shown what was so long ago.
            dashboard.views.send_replace(None);
        }
    }
}

/// As long as somebody looks, and a little longer: a page that is loaded again finds everything as it was.
async fn look(context: &Arc<Context>, dashboard: &Dashboard) {
    let desk = Arc::new(Desk::default());
    let mut asking = JoinSet::new();
    asking.spawn(federation::ask_members(Arc::clone(context), Arc::clone(&desk)));
    asking.spawn(traffic::ask(Arc::clone(context), Arc::clone(&desk)));
    asking.spawn(slowest::ask(Arc::clone(context), Arc::clone(&desk)));
    asking.spawn(events::follow(Arc::clone(context), Arc::clone(&desk)));
    let mut sessions = context.sessions.subscribe();
    let mut versions = context.consensus.published.subscribe();
    let (mut id, mut last_seen, mut pause) = (0_u64, Instant::now(), PAUSE_MIN);
    loop {
        sessions.mark_unchanged();
        versions.mark_unchanged();
        let begun = Instant::now();
        if let Some(state) = build(context, &desk).await {
            id += 1;
            let (event, bytes) = event_of(id, &state).await;
            if bytes > STATE_BYTES_MAX {
                tracing::warn!(bytes, "the state is too large for a page");
            }
            pause = pause_of(bytes);
            dashboard.views.send_replace(Some(Arc::new(View { event })));
        }
        if dashboard.views.receiver_count() > 0 {
            last_seen = Instant::now();
        } else if last_seen.elapsed() >= LINGER {
            return;
        }
        // However often something changes, this is how often it is told.
        sleep_until(begun + pause).await;
        let change = async {
            tokio::select! {
                _ = sessions.changed() => {}
                _ = versions.changed() => {}
                () = desk.changed.notified() => {}
            }
        };
        let _ = timeout(TOLD_AT_LEAST.saturating_sub(pause), change).await;
    }
}

/// A large state is told less often, so that its bytes stay what a network of people carries.
fn pause_of(bytes: usize) -> Duration {
    let shares = u32::try_from(bytes / BYTES_PER_PAUSE).unwrap_or(u32::MAX).saturating_add(1);
    PAUSE_MIN.saturating_mul(shares).min(TOLD_AT_LEAST)
}

async fn event_of(id: u64, state: &Arc<State>) -> (Bytes, usize) {
    let state = Arc::clone(state);
    // A hundred clusters are some hundred kilobytes of text: work, and none for a thread that serves streams.
    let event =
        tokio::task::spawn_blocking(move || format!("id: {id}\nevent: state\ndata: {}\n\n", json::text(&*state))).await;
    let event = Bytes::from(event.unwrap_or_default());
    let bytes = event.len();
    (event, bytes)
}

/// The state as of now; `None`: it could not be made.
async fn build(context: &Arc<Context>, desk: &Arc<Desk>) -> Option<Arc<State>> {
    let (context, desk) = (Arc::clone(context), Arc::clone(desk));
    tokio::task::spawn_blocking(move || Arc::new(state(&context, &desk))).await.ok()
}

fn state(context: &Context, desk: &Desk) -> State {
    let gathered = desk.lock().clone();
    let mut seen = federation::Seen::now(context);
    let traffic = gathered.traffic.as_deref();
    let (services, services_left_off) = services::services(context, traffic, &gathered.events);
    let missing = std::mem::take(&mut seen.missing);
    State {
        taken_unix_ms: unix_ms(),
        federation: context.trust_domain.to_string(),
        member: context.consensus.node_id,
        revision: seen.version.revision,
        members: federation::members(&gathered.members),
        links: seen.links(traffic),
        rollout: federation::rollout(context),
        certificates: seen.certificates(&gathered.certificates),
        clusters: seen.clusters(traffic),
        services,
        services_left_off,
        events: gathered.events.newest(),
        slowest: gathered.slowest,
        window_seconds: traffic.map(|traffic| traffic.window_seconds),
        missing: gathered.missing.values().flatten().cloned().chain(missing).take(MISSING_MAX).collect(),
    }
}

/// People see no more.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// A page that hears nothing for longer says that it is stale.
const TOLD_AT_LEAST: Duration = Duration::from_secs(2);
/// Half a megabyte a second.
const BYTES_PER_PAUSE: usize = 256 * 1024;
/// Two hundred clusters; more than that is a matter for other tools.
const STATE_BYTES_MAX: usize = 8 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(15);
/// Beyond this it is the federation that is missing.
const MISSING_MAX: usize = 200;
