//! What the core adds to the raft crate, one property a test.

use bytes::Bytes;
use raft_proto::eraftpb::{ConfState, Message, MessageType};

use super::{Event, MembershipChange, Reply, RequestId, Role};
use crate::{
    error::{Fatal, MembershipError, ProposeError, ReadError},
    sim::Lab,
};

fn result_of(lab: &Lab, request: u64) -> Option<&Reply> {
    lab.replies.iter().find(|(_, id, _)| *id == RequestId(request)).map(|(_, _, reply)| reply)
}

#[test]
fn followers_name_the_leader_instead_of_forwarding() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let leader = lab.elect(&[1, 2, 3]);
    let follower = if leader == 1 { 2 } else { 1 };
    lab.propose(follower, 1);
    lab.on(follower, Event::ReadIndex { request: RequestId(2) });
    let hint = Some(leader);
    assert!(
        matches!(result_of(&lab, 1), Some(Reply::Proposed(Err(ProposeError::NotLeader { hint: h }))) if *h == hint)
    );
    assert!(matches!(result_of(&lab, 2), Some(Reply::Read(Err(ReadError::NotLeader { hint: h }))) if *h == hint));
    assert!(lab.wire.is_empty());
}

#[test]
fn nothing_that_promises_durability_leaves_before_the_disk() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let leader = lab.elect(&[1, 2, 3]);
    lab.slow_disk = true;
    lab.propose(leader, 1);
    let appends = lab.take(MessageType::MsgAppend);
    assert_eq!(appends.len(), 2, "a leader sends while its own disk writes");
    for append in appends {
        lab.on(append.to, Event::Message(append));
    }
    assert!(lab.wire.is_empty(), "{:?}", lab.wire);
    assert_eq!(lab.writes.len(), 3);
    lab.sync();
    assert_eq!(lab.take(MessageType::MsgAppendResponse).len(), 2);
}

#[test]
fn a_sole_voter_keeps_silent_until_its_term_is_durable() {
    let mut lab = Lab::new(&[1], &[2]);
    lab.slow_disk = true;
    for _ in 0..80 {
        lab.on(1, Event::Tick);
    }
    assert_eq!(lab.status(1).role, Role::Leader);
    assert!(lab.wire.is_empty(), "a crash now would forget the term it speaks in: {:?}", lab.wire);
    while !lab.writes.is_empty() {
        lab.sync();
    }
    assert!(!lab.wire.is_empty());
}

#[test]
fn reads_wait_until_the_leader_has_committed_in_its_term() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    while !(1..=3).any(|id| lab.status(id).role == Role::Leader) {
        for id in 1..=3 {
            lab.on(id, Event::Tick);
        }
        for message in std::mem::take(&mut lab.wire) {
            lab.on(message.to, Event::Message(message));
        }
    }
    let leader = (1..=3).find(|id| lab.status(*id).role == Role::Leader).unwrap();
    lab.on(leader, Event::ReadIndex { request: RequestId(1) });
    assert!(result_of(&lab, 1).is_none(), "its first entry is not committed yet");
    lab.deliver_among(&[1, 2, 3]);
    lab.tick(&[1, 2, 3], 10);
    assert!(matches!(result_of(&lab, 1), Some(Reply::Read(Ok(log_index))) if *log_index == lab.status(leader).commit));
}

#[test]
fn a_deposed_leader_reports_its_proposals_as_lost_and_its_reads_as_misdirected() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let leader = lab.elect(&[1, 2, 3]);
    lab.propose(leader, 1);
    lab.on(leader, Event::ReadIndex { request: RequestId(2) });
    lab.wire.clear();
    // Nobody answers: check_quorum makes it step down.
    lab.tick(&[leader], 70);
    assert_ne!(lab.status(leader).role, Role::Leader);
    assert!(matches!(result_of(&lab, 1), Some(Reply::Proposed(Err(ProposeError::Lost)))));
    assert!(matches!(result_of(&lab, 2), Some(Reply::Read(Err(ReadError::NotLeader { .. } | ReadError::Timeout)))));
}

