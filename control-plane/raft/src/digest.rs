//! Digests of the state, and what members learn from comparing them.
//!
//! Members apply the same commands and must come to the same state. Should one not (a bug that only one version has, a
//! bit that flipped in memory), nothing in Raft would notice: so every checkpoint carries the SHA-256 of the encoded
//! state, members tell each other theirs, and [`Judge`] compares what is known of the same log index.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use raft_proto::eraftpb::ConfState;

/// SHA-256 of an encoded state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
        Self(digest)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// The digest of a member's state right after a log index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateDigest {
    /// Where.
    pub log_index: u64,
    /// Of what.
    pub digest: Digest,
}

/// An encoded state with its digest in front, as it is stored and sent: `sha256: [u8; 32] | state`.
pub(crate) fn seal(state: &[u8]) -> (Digest, Bytes) {
    let digest = Digest::of(state);
    (digest, [&digest.0, state].concat().into())
}

/// The digest that [`seal`] put in front, unverified; none if the bytes are too short to hold one.
pub(crate) fn claimed(sealed: &[u8]) -> Option<Digest> {
    sealed.first_chunk().copied().map(Digest)
}

/// The inverse of [`seal`], verified.
///
/// # Errors
/// The bytes are not what was sealed.
pub(crate) fn open(sealed: &[u8]) -> Result<(Digest, &[u8]), String> {
    let (digest, state) = sealed.split_first_chunk().ok_or("a snapshot without a digest")?;
    match Digest(*digest) {
        claimed if Digest::of(state) == claimed => Ok((claimed, state)),
        claimed => Err(format!("a snapshot that does not match its digest {claimed}")),
    }
}

/// What the digests known for one log index say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Fewer than two are known.
    Unknown,
    /// All that are known are the same.
    Agree,
    /// They differ.
    Diverged(Divergence),
}

/// Members whose states differ after the same log index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Where it was seen.
    pub log_index: u64,
    /// The members of the majority, which agree with each other. Empty when no majority of the voters agrees.
    pub majority: Vec<u64>,
    /// The members that differ from the majority; with none, all of which a digest is known.
    pub minority: Vec<u64>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log_index, majority, minority } = self;
        if majority.is_empty() {
            write!(f, "the states of members {minority:?} differ after log index {log_index}, and no majority agrees")
        } else {
            write!(f, "the state of {minority:?} differs from that of {majority:?} after log index {log_index}")
        }
    }
}

/// Compares the digests known for one log index. Only voters decide what the majority is; in a joint configuration it
/// takes a majority of both.
pub(crate) fn judge(log_index: u64, members: &ConfState, digests: &BTreeMap<u64, Digest>) -> Verdict {
    let mut groups: BTreeMap<Digest, Vec<u64>> = BTreeMap::new();
    for (member, digest) in digests {
        groups.entry(*digest).or_default().push(*member);
    }
    match (digests.len(), groups.len()) {
        (0 | 1, _) => return Verdict::Unknown,
        (_, 1) => return Verdict::Agree,
        _ => {}
    }
    let decides = |group: &Vec<u64>, voters: &[u64]| {
        voters.is_empty() || 2 * voters.iter().filter(|voter| group.contains(voter)).count() > voters.len()
    };
    let majority = groups.values().find(|group| {
        !members.voters.is_empty() && decides(group, &members.voters) && decides(group, &members.voters_outgoing)
    });
    let majority = majority.cloned().unwrap_or_default();
    let minority = digests.keys().copied().filter(|member| !majority.contains(member)).collect();
    Verdict::Diverged(Divergence { log_index, majority, minority })
}

/// Remembers the newest digests of every member and compares them.
pub(crate) struct Judge {
    node_id: u64,
    digests: BTreeMap<u64, BTreeMap<u64, Digest>>,
    divergence: Option<Divergence>,
    /// Minorities that were logged.
    logged: BTreeSet<Vec<u64>>,
}

impl Judge {
    /// Continues with what the member's own checkpoint remembers.
    pub(crate) fn new(node_id: u64, own: &[StateDigest]) -> Self {
        let mut judge = Self { node_id, digests: BTreeMap::new(), divergence: None, logged: BTreeSet::new() };
        judge.note(node_id, own);
        judge
    }

    /// This member's own, oldest first.
    pub(crate) fn own(&self) -> Vec<StateDigest> {
        let own = self.digests.get(&self.node_id).into_iter().flatten();
        own.map(|(log_index, digest)| StateDigest { log_index: *log_index, digest: *digest }).collect()
    }

