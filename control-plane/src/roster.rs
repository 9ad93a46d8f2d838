//! The members of the control plane as this one knows them, and everybody who has to follow when that changes.
//!
//! Founders stand in `federation.json`; from the first change on, the replicated state says who belongs. An operator may give other
//! addresses at the start (`--member`): those are named by the place of a member, which stays when another one takes it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    bootstrap::Member,
    consensus::Consensus,
    machine::{State, command::ControlPlaneMember},
};

/// Who belongs to the control plane.
#[derive(Debug)]
pub(crate) struct Roster {
    own: u64,
    founders: Vec<Member>,
    /// Addresses that the operator gave, by place.
    overrides: BTreeMap<u64, Member>,
    current: watch::Sender<Arc<Vec<Member>>>,
}

impl Roster {
    /// As files and flags say it, until the state does.
    pub(crate) fn new(own: u64, founders: Vec<Member>, overrides: &[Member]) -> Arc<Self> {
        let overrides: BTreeMap<u64, Member> =
            overrides.iter().map(|member| (member.place(), member.clone())).collect();
        let current = founders.iter().cloned().map(|member| reached(member, &overrides)).collect();
        Arc::new(Self { own, founders, overrides, current: watch::Sender::new(Arc::new(current)) })
    }

    /// All members, by id.
    pub(crate) fn members(&self) -> Arc<Vec<Member>> {
        Arc::clone(&self.current.borrow())
    }

    /// All but this one.
    pub(crate) fn others(&self) -> Vec<Member> {
        self.members().iter().filter(|member| member.id != self.own).cloned().collect()
    }

    /// Client addresses of all members, as joiners are told.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.members().iter().map(|member| member.client.clone()).collect()
    }

    /// A member.
    pub(crate) fn member(&self, id: u64) -> Option<Member> {
        self.members().iter().find(|member| member.id == id).cloned()
    }

    /// Changes of it.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Vec<Member>>> {
        self.current.subscribe()
    }

    /// The members as `state` has them, with the addresses that everybody else is told.
    pub(crate) fn agreed(&self, state: &State) -> Vec<Member> {
        if state.last_member() == 0 {
            return self.founders.clone();
        }
        state.members().values().map(|member| of_state(member)).collect()
    }

    /// The same for the log.
    pub(crate) fn founders(&self) -> Vec<ControlPlaneMember> {
        let entry = |member: &Member| ControlPlaneMember {
            id: member.id,
            client: member.client.clone(),
            peer: member.peer.clone(),
            place: member.place(),
        };
        self.founders.iter().map(entry).collect()
    }

    /// Takes what `state` says.
    pub(crate) fn update(&self, state: &State) {
        let members: Vec<Member> =
            self.agreed(state).into_iter().map(|member| reached(member, &self.overrides)).collect();
        self.current.send_if_modified(|current| {
            let changed = **current != members;
            if changed {
                let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
                tracing::info!(members = ?ids, "the members of the control plane");
                *current = Arc::new(members);
            }
            changed
        });
    }

    /// Follows the state until cancelled.
    pub(crate) async fn follow(self: Arc<Self>, consensus: Arc<Consensus>, stopping: CancellationToken) {
        let mut versions = consensus.published.subscribe();
        loop {
            versions.mark_unchanged();
            let state = consensus.state();
            self.update(&state);
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = versions.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// What runs for each other member, from when it is known until it is not, or is reached elsewhere.
pub(crate) struct PerPeer<T> {
    running: Mutex<BTreeMap<u64, (Member, CancellationToken, T)>>,
    until: CancellationToken,
}

impl<T> PerPeer<T> {
    /// Nothing yet; whatever will run ends with `until` at the latest.
    pub(crate) fn new(until: CancellationToken) -> Self {
        Self { running: Mutex::default(), until }
    }

    /// Ends what runs for those who are not among `members` any more, and starts what is missing.
    pub(crate) fn set(&self, members: &[Member], mut start: impl FnMut(&Member, CancellationToken) -> T) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, (known, ended, _)| {
            let stays = members.contains(known);
            if !stays {
                ended.cancel();
            }
            stays
        });
        for member in members {
            running.entry(member.id).or_insert_with(|| {
                let ended = self.until.child_token();
                (member.clone(), ended.clone(), start(member, ended))
            });
        }
    }

    /// What runs for one.
    pub(crate) fn with<R>(&self, id: u64, look: impl FnOnce(&T) -> R) -> Option<R> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&id).map(|(_, _, value)| look(value))
    }

    /// What runs for each.
    pub(crate) fn each(&self, mut look: impl FnMut(&T)) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().for_each(|(_, _, value)| look(value));
    }
}

/// Keeps `act` up with the other members until cancelled.
pub(crate) async fn keep_up(
    roster: Arc<Roster>,
    stopping: CancellationToken,
    act: impl Fn(&[Member]) + Send + Sync + 'static,
) {
    let mut changes = roster.subscribe();
    loop {
        changes.mark_unchanged();
        act(&roster.others());
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// A member as the state keeps it.
fn of_state(member: &ControlPlaneMember) -> Member {
    let ControlPlaneMember { id, client, peer, place } = member.clone();
    Member { id, client, peer, place: (place != id).then_some(place) }
}

fn reached(member: Member, overrides: &BTreeMap<u64, Member>) -> Member {
    match overrides.get(&member.place()) {
        Some(Member { client, peer, .. }) => Member { client: client.clone(), peer: peer.clone(), ..member },
        None => member,
    }
}