#[test]
fn a_leader_that_counts_on_lost_entries_stops_the_node() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let heartbeat = Message {
        msg_type: MessageType::MsgHeartbeat.into(),
        to: 1,
        from: 2,
        term: 5,
        commit: 9,
        ..Message::default()
    };
    let fatal = lab.try_on(1, Event::Message(heartbeat)).unwrap_err();
    assert!(matches!(fatal, Fatal::LogLost { node_id: 1, acknowledged: 9, last_index: 1 }), "{fatal}");
}

#[test]
fn a_new_node_joins_by_snapshot_catches_up_and_votes() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let leader = lab.elect(&[1, 2, 3]);
    lab.propose(leader, 1);
    lab.deliver_among(&[1, 2, 3]);
    lab.add_empty(4);
    let all = [1, 2, 3, 4];
    lab.on(leader, Event::Change { request: RequestId(2), change: MembershipChange::AddLearner(4) });
    lab.tick(&all, 20);
    assert!(matches!(result_of(&lab, 2), Some(Reply::Changed(Ok(conf))) if conf.learners == [4]));
    assert_eq!(lab.status(4).role, Role::Learner);
    assert_eq!(lab.status(4).applied_index, lab.status(leader).applied_index);

    lab.on(leader, Event::SnapshotSent { peer: 4, delivered: true });
    lab.tick(&all, 20);
    lab.on(leader, Event::Change { request: RequestId(3), change: MembershipChange::Promote(4) });
    lab.tick(&all, 20);
    assert!(matches!(result_of(&lab, 3), Some(Reply::Changed(Ok(conf))) if conf.voters.len() == 4));

    // Two at once, through a joint configuration that is left without being asked to.
    let out = all.into_iter().find(|id| *id != leader).unwrap();
    lab.add_empty(5);
    let both = MembershipChange::Joint(vec![MembershipChange::AddLearner(5), MembershipChange::Remove(out)]);
    lab.on(leader, Event::Change { request: RequestId(4), change: both });
    lab.tick(&[1, 2, 3, 4, 5], 30);
    let Some(Reply::Changed(Ok(ConfState { voters_outgoing, .. }))) = result_of(&lab, 4) else {
        panic!("{:?}", lab.replies)
    };
    assert_eq!(voters_outgoing.len(), 4, "the change answers from within the joint configuration");
    let core = lab.core(leader);
    assert!(core.conf_state().voters_outgoing.is_empty());
    assert_eq!(core.conf_state().voters.len(), 3);
}

#[test]
fn a_learner_is_promoted_only_once_it_has_caught_up() {
    let mut lab = Lab::new(&[1, 2, 3], &[4]);
    let leader = lab.elect(&[1, 2, 3]);
    for request in 0..150 {
        lab.propose(leader, request);
    }
    lab.deliver_among(&[1, 2, 3]);
    lab.on(leader, Event::Change { request: RequestId(900), change: MembershipChange::Promote(4) });
    let reply = result_of(&lab, 900);
    assert!(matches!(reply, Some(Reply::Changed(Err(MembershipError::NotCaughtUp { node_id: 4, .. })))), "{reply:?}");
    lab.on(leader, Event::Change { request: RequestId(901), change: MembershipChange::Remove(leader) });
    assert!(matches!(result_of(&lab, 901), Some(Reply::Changed(Err(MembershipError::Leads)))));
}

