//! The main function of a test binary: tests in order, a federation around them, its logs when one fails.
//!
//! Cargo's own harness has no end of the process to hook a teardown to, and runs tests side by side. This one takes
//! the flags that people use with it: filters, `--exact`, `--skip`, `--list`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::Federation;

type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// One test.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) body: Body,
}

/// What a test needs.
#[derive(Clone, Copy)]
pub(crate) enum Body {
    /// The federation that all tests of the binary share, as [`Federation::reset`] leaves it.
    Shared(for<'a> fn(&'a Federation) -> Running<'a>),
    /// Nothing: it starts its own.
    Alone(fn() -> Running<'static>),
}

/// Tests of the shared federation, by their functions' names.
macro_rules! shared {
    ($($test:path),+ $(,)?) => {
        [$($crate::harness::suite::Test {
            name: stringify!($test),
            body: $crate::harness::suite::Body::Shared(|federation| Box::pin($test(federation))),
        }),+]
    };
}
pub(crate) use shared;

/// Tests that start what they need.
macro_rules! alone {
    ($($test:path),+ $(,)?) => {
        [$($crate::harness::suite::Test {
            name: stringify!($test),
            body: $crate::harness::suite::Body::Alone(|| Box::pin($test())),
        }),+]
    };
}
pub(crate) use alone;

/// Runs those of `tests` that the command line selects.
pub(crate) fn run(tests: &[Test]) -> ExitCode {
    run_despite(tests, &[])
}

/// The same when warnings with these words in the shared federation's logs are what tests are about.
pub(crate) fn run_despite(tests: &[Test], expected: &[&str]) -> ExitCode {
    let selection = Selection::read(std::env::args().skip(1));
    let tests: Vec<&Test> = tests.iter().filter(|test| selection.takes(test.name)).collect();
    if selection.list {
        for test in &tests {
            println!("{}: test", test.name);
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests, one after another", tests.len());
    let mut shared = Shared::NotStarted;
    let mut failed = Vec::new();
    for test in &tests {
        let started = Instant::now();
        let passed = match test.body {
            Body::Alone(body) => guarded(|| block_on(body())),
            Body::Shared(body) => match shared.get() {
                None => false,
                Some(federation) => {
                    let passed = guarded(|| {
                        block_on(async {
                            federation.reset().await;
                            body(federation).await;
                        });
                    });
                    if !passed {
                        eprintln!("{}", federation.logs(LOG_LINES));
                    }
                    passed
                }
            },
        };
        let verdict = if passed { "ok" } else { "FAILED" };
        println!("test {} ... {verdict} ({:.1} s)", test.name, started.elapsed().as_secs_f64());
        if !passed {
            failed.push(test.name);
        }
    }
    if let Shared::Up(federation) = shared
        && !guarded(|| block_on(federation.down_despite(expected)))
    {
        failed.push("down");
    }
    println!(
        "\ntest result: {} passed; {} failed {failed:?}\n",
        tests.len() - failed.len().min(tests.len()),
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a future on a runtime of its own, bounded in time.
fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(TEST_MAX, future).await });
    runtime.shutdown_timeout(Duration::from_secs(1));
    assert!(ended.is_ok(), "not over after {TEST_MAX:?}");
}

/// Whether `body` returned; a panic has printed itself.
fn guarded(body: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(body)).is_ok()
}

enum Shared {
    NotStarted,
    Up(Federation),
    Failed,
}

impl Shared {
    fn get(&mut self) -> Option<&Federation> {
        if matches!(self, Self::NotStarted) {
            let mut started = None;
            *self = if guarded(|| block_on(async { started = Some(Federation::up(None).await) })) {
                started.map_or(Self::Failed, Self::Up)
            } else {
                Self::Failed
            };
        }
        match self {
            Self::Up(federation) => Some(federation),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Selection {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
}

impl Selection {
    fn read(mut args: impl Iterator<Item = String>) -> Self {
        let mut selection = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => selection.exact = true,
                "--list" => selection.list = true,
                "--skip" => selection.skip.extend(args.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => drop(args.next()),
                _ if arg.starts_with('-') => {}
                _ => selection.filters.push(arg),
            }
        }
        selection
    }

    fn takes(&self, name: &str) -> bool {
        let hit = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.skip.iter().any(hit)
    }
}

/// Beyond this something hangs; the slowest test takes a quarter of it.
const TEST_MAX: Duration = Duration::from_secs(240);
const LOG_LINES: usize = 12;
