//! Who belongs to the control plane, as far as that is more than Raft's own list of ids: addresses, and shares of the authority.
//!
//! An id never means two members: one that lost its disk could vote against what it had promised.

use std::sync::Arc;

use super::{
    apply::Refusal,
    command::{Answer, ControlPlaneMember, Done, PutMember, RefusalCode, RetireMember, RevokeIdentity},
    state::State,
};

impl State {
    pub(super) fn put_member(&mut self, put: PutMember) -> Result<Answer, Refusal> {
        let PutMember { member, data_key, founders } = put;
        let member = member.ok_or(Refusal::of(RefusalCode::Malformed))?;
        let (mut members, last) = self.members_or(founders);
        if member.id != last.saturating_add(1) {
            return Err(Refusal::of(RefusalCode::MemberId));
        }
        if members.len() >= MEMBERS_MAX {
            return Err(Refusal::full(RefusalCode::MembersFull, MEMBERS_MAX));
        }
        if let (Some(ca), Some(data_key)) = (self.ca.as_deref(), data_key.filter(|key| key.member == member.id)) {
            let mut ca = ca.clone();
            ca.data_keys.push(data_key);
            self.ca = Some(Arc::new(ca));
        }
        self.last_member = member.id;
        members.insert(member.id, Arc::new(member));
        self.members = members;
        self.fleet += 1;
        Ok(Answer::Done(Done {}))
    }

    pub(super) fn retire_member(&mut self, retire: RetireMember, now_unix_ms: i64) -> Result<Answer, Refusal> {
        let RetireMember { id, founders, spiffe_id, reason, by } = retire;
        let (mut members, last) = self.members_or(founders);
        if members.remove(&id).is_none() {
            return Ok(Answer::Done(Done {}));
        }
        // First: it may be refused, and then nothing has changed.
        self.revoke_identity(RevokeIdentity { spiffe_id, reason, by }, now_unix_ms)?;
        if let Some(ca) = self.ca.as_deref() {
            let mut ca = ca.clone();
            ca.data_keys.retain(|key| key.member != id);
            self.ca = Some(Arc::new(ca));
        }
        self.members = members;
        self.last_member = last;
        self.fleet += 1;
        Ok(Answer::Done(Done {}))
    }

    /// The members with their highest id; before the first change, the founders.
    fn members_or(&self, founders: Vec<ControlPlaneMember>) -> (imbl::OrdMap<u64, Arc<ControlPlaneMember>>, u64) {
        if self.last_member > 0 {
            return (self.members.clone(), self.last_member);
        }
        let members: imbl::OrdMap<_, _> = founders.into_iter().map(|member| (member.id, Arc::new(member))).collect();
        let last = members.get_max().map_or(0, |(id, _)| *id);
        (members, last)
    }
}

/// More would only make every write slower; during a replacement there is one more than vote.
const MEMBERS_MAX: usize = 9;

#[cfg(test)]
mod tests {
    use archipelago_raft::StateMachine as _;

    use super::*;
    use crate::machine::{
        Machine,
        command::{Action, CaInit, Command, Outcome, RaiseFormat, WrappedKey},
        format,
    };

    struct Log {
        machine: Machine,
        index: u64,
    }

    impl Log {
        fn new() -> Self {
            let mut log = Self { machine: Machine::new(format::CURRENT, Box::new(|_| ())), index: 0 };
            log.apply(Action::RaiseFormat(RaiseFormat { format_version: format::CURRENT }));
            let data_keys = (1..=3).map(|member| WrappedKey { member, key: None }).collect();
            log.apply(Action::CaInit(CaInit { data_keys, ..CaInit::default() }));
            log
        }

        fn apply(&mut self, action: Action) -> Answer {
            self.index += 1;
            let command = Command {
                format_version: format::required(&action),
                proposed_unix_ms: 1_000,
                action: Some(action),
                ..Command::default()
            };
            let outcome = self.machine.apply(self.index, &prost::Message::encode_to_vec(&command)).unwrap();
            <Outcome as prost::Message>::decode(outcome.as_slice()).unwrap().answer.unwrap()
        }

        fn ids(&self) -> (Vec<u64>, Vec<u64>) {
            let state = self.machine.state();
            let shares = state.ca().unwrap().data_keys.iter().map(|key| key.member);
            (state.members().keys().copied().collect(), shares.collect())
        }
    }

    fn member(id: u64, place: u64) -> ControlPlaneMember {
        ControlPlaneMember { id, client: format!("cp-{place}:7400"), peer: format!("cp-{place}:7401"), place }
    }

    fn put(id: u64, place: u64) -> Action {
        let founders = (1..=3).map(|id| member(id, id)).collect();
        let data_key = Some(WrappedKey { member: id, key: None });
        Action::PutMember(PutMember { member: Some(member(id, place)), data_key, founders })
    }

    fn retire(id: u64) -> Action {
        Action::RetireMember(RetireMember {
            id,
            founders: (1..=3).map(|id| member(id, id)).collect(),
            spiffe_id: format!("spiffe://mesh.example/control-plane/{id}"),
            ..RetireMember::default()
        })
    }

    #[test]
    fn an_id_is_given_once_and_goes_with_its_share_and_its_identity() {
        let mut log = Log::new();
        assert!(log.machine.state().members().is_empty(), "the founders stand in files");
        for taken in [0, 1, 3, 5] {
            let refused = log.apply(put(taken, taken));
            assert!(matches!(&refused, Answer::Refused(refused) if refused.code() == RefusalCode::MemberId), "{taken}");
        }
        assert_eq!(log.apply(put(4, 2)), Answer::Done(Done {}));
        assert_eq!(log.ids(), (vec![1, 2, 3, 4], vec![1, 2, 3, 4]));
        assert_eq!(log.apply(retire(2)), Answer::Done(Done {}));
        assert_eq!(log.ids(), (vec![1, 3, 4], vec![1, 3, 4]));
        let revoked: Vec<_> = log.machine.state().revocations().keys().cloned().collect();
        assert_eq!(revoked, ["spiffe://mesh.example/control-plane/2"]);

        let before = log.machine.state().clone();
        assert_eq!(log.apply(retire(2)), Answer::Done(Done {}), "again: nothing");
        assert_eq!(*log.machine.state(), before);
        assert_eq!(log.apply(retire(4)), Answer::Done(Done {}));
        assert!(matches!(log.apply(put(4, 2)), Answer::Refused(_)), "not even the highest is given twice");
        assert_eq!(log.apply(put(5, 2)), Answer::Done(Done {}));
    }

    #[test]
    fn members_survive_a_snapshot_and_have_a_bound() {
        let mut log = Log::new();
        for id in 4..=9 {
            assert_eq!(log.apply(put(id, id)), Answer::Done(Done {}));
        }
        let refused = log.apply(put(10, 10));
        assert!(matches!(refused, Answer::Refused(refused) if refused.code() == RefusalCode::MembersFull));
        let image = log.machine.snapshot()();
        let mut other = Machine::new(format::CURRENT, Box::new(|_| ()));
        other.restore(&image).unwrap();
        assert_eq!(other.state(), log.machine.state());
        assert_eq!(other.state().last_member(), 9);
    }
}
