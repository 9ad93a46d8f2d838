//! What only somebody sees who looks at all of it: clusters without any connection, members that are silent, changes of the leader.
//!
//! Every member looks, and the leader says: so each fact is said once, also when it is the leader that is gone. [`Watcher`] is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use archipelago_model::event::{Draft, Reason};
use archipelago_raft::Role;

use super::source_of;
use crate::api::Context;
use crate::consensus::unix_ms;

/// What can be there or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// A cluster: anything of it is connected to any member.
    Cluster(String),
    /// Another member.
    Member(u64),
}

/// What was said last of each, and what is otherwise since when.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    said: BTreeMap<Subject, bool>,
    otherwise: BTreeMap<Subject, i64>,
}

impl Watcher {
    /// Takes what is there now; what is to be said, if this member `leads`.
    pub(super) fn look(&mut self, now_there: BTreeMap<Subject, bool>, leads: bool, now_ms: i64) -> Vec<Draft> {
        self.said.retain(|subject, _| now_there.contains_key(subject));
        self.otherwise.retain(|subject, _| now_there.contains_key(subject));
        let mut drafts = Vec::new();
        for (subject, is_there) in now_there {
            match self.said.get(&subject) {
                // What has never been there is not missed.
                None => {
                    if is_there {
                        self.said.insert(subject, true);
                    }
                }
                Some(said) if *said == is_there => drop(self.otherwise.remove(&subject)),
                Some(_) => {
                    let since = *self.otherwise.entry(subject.clone()).or_insert(now_ms);
                    let waited = now_ms.saturating_sub(since);
                    // The leader of then may be gone itself, so the others keep it in mind until there is one that says it.
                    if (leads && waited >= SETTLE_MS) || waited >= LEADER_MS {
                        self.otherwise.remove(&subject);
                        if leads {
                            drafts.push(draft(&subject, is_there));
                        }
                        self.said.insert(subject, is_there);
                    }
                }
            }
        }
        drafts
    }
}

fn draft(subject: &Subject, is_there: bool) -> Draft {
    match (subject, is_there) {
        (Subject::Cluster(cluster), true) => Draft {
            cluster: cluster.clone(),
            ..Draft::new(Reason::ClusterConnected, format!("{cluster} is connected to the control plane again"))
        },
        (Subject::Cluster(cluster), false) => Draft {
            cluster: cluster.clone(),
            ..Draft::new(
                Reason::ClusterDisconnected,
                format!("neither a gateway nor the agent of {cluster} is connected to the control plane"),
            )
        },
        (Subject::Member(id), true) => Draft {
            subject: source_of(*id),
            ..Draft::new(Reason::MemberReachable, format!("{} is heard again", source_of(*id)))
        },
        (Subject::Member(id), false) => Draft {
            subject: source_of(*id),
            ..Draft::new(Reason::MemberUnreachable, format!("{} is not heard any more", source_of(*id)))
        },
    }
}

