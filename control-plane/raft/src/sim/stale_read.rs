//! The stale read of etcd-io/etcd#20418, which the raft crate 0.7.0 has too.
//!
//! A deposed leader that does not know it yet answers a read with an old index, if a read context comes back: late
//! acknowledgements of the context's first round confirm its second one, and with it every read queued before.

use raft_proto::eraftpb::MessageType;

use super::lab::Lab;
use crate::core::{Event, Reply, RequestId};

/// Plays the recipe; returns the index that the deposed leader answered, if it did, and what was committed by then.
fn play(reuse_contexts: bool) -> (Option<u64>, u64) {
    let mut lab = Lab::new(&[1, 2, 3], &[]);
    let old = lab.elect(&[1, 2, 3]);
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != old).collect();
    if reuse_contexts {
        lab.core(old).reuse_read_contexts();
    }
    lab.propose(old, 1);
    lab.deliver_among(&[1, 2, 3]);

    // The first read. One more heartbeat round repeats its context, so each follower acknowledges it twice.
    lab.on(old, Event::ReadIndex { request: RequestId(2) });
    for _ in 0..5 {
        lab.on(old, Event::Tick);
    }
    for heartbeat in lab.take(MessageType::MsgHeartbeat) {
        lab.on(heartbeat.to, Event::Message(heartbeat));
    }
    let mut acks = lab.take(MessageType::MsgHeartbeatResponse);
    acks.retain(|ack| !ack.context.is_empty());
    assert_eq!(acks.len(), 4, "two followers, two rounds");
    let late = acks.split_off(2);
    for ack in acks {
        lab.on(old, Event::Message(ack));
    }
    assert!(
        lab.replies.iter().any(|(_, request, reply)| *request == RequestId(2) && matches!(reply, Reply::Read(Ok(_))))
    );
    lab.wire.clear();
    lab.replies.clear();

    // The others elect a new leader and commit. The old one is paused: it gets no ticks and no messages.
    let new = lab.elect(&others);
    lab.propose(new, 3);
    lab.deliver_among(&others);
    let committed = lab.status(new).commit;
    assert!(committed > lab.status(old).commit);

    // A client reads at the old leader, which takes itself for the leader still; then others, which is what lets a
    // reused context come round again. No message of it gets out; the late acknowledgements come in.
    for request in 4..8 {
        lab.on(old, Event::ReadIndex { request: RequestId(request) });
    }
    lab.wire.clear();
    for ack in late {
        lab.on(old, Event::Message(ack));
    }
    let stale = lab.replies.iter().find_map(|(_, _, reply)| match reply {
        Reply::Read(Ok(log_index)) => Some(*log_index),
        _ => None,
    });
    (stale, committed)
}

#[test]
fn fresh_contexts_answer_nothing_from_late_acknowledgements() {
    let (answered, _) = play(false);
    assert_eq!(answered, None);
}

#[test]
fn planted_reuse_of_contexts_answers_a_stale_index() {
    let (answered, committed) = play(true);
    assert!(answered.is_some_and(|log_index| log_index < committed), "answered {answered:?}, committed {committed}");
}