    /// This member's state was replaced by a snapshot: what it was before says nothing about what it is.
    pub(crate) fn replaced(&mut self, by: StateDigest) {
        self.digests.insert(self.node_id, BTreeMap::from([(by.log_index, by.digest)]));
    }

    /// Takes in digests of a member, this one or another, and compares them with those of the others.
    ///
    /// # Errors
    /// This member differs from a majority that agrees.
    pub(crate) fn hear(
        &mut self,
        member: u64,
        digests: &[StateDigest],
        members: &ConfState,
    ) -> Result<(), (Divergence, Digest)> {
        let belongs = |id: &u64| {
            [&members.voters, &members.voters_outgoing, &members.learners].iter().any(|ids| ids.contains(id))
        };
        if member != self.node_id && !belongs(&member) {
            return Ok(());
        }
        self.digests.retain(|known, _| *known == self.node_id || belongs(known));
        self.note(member, digests);
        digests.iter().try_for_each(|digest| self.compare(digest.log_index, members))
    }

    /// The newest divergence that no later comparison of all voters has cleared.
    pub(crate) fn divergence(&self) -> Option<&Divergence> {
        self.divergence.as_ref()
    }

    /// Takes in digests of a member without comparing them.
    pub(crate) fn note(&mut self, member: u64, digests: &[StateDigest]) {
        let known = self.digests.entry(member).or_default();
        known.extend(digests.iter().map(|StateDigest { log_index, digest }| (*log_index, *digest)));
        while known.len() > DIGESTS_MAX {
            known.pop_first();
        }
    }

    fn compare(&mut self, log_index: u64, members: &ConfState) -> Result<(), (Divergence, Digest)> {
        let at: BTreeMap<u64, Digest> =
            self.digests.iter().filter_map(|(member, digests)| Some((*member, *digests.get(&log_index)?))).collect();
        match judge(log_index, members, &at) {
            Verdict::Unknown => {}
            Verdict::Agree => {
                let later = self.divergence.as_ref().is_some_and(|divergence| divergence.log_index < log_index);
                if later && members.voters.iter().all(|voter| at.contains_key(voter)) {
                    tracing::info!(node_id = self.node_id, log_index, "the states of all voters agree again");
                    self.divergence = None;
                    self.logged.clear();
                }
            }
            Verdict::Diverged(divergence) => {
                let own = at.get(&self.node_id).filter(|_| divergence.minority.contains(&self.node_id));
                if let (Some(own), false) = (own, divergence.majority.is_empty()) {
                    return Err((divergence, *own));
                }
                if self.logged.insert(divergence.minority.clone()) {
                    tracing::error!(node_id = self.node_id, log_index, digests = ?at, error = %divergence, "members diverged");
                }
                if self.divergence.as_ref().is_none_or(|known| known.log_index <= log_index) {
                    self.divergence = Some(divergence);
                }
            }
        }
        Ok(())
    }
}

