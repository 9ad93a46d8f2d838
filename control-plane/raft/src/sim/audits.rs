//! Plants known bugs and expects the simulation to find each: a harness that cannot fail proves nothing.

use super::{run_seeds, world::Plant};

/// Each bug must show within this many seeds; a run with the bug usually shows it within ten.
const SEEDS_MAX: u64 = 150;

fn caught(plant: Plant) -> String {
    match run_seeds(0..SEEDS_MAX, plant) {
        Err((seed, why)) => {
            println!("{plant:?} shows at seed {seed}: {why}");
            why
        }
        Ok(stats) => panic!("{plant:?} went unnoticed in {SEEDS_MAX} seeds: {stats:?}"),
    }
}

#[test]
fn a_disk_that_lies_about_fsync_is_caught() {
    caught(Plant::LyingDisk);
}

#[test]
fn answering_before_the_fsync_is_caught() {
    caught(Plant::SendBeforeSync);
}

#[test]
fn acknowledging_before_the_commit_is_caught() {
    let why = caught(Plant::AckEarly);
    assert!(why.contains("acknowledged"), "{why}");
}

#[test]
fn forgetting_a_vote_is_caught() {
    caught(Plant::ForgetVote);
}

#[test]
fn skipping_an_unknown_command_is_caught() {
    let why = caught(Plant::SkipUnknown);
    assert!(
        why.contains("lost")
            || why.contains("lacks")
            || why.contains("another state")
            || why.contains("after log index"),
        "{why}"
    );
}

#[test]
fn a_state_that_diverges_is_caught_by_its_digest() {
    let why = caught(Plant::Diverge);
    assert!(why.contains("after log index"), "{why}");
}

/// What the test before it proves: nothing else in the simulation sees this.
#[test]
fn without_digests_a_state_that_diverges_goes_unnoticed() {
    let stats = run_seeds(0..SEEDS_MAX, Plant::DivergeUnwatched).unwrap();
    assert_eq!(stats.digests_told, 0);
}
