//! Membership changes: one view over the old single-step form and the joint-consensus form.

use std::borrow::Cow;

use crate::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

/// A membership change in either form.
pub trait ConfChangeI {
    /// The change in the joint-consensus form.
    fn into_v2(self) -> ConfChangeV2;

    /// Borrows or converts into the joint-consensus form.
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;

    /// The single-step form, if it was given in that form. A V2 change never converts back.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(self) -> ConfChangeV2 {
        ConfChangeV2 {
            transition: ConfChangeTransition::Auto.into(),
            changes: vec![ConfChangeSingle { change_type: self.change_type, node_id: self.node_id }],
            context: self.context,
        }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// Whether this change goes through a joint configuration, and if so whether that one is left by itself.
    ///
    /// More than one change, or an explicit wish, needs the joint form (Raft thesis §4.3).
    pub fn enter_joint(&self) -> Option<bool> {
        match self.transition() {
            ConfChangeTransition::Auto if self.changes.len() <= 1 => None,
            ConfChangeTransition::Auto | ConfChangeTransition::Implicit => Some(true),
            ConfChangeTransition::Explicit => Some(false),
        }
    }

    /// Whether this change leaves a joint configuration: it carries nothing, except perhaps a context.
    pub fn leave_joint(&self) -> bool {
        self.transition() == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}

/// One step of a membership change.
pub fn new_conf_change_single(node_id: u64, change_type: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle { change_type: change_type.into(), node_id }
}

/// Whether two configurations hold the same members in the same roles, in whatever order they are listed.
pub fn conf_state_eq(left: &ConfState, right: &ConfState) -> bool {
    fn sorted(ids: &[u64]) -> Vec<u64> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    }
    left == right
        || (left.auto_leave == right.auto_leave
            && sorted(&left.voters) == sorted(&right.voters)
            && sorted(&left.learners) == sorted(&right.learners)
            && sorted(&left.voters_outgoing) == sorted(&right.voters_outgoing)
            && sorted(&left.learners_next) == sorted(&right.learners_next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(transition: ConfChangeTransition, steps: usize) -> ConfChangeV2 {
        let step = new_conf_change_single(4, ConfChangeType::AddNode);
        ConfChangeV2 { transition: transition.into(), changes: vec![step; steps], ..Default::default() }
    }

    #[test]
    fn joint_form_is_used_for_several_steps_or_on_request() {
        use ConfChangeTransition::{Auto, Explicit, Implicit};
        let table = [
            (Auto, 0, None, true),
            (Auto, 1, None, false),
            (Auto, 2, Some(true), false),
            (Implicit, 1, Some(true), false),
            (Explicit, 0, Some(false), false),
            (Explicit, 2, Some(false), false),
        ];
        for (transition, steps, enter, leave) in table {
            let change = change(transition, steps);
            assert_eq!((change.enter_joint(), change.leave_joint()), (enter, leave), "{transition:?} {steps}");
        }
    }

    #[test]
    fn single_form_converts_to_one_step() {
        let single = ConfChange { id: 7, change_type: 2, node_id: 9, context: "why".into() };
        let v2 = single.as_v2();
        assert_eq!(v2.changes, [new_conf_change_single(9, ConfChangeType::AddLearnerNode)]);
        assert_eq!((v2.context.as_ref(), v2.enter_joint()), (b"why".as_slice(), None));
    }

    #[test]
    fn conf_states_compare_without_order() {
        let left = ConfState::from((vec![1, 2, 3], vec![5, 4]));
        assert!(conf_state_eq(&left, &ConfState::from((vec![3, 1, 2], vec![4, 5]))));
        assert!(!conf_state_eq(&left, &ConfState::from((vec![1, 2], vec![3, 4, 5]))));
        assert!(!conf_state_eq(&left, &ConfState { auto_leave: true, ..left.clone() }));
    }
}
