//! Whole nodes on real disks, joined by a network of function calls.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;

use super::*;
use crate::{
    config::Timing,
    core::Role,
    error::{Fatal, Stopped},
    machine::{CannotApply, Encode},
};

/// Counts and remembers every command.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ledger(Vec<u8>, Version);

/// What its binary knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Version {
    #[default]
    New,
    /// From before the command [`LATER`].
    Old,
    /// Gets one command wrong.
    Faulty,
}

impl StateMachine for Ledger {
    fn apply(&mut self, _log_index: u64, command: &[u8]) -> Result<Vec<u8>, CannotApply> {
        assert_ne!(command, b"panic");
        if command == LATER && self.1 == Version::Old {
            return Err(CannotApply { reason: "command 200 is unknown".into() });
        }
        if command == WRONGED && self.1 == Version::Faulty {
            self.0.push(0);
        }
        self.0.extend(command);
        Ok(self.0.len().to_be_bytes().to_vec())
    }

    fn snapshot(&self) -> Encode {
        let bytes = self.0.clone();
        Box::new(move || bytes)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.0 = snapshot.to_vec();
        Ok(())
    }
}

type Handle = RaftHandle<Ledger>;

/// Who is plugged in.
type Hub = Arc<Mutex<HashMap<u64, Handle>>>;

/// Delivers at once.
struct Port(u64, Hub);

impl Transport for Port {
    fn send(&mut self, messages: Vec<Message>) {
        let handles = self.1.lock().unwrap();
        for message in messages {
            let snapshot = message.get_msg_type() == raft_proto::eraftpb::MessageType::MsgSnapshot;
            let (from, to) = (message.from, message.to);
            let delivered = handles.get(&to).map(|handle| handle.step(message)).is_some();
            if let Some(sender) = handles.get(&from).filter(|_| snapshot) {
                sender.report_snapshot(to, delivered);
            }
        }
    }

    fn send_digests(&mut self, digests: Vec<StateDigest>) {
        for (to, handle) in self.1.lock().unwrap().iter().filter(|(to, _)| **to != self.0) {
            assert_ne!(*to, self.0);
            handle.peer_digests(self.0, digests.clone());
        }
    }
}

struct Cluster {
    hub: Hub,
    dirs: BTreeMap<u64, TempDir>,
    members: Vec<u64>,
}

impl Cluster {
    fn new(members: &[u64]) -> Self {
        let dirs = members.iter().map(|id| (*id, tempfile::tempdir().unwrap())).collect();
        let cluster = Self { hub: Hub::default(), dirs, members: members.to_vec() };
        members.iter().for_each(|id| drop(cluster.start(*id)));
        cluster
    }

    fn start(&self, id: u64) -> Handle {
        self.start_as(id, Version::New)
    }

    fn start_as(&self, id: u64, version: Version) -> Handle {
        let machine = Ledger(Vec::new(), version);
        let handle = Raft::start(config(id, &self.members, self.dirs[&id].path()), machine, Port(id, self.hub.clone()));
        let handle = handle.unwrap();
        self.hub.lock().unwrap().insert(id, handle.clone());
        handle
    }

    fn handle(&self, id: u64) -> Handle {
        self.hub.lock().unwrap()[&id].clone()
    }

    /// Drops the node without a word, and waits until its files are closed.
    async fn kill(&self, id: u64) {
        let handle = self.hub.lock().unwrap().remove(&id).unwrap();
        let stopped = handle.stopped();
        drop(handle);
        within(stopped).await;
    }

