//! Seeded simulation: three to five nodes in one thread, on a network and on disks that fail.
//!
//! The nodes are the real thing from the replica down: core, stores, redb. Only time, the network, the disk under redb
//! and the clients are simulated, all of them from one seed, so a failure comes back with its seed.
//!
//! `SIM_SEED=n` runs one seed, `SIM_SEEDS=n` that many; the crate's documentation has the command.

mod audits;
mod checker;
mod disk;
mod lab;
mod machine;
mod stale_read;
mod world;

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use archipelago_base::random::SplitMix64;
pub(crate) use lab::Lab;
use world::{Plant, Stats, World};

/// The one source of randomness of a run.
#[derive(Clone, Debug)]
struct Rng(SplitMix64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform enough in `range`; its bounds are small.
    fn range(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// Runs one seed to its end. The error says which invariant broke, or what the raft crate panicked with.
fn run(seed: u64, plant: Plant) -> Result<Stats, String> {
    catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, plant)?;
        world.run_with_faults(FAULTY_MICROS)?;
        world.heal()?;
        world.converge(CONVERGE_MICROS)
    }))
    .unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", words.unwrap_or("without words")))
    })
}

/// Runs seeds on all cores until one fails; returns the totals, or the failing seed and why.
fn run_seeds(seeds: std::ops::Range<u64>, plant: Plant) -> Result<Stats, (u64, String)> {
    let next = AtomicU64::new(seeds.start);
    let result = Mutex::new(Ok(Stats::default()));
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || result.lock().unwrap().is_err() {
                        break;
                    }
                    let outcome = run(seed, plant);
                    let mut result = result.lock().unwrap();
                    match (outcome, &mut *result) {
                        (Ok(stats), Ok(total)) => total.add(&stats),
                        (Err(why), Ok(_)) => *result = Err((seed, why)),
                        // The lowest failing seed, so that a rerun of all names the same one.
                        (Err(why), Err((lowest, _))) if seed < *lowest => *result = Err((seed, why)),
                        _ => {}
                    }
                }
            });
        }
    });
    result.into_inner().unwrap()
}

/// Which seeds the environment asks for.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let number =
        |name: &str| env::var(name).ok().map(|value| value.parse::<u64>().unwrap_or_else(|_| panic!("{name}={value}")));
    match (number("SIM_SEED"), number("SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(default),
    }
}

/// Virtual time under faults, and the longest a healthy cluster may then take to agree.
const FAULTY_MICROS: u64 = 2_000_000;
const CONVERGE_MICROS: u64 = 10_000_000;

#[test]
fn safe_under_faults_and_convergent_after() {
    let seeds = seeds(200);
    let count = seeds.end - seeds.start;
    match run_seeds(seeds, Plant::Nothing) {
        Ok(total) => {
            println!("{count} seeds: {total:?}");
            // Guards against a simulation that passes because nothing happens in it.
            if count >= 100 {
                assert!(total.writes_acked > 20 * count, "{total:?}");
                assert!(total.reads_answered > 10 * count, "{total:?}");
                assert!(total.elections > 2 * count && total.crashes > count, "{total:?}");
                assert!(total.digests_told > 10 * count, "{total:?}");
                assert!(total.stopped_at_unknown > count / 20, "{total:?}");
                assert!(total.snapshots_installed > 0 && total.membership_changes > 0, "{total:?}");
            }
        }
        Err((seed, why)) => panic!("{why}\nrerun with SIM_SEED={seed}"),
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2, 4] {
        assert_eq!(run(seed, Plant::Nothing), run(seed, Plant::Nothing), "seed {seed}");
    }
}
