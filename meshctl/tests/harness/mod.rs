//! Real federations for tests: started by the `meshctl` binary, driven from outside, ended whatever happens.
//!
//! [`suite`] runs the tests of one binary, one after another around one [`Federation`]: the processes of a
//! federation are many, and two of them at once on two cores would measure each other.

#![allow(dead_code, unused_imports, unused_macros, reason = "every test binary has this module and uses a part of it")]

pub(crate) mod client;
pub(crate) mod command;
pub(crate) mod federation;
pub(crate) mod proc;
pub(crate) mod status;
pub(crate) mod suite;

use std::time::{Duration, Instant};

pub(crate) use client::{Connection, Reply};
pub(crate) use command::{Ran, meshctl};
pub(crate) use federation::{Federation, SMALL};

/// Asks `probe` until it has an answer; its latest complaint is part of the panic when it never has.
pub(crate) async fn eventually<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let complaint = match probe().await {
            Ok(value) => return value,
            Err(complaint) => complaint,
        };
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}: {complaint}");
        tokio::time::sleep(POLL).await;
    }
}

/// `Ok` when `condition` holds, else the complaint.
pub(crate) fn check(condition: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(complaint()) }
}

/// Whether `count` of `total` draws with probability `share` is within five standard deviations.
///
/// The issue says three; those would fail one run in 370 by chance, five fail one in 1.7 million.
pub(crate) fn is_within_five_sigma(count: u64, total: u64, share: f64) -> bool {
    let (count, total) = (count as f64, total as f64);
    (count - total * share).abs() <= 5.0 * (total * share * (1.0 - share)).sqrt()
}

/// Evidence: what a test saw, for whoever reads its output.
macro_rules! saw {
    ($($text:tt)*) => { println!("    {}", format_args!($($text)*)) };
}
pub(crate) use saw;

const POLL: Duration = Duration::from_millis(50);
/// Elections, restarts, joins: far more than they take, on a machine busy with something else too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