    async fn leader(&self) -> Handle {
        within(async {
            loop {
                let handles: Vec<Handle> = self.hub.lock().unwrap().values().cloned().collect();
                for leader in handles.into_iter().filter(|handle| handle.status().role == Role::Leader) {
                    // A deposed leader may not know it yet; a read proves the office.
                    if leader.read_index().await.is_ok() {
                        return leader;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

fn config(id: u64, members: &[u64], dir: &Path) -> Config {
    let mut config = Config::new(id, members.to_vec(), "test", dir);
    config.timing = Timing::LAN;
    config.limits.checkpoint_entries = 20;
    config.limits.log_tail_entries = 10;
    config
}

/// The command that a faulty member gets wrong.
const WRONGED: &[u8] = &[77];
/// The command that only the new version knows.
const LATER: &[u8] = &[200];

/// A hang is a failure, not a wait: far above what a loaded machine needs.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("nothing happened for 30 s")
}

#[tokio::test]
async fn three_nodes_agree_and_survive_the_loss_of_their_leader() {
    let cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader().await;
    let mut last = 0;
    for number in 0..50u8 {
        let proposed = within(leader.propose(vec![number])).await.unwrap();
        assert!(proposed.log_index > last);
        assert_eq!(proposed.outcome, (usize::from(number) + 1).to_be_bytes());
        last = proposed.log_index;
    }
    assert!(within(leader.read_index()).await.unwrap() >= last);
    let expected: Vec<u8> = (0..50).collect();
    for id in 1..=3 {
        let handle = cluster.handle(id);
        within(handle.wait_applied(last)).await.unwrap();
        assert_eq!(handle.with_state(|ledger| ledger.0.clone()), expected);
    }

    let lost = leader.status().node_id;
    drop(leader);
    cluster.kill(lost).await;
    let next = cluster.leader().await;
    assert_ne!(next.status().node_id, lost);
    // More than the log's tail, so that the returning node needs a snapshot.
    for number in 50..100u8 {
        within(next.propose(vec![number])).await.unwrap();
    }
    let back = cluster.start(lost);
    within(back.wait_applied(next.status().applied_index)).await.unwrap();
    assert_eq!(back.with_state(|ledger| ledger.0.clone()), (0..100).collect::<Vec<u8>>());
    let follower = (1..=3).map(|id| cluster.handle(id)).find(|handle| handle.status().role != Role::Leader).unwrap();
    assert!(matches!(within(follower.propose(vec![1])).await, Err(ProposeError::NotLeader { .. })));
}

#[tokio::test]
async fn a_single_node_keeps_everything_through_kills_and_shutdowns() {
    let cluster = Cluster::new(&[1]);
    let mut expected = Vec::new();
    for round in 0..4u8 {
        let leader = cluster.leader().await;
        for number in 0..15 {
            expected.push(round * 15 + number);
            within(leader.propose(vec![round * 15 + number])).await.unwrap();
        }
        if round % 2 == 0 {
            drop(leader);
            cluster.kill(1).await;
        } else {
            cluster.hub.lock().unwrap().remove(&1);
            within(leader.shutdown()).await;
            assert_eq!(within(leader.propose(vec![0])).await, Err(ProposeError::Stopped));
            assert_eq!(within(leader.wait_applied(u64::MAX)).await, Err(NodeStopped));
        }
        let handle = cluster.start(1);
        within(cluster.leader()).await;
        assert_eq!(handle.with_state(|ledger| ledger.0.clone()), expected);
    }
}

#[tokio::test]
async fn shutting_the_leader_down_hands_its_office_over_first() {
    let cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader().await;
    within(leader.propose(vec![1])).await.unwrap();
    let stopped = leader.stopped();
    within(leader.shutdown()).await;
    assert!(matches!(within(stopped).await, Stopped::Shutdown));
    assert_ne!(leader.status().role, Role::Leader, "it had stepped down before it stopped");
    cluster.hub.lock().unwrap().remove(&leader.status().node_id);
    within(cluster.leader().await.propose(vec![2])).await.unwrap();
}

#[tokio::test]
async fn a_state_machine_that_panics_stops_the_node_and_says_so() {
    let cluster = Cluster::new(&[1]);
    let leader = cluster.leader().await;
    assert_eq!(within(leader.propose(b"panic".to_vec())).await, Err(ProposeError::Stopped));
    assert!(matches!(within(leader.stopped()).await, Stopped::Failed(Fatal::Internal(_))));
    assert_eq!(leader.read_index().await, Err(ReadError::Stopped));
    assert_eq!((leader.status().role, leader.status().leader), (Role::Follower, None), "it leads nobody any more");
}

#[tokio::test]
async fn an_old_member_stops_before_what_it_does_not_know_and_continues_once_upgraded() {
    let cluster = Cluster::new(&[1, 2, 3]);
    cluster.kill(3).await;
    let old = cluster.start_as(3, Version::Old);
    let leader = within(async {
        loop {
            let leader = cluster.leader().await;
            if leader.status().node_id != 3 {
                return leader;
            }
            leader.transfer_leadership(Some(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let known = within(leader.propose(vec![1])).await.unwrap().log_index;
    within(old.wait_applied(known)).await.unwrap();
    let unknown = within(leader.propose(LATER.to_vec())).await.unwrap().log_index;
    within(leader.propose(vec![2])).await.unwrap();
    for again in [false, true] {
        let old = if again { cluster.start_as(3, Version::Old) } else { old.clone() };
        let Stopped::Failed(fatal) = within(old.stopped()).await else { panic!("it was not asked to stop") };
        assert!(matches!(fatal, Fatal::CannotApply { log_index, .. } if log_index == unknown), "{fatal}");
        let words = fatal.to_string();
        assert!(words.contains("command 200 is unknown") && words.contains("upgrade this member"), "{words}");
        assert!(*old.subscribe().borrow() < unknown);
        assert_eq!(old.with_state(|ledger| ledger.0.clone()), [1], "everything before it, nothing of it or after it");
        cluster.hub.lock().unwrap().remove(&3);
    }
    drop(old);
    let upgraded = cluster.start_as(3, Version::New);
    within(upgraded.wait_applied(leader.status().applied_index)).await.unwrap();
    assert_eq!(upgraded.with_state(|ledger| ledger.0.clone()), [1, LATER[0], 2]);
}

#[tokio::test]
async fn a_member_whose_state_differs_from_the_majority_stops_and_does_not_come_back() {
    let cluster = Cluster::new(&[1, 2, 3]);
    cluster.kill(3).await;
    let faulty = cluster.start_as(3, Version::Faulty);
    let leader = cluster.leader().await;
    within(leader.propose(WRONGED.to_vec())).await.unwrap();
    let stopped = faulty.stopped();
    // As far as the next checkpoint, and no farther: beyond the log's tail it would get a snapshot, and be right again.
    while within(leader.propose(vec![1])).await.unwrap().log_index < 20 {}
    let Stopped::Failed(fatal) = within(stopped).await else { panic!("it was not asked to stop") };
    let Fatal::StateDiverged { node_id: 3, divergence, .. } = &fatal else { panic!("{fatal}") };
    assert_eq!((&*divergence.majority, &*divergence.minority), ([1, 2].as_slice(), [3].as_slice()));
    let words = fatal.to_string();
    assert!(words.contains(&format!("after log index {}", divergence.log_index)), "{words}");
    for id in [1, 2] {
        let mut status = cluster.handle(id).subscribe_status();
        within(
            status.wait_for(|status| status.divergence.as_ref().is_some_and(|divergence| divergence.minority == [3])),
        )
        .await
        .unwrap();
    }
    cluster.hub.lock().unwrap().remove(&3);
    drop(faulty);
    // Its checkpoint remembers, whatever version reads it.
    let back = cluster.start_as(3, Version::New);
    assert!(matches!(within(back.stopped()).await, Stopped::Failed(Fatal::StateDiverged { .. })));
    while within(cluster.leader().await.propose(vec![1])).await.is_err() {}
}

#[tokio::test]
async fn oversized_commands_and_foreign_directories_are_refused() {
    let cluster = Cluster::new(&[1]);
    let leader = cluster.leader().await;
    let command = vec![0; 9 << 20];
    assert!(matches!(leader.propose(command).await, Err(ProposeError::TooLarge { .. })));
    drop(leader);
    cluster.kill(1).await;
    let mut config = config(1, &[1], cluster.dirs[&1].path());
    config.federation_id = "another".into();
    let error = Raft::start(config, Ledger::default(), Port(1, cluster.hub.clone())).unwrap_err().to_string();
    assert!(error.contains("IDENT") && error.contains("another"), "{error}");
}

#[tokio::test]
async fn a_fourth_node_joins_a_running_group() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader().await;
    within(leader.propose(vec![7])).await.unwrap();
    cluster.dirs.insert(4, tempfile::tempdir().unwrap());
    cluster.members = Vec::new();
    let joined = cluster.start(4);
    let conf_state = within(leader.change_membership(MembershipChange::AddLearner(4))).await.unwrap();
    assert_eq!(conf_state.learners, [4]);
    within(joined.wait_applied(leader.status().applied_index)).await.unwrap();
    assert_eq!(joined.with_state(|ledger| ledger.0.clone()), [7]);
    within(async {
        while let Err(error) = leader.change_membership(MembershipChange::Promote(4)).await {
            assert!(matches!(error, MembershipError::NotCaughtUp { .. } | MembershipError::Busy), "{error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(leader.status().voters.len(), 4);
}