/// Looks until this member stops.
pub(crate) async fn watch(context: Arc<Context>) {
    let raft = &context.consensus.raft;
    let own = context.consensus.node_id;
    let mut status = raft.subscribe_status();
    let mut watcher = Watcher::default();
    let (mut led_term, mut leader_seen, mut missing_said) = (0, unix_ms(), false);
    loop {
        let now = unix_ms();
        let (role, term, leader) = {
            let status = status.borrow_and_update();
            (status.role, status.term, status.leader)
        };
        let leads = role == Role::Leader;
        if leads && led_term != term {
            led_term = term;
            let message = format!("{} leads the control plane, term {term}", source_of(own));
            context.chronicle.note(Draft { subject: source_of(own), ..Draft::new(Reason::LeaderElected, message) });
        }
        if leader.is_some() {
            (leader_seen, missing_said) = (now, false);
        } else if now - leader_seen >= LEADERLESS_MS && !std::mem::replace(&mut missing_said, true) {
            let message = format!("{} knows no leader: it takes no writes, and traffic goes on", source_of(own));
            context.chronicle.note(Draft { subject: source_of(own), ..Draft::new(Reason::LeaderMissing, message) });
        }
        for draft in watcher.look(there(&context), leads, now) {
            context.chronicle.note(draft);
        }
        context.chronicle.flush();
        tokio::select! {
            () = context.stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
                // It changes with every entry.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Who is there.
fn there(context: &Context) -> BTreeMap<Subject, bool> {
    let (clusters, members) = context.sessions.heard();
    let mut there: BTreeMap<Subject, bool> = context
        .consensus
        .read(|state| {
            let mut known: BTreeSet<String> = state.reports().keys().cloned().collect();
            let mut from = String::new();
            // From cluster to cluster, not from gateway to gateway: applying waits meanwhile.
            while let Some(((cluster, _), _)) = state.gateways().range((from, String::new())..).next() {
                from = format!("{cluster}\0");
                known.insert(cluster.clone());
            }
            known
        })
        .into_iter()
        .map(|cluster| (clusters.contains(&cluster), cluster))
        .map(|(is_there, cluster)| (Subject::Cluster(cluster), is_there))
        .collect();
    there.extend(context.consensus.peers.ids().into_iter().map(|id| (Subject::Member(id), members.contains(&id))));
    there
}

/// Sessions move between members within a second when one of them stops.
const SETTLE_MS: i64 = 2_000;
/// Many elections: by then there was a leader who said it.
const LEADER_MS: i64 = 15_000;
/// As long as peers wait until they are told of it.
const LEADERLESS_MS: i64 = 2_000;
const LOOK: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn there(cluster: bool, member: bool) -> BTreeMap<Subject, bool> {
        BTreeMap::from([(Subject::Cluster("tokyo".into()), cluster), (Subject::Member(3), member)])
    }

    fn reasons(drafts: &[Draft]) -> Vec<Reason> {
        drafts.iter().map(|draft| draft.reason).collect()
    }

    #[test]
    fn the_leader_says_it_once_and_after_a_moment() {
        let mut watcher = Watcher::default();
        assert_eq!(watcher.look(there(false, false), true, 0), [], "what was never there is not missed");
        assert_eq!(watcher.look(there(true, true), true, 10), []);
        assert_eq!(watcher.look(there(false, true), true, 100), []);
        assert_eq!(watcher.look(there(true, true), true, 1_000), [], "a session that moved");
        assert_eq!(watcher.look(there(false, false), true, 2_000), []);
        assert_eq!(
            reasons(&watcher.look(there(false, false), true, 4_000)),
            [Reason::ClusterDisconnected, Reason::MemberUnreachable]
        );
        assert_eq!(watcher.look(there(false, false), true, 60_000), []);
        assert_eq!(watcher.look(there(true, true), true, 61_000), []);
        assert_eq!(
            reasons(&watcher.look(there(true, true), true, 63_000)),
            [Reason::ClusterConnected, Reason::MemberReachable]
        );
        assert_eq!(watcher.look(BTreeMap::new(), true, 70_000), [], "a deleted cluster is not missed");
    }

    #[test]
    fn who_begins_to_lead_says_what_the_one_before_took_with_it() {
        let mut watcher = Watcher::default();
        watcher.look(there(true, true), false, 0);
        assert_eq!(watcher.look(there(true, false), false, 1_000), []);
        assert_eq!(watcher.look(there(true, false), false, 4_000), [], "another leads, or nobody does yet");
        assert_eq!(reasons(&watcher.look(there(true, false), true, 5_000)), [Reason::MemberUnreachable]);
        // Long after, the leader of then has said it.
        let mut watcher = Watcher::default();
        watcher.look(there(true, true), false, 0);
        for now in [1_000, 16_000] {
            assert_eq!(watcher.look(there(true, false), false, now), []);
        }
        assert_eq!(watcher.look(there(true, false), true, 17_000), []);
    }
}