/// Digests kept and told per member: under load, the last moments; on a quiet federation, days.
pub(crate) const DIGESTS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: u8) -> Digest {
        Digest([letter; 32])
    }

    fn voters(ids: &[u64]) -> ConfState {
        ConfState::from((ids.to_vec(), vec![]))
    }

    /// `"1a 2a 3b"`: members and, by a letter, their digests.
    fn known(text: &str) -> BTreeMap<u64, Digest> {
        let member = |word: &str| (word[..1].parse().unwrap(), digest(word.as_bytes()[1]));
        text.split_whitespace().map(member).collect()
    }

    #[test]
    fn verdicts() {
        let diverged = |majority: &[u64], minority: &[u64]| {
            Verdict::Diverged(Divergence { log_index: 7, majority: majority.to_vec(), minority: minority.to_vec() })
        };
        let learner = ConfState::from((vec![1, 2, 3], vec![4]));
        let joint = ConfState { voters_outgoing: vec![3, 4, 5], ..voters(&[1, 2, 3]) };
        let table = [
            (voters(&[1, 2, 3]), "", Verdict::Unknown),
            (voters(&[1, 2, 3]), "1a", Verdict::Unknown),
            (voters(&[1, 2, 3]), "1a 2a", Verdict::Agree),
            (voters(&[1, 2, 3]), "1a 2a 3a", Verdict::Agree),
            (voters(&[1, 2, 3]), "1a 2b", diverged(&[], &[1, 2])),
            (voters(&[1, 2, 3]), "1a 2a 3b", diverged(&[1, 2], &[3])),
            (voters(&[1, 2, 3]), "1b 2a 3a", diverged(&[2, 3], &[1])),
            (voters(&[1, 2, 3]), "1a 2b 3c", diverged(&[], &[1, 2, 3])),
            (voters(&[1, 2]), "1a 2b", diverged(&[], &[1, 2])),
            (voters(&[1, 2, 3, 4]), "1a 2a 3b 4b", diverged(&[], &[1, 2, 3, 4])),
            (voters(&[1, 2, 3, 4, 5]), "1a 2a 3b", diverged(&[], &[1, 2, 3])),
            (voters(&[1, 2, 3, 4, 5]), "1a 2a 3a 4b 5c", diverged(&[1, 2, 3], &[4, 5])),
            // A learner is compared and never counted.
            (learner.clone(), "1a 2a 4b", diverged(&[1, 2], &[4])),
            (learner.clone(), "1a 4b", diverged(&[], &[1, 4])),
            (learner, "1a 2b 4b", diverged(&[], &[1, 2, 4])),
            // Both majorities, or none.
            (joint.clone(), "1a 2a 3b", diverged(&[], &[1, 2, 3])),
            (joint, "1a 2b 3a 4a", diverged(&[1, 3, 4], &[2])),
            (ConfState::default(), "1a 2b", diverged(&[], &[1, 2])),
        ];
        for (members, digests, verdict) in table {
            assert_eq!(judge(7, &members, &known(digests)), verdict, "{members:?} {digests}");
        }
    }

    fn at(log_index: u64, letter: u8) -> StateDigest {
        StateDigest { log_index, digest: digest(letter) }
    }

    #[test]
    fn a_member_in_the_minority_learns_it_whichever_digest_comes_last() {
        let members = voters(&[1, 2, 3]);
        let mut judge = Judge::new(3, &[at(10, b'b')]);
        assert_eq!(judge.hear(1, &[at(10, b'a')], &members), Ok(()), "one against one");
        assert_eq!(judge.divergence().map(|divergence| divergence.majority.len()), Some(0));
        let (divergence, own) = judge.hear(2, &[at(10, b'a')], &members).unwrap_err();
        assert_eq!((divergence.majority, divergence.minority, own), (vec![1, 2], vec![3], digest(b'b')));

        let mut judge = Judge::new(3, &[]);
        judge.hear(1, &[at(20, b'a')], &members).unwrap();
        judge.hear(2, &[at(20, b'a')], &members).unwrap();
        assert!(judge.hear(3, &[at(20, b'b')], &members).is_err());
    }

    #[test]
    fn a_divergence_of_others_is_shown_until_all_voters_agree_again() {
        let members = voters(&[1, 2, 3]);
        let mut judge = Judge::new(1, &[]);
        judge.hear(1, &[at(10, b'a')], &members).unwrap();
        judge.hear(2, &[at(10, b'a')], &members).unwrap();
        judge.hear(3, &[at(10, b'b')], &members).unwrap();
        assert_eq!(judge.divergence().unwrap().minority, [3]);
        judge.hear(1, &[at(20, b'a')], &members).unwrap();
        judge.hear(2, &[at(20, b'a')], &members).unwrap();
        assert!(judge.divergence().is_some(), "two of three may leave out the one");
        judge.hear(3, &[at(20, b'a')], &members).unwrap();
        assert_eq!(judge.divergence(), None);
    }

    #[test]
    fn memory_is_bounded_and_strangers_are_not_heard() {
        let members = voters(&[1, 2, 3]);
        let mut judge = Judge::new(1, &[]);
        let many: Vec<_> = (0..1_000).map(|log_index| at(log_index, b'a')).collect();
        judge.hear(1, &many, &members).unwrap();
        assert_eq!(judge.own().len(), DIGESTS_MAX);
        assert_eq!(judge.own().last(), Some(&at(999, b'a')));
        judge.hear(9, &[at(999, b'b')], &members).unwrap();
        assert_eq!(judge.divergence(), None);
    }

    #[test]
    fn a_sealed_state_opens_and_a_damaged_one_does_not() {
        let (digest, sealed) = seal(b"state");
        assert_eq!(open(&sealed), Ok((digest, b"state".as_slice())));
        assert_eq!(claimed(&sealed), Some(digest));
        for bad in [&sealed[..31], &sealed[..sealed.len() - 1], b""] {
            assert!(open(bad).is_err());
        }
        // The reference value of FIPS 180-2 for "abc".
        assert_eq!(seal(b"abc").0.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