#[test]
fn nobody_is_taken_out_whom_a_majority_needs() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let leader = lab.elect(&[1, 2, 3]);
    let [lost, alive] = [1, 2, 3].into_iter().filter(|id| *id != leader).collect::<Vec<_>>()[..] else { panic!() };
    // One is gone, this very moment: the leader still thinks well of it.
    lab.on(leader, Event::Change { request: RequestId(1), change: MembershipChange::Remove(alive) });
    lab.on(leader, Event::Change { request: RequestId(9), change: MembershipChange::Remove(lost) });
    assert!(matches!(result_of(&lab, 9), Some(Reply::Changed(Err(MembershipError::Busy)))), "one at a time");
    lab.tick(&[leader, alive], 40);
    let reply = result_of(&lab, 1);
    let Some(Reply::Changed(Err(MembershipError::NoMajority { voters, silent }))) = reply else { panic!("{reply:?}") };
    assert_eq!((voters.len(), silent), (2, &vec![lost]));
    lab.on(leader, Event::Change { request: RequestId(2), change: MembershipChange::Remove(lost) });
    lab.tick(&[leader, alive], 20);
    assert!(matches!(result_of(&lab, 2), Some(Reply::Changed(Ok(conf))) if !conf.voters.contains(&lost)));
}

/// What `meshctl member replace` does: the lost one goes in the step that gives the new one its vote.
#[test]
fn a_lost_member_goes_as_its_replacement_gets_a_vote() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let leader = lab.elect(&[1, 2, 3]);
    let [lost, alive] = [1, 2, 3].into_iter().filter(|id| *id != leader).collect::<Vec<_>>()[..] else { panic!() };
    lab.add_empty(4);
    let left = [leader, alive, 4];
    lab.tick(&left, 40);
    lab.on(leader, Event::Change { request: RequestId(1), change: MembershipChange::AddLearner(4) });
    lab.tick(&left, 20);
    lab.on(leader, Event::SnapshotSent { peer: 4, delivered: true });
    lab.tick(&left, 20);
    let both = MembershipChange::Joint(vec![MembershipChange::Promote(4), MembershipChange::Remove(lost)]);
    lab.on(leader, Event::Change { request: RequestId(2), change: both });
    lab.tick(&left, 30);
    assert!(matches!(result_of(&lab, 2), Some(Reply::Changed(Ok(_)))), "{:?}", result_of(&lab, 2));
    let mut voters = lab.status(leader).voters;
    voters.sort_unstable();
    assert_eq!(voters, {
        let mut left = left.to_vec();
        left.sort_unstable();
        left
    });
    assert!(lab.core(leader).conf_state().voters_outgoing.is_empty());
}

#[test]
fn a_snapshot_nobody_reports_on_is_sent_again() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let leader = lab.elect(&[1, 2, 3]);
    lab.add_empty(4);
    lab.on(leader, Event::Change { request: RequestId(1), change: MembershipChange::AddLearner(4) });
    let mut sent = 0;
    // 30 s of ticks, and some; every snapshot is lost in silence while heartbeats pass.
    for _ in 0..3_200 {
        for id in 1..=4 {
            lab.on(id, Event::Tick);
        }
        while !lab.wire.is_empty() {
            sent += lab.take(MessageType::MsgSnapshot).len();
            for message in std::mem::take(&mut lab.wire) {
                lab.on(message.to, Event::Message(message));
            }
        }
    }
    assert_eq!(sent, 2, "one, and one more after the patience ran out");
}

#[test]
fn leadership_goes_to_the_most_advanced_voter_on_request() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let leader = lab.elect(&[1, 2, 3]);
    lab.on(leader, Event::Transfer { to: None });
    lab.propose(leader, 1);
    assert!(matches!(result_of(&lab, 1), Some(Reply::Proposed(Err(ProposeError::NotLeader { hint: Some(_) })))));
    lab.deliver_among(&[1, 2, 3]);
    assert_ne!(lab.status(leader).role, Role::Leader);
    assert!((1..=3).any(|id| lab.status(id).role == Role::Leader));
}

#[test]
fn a_full_window_of_uncommitted_bytes_pushes_back() {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let leader = lab.elect(&[1, 2, 3]);
    let command = Bytes::from(vec![0; 8 << 20]);
    for request in 0..10 {
        lab.on(leader, Event::Propose { request: RequestId(request), command: command.clone() });
        lab.wire.clear();
    }
    assert!(matches!(result_of(&lab, 9), Some(Reply::Proposed(Err(ProposeError::Overloaded)))));
    assert!(result_of(&lab, 0).is_none());
}
