//! `meshctl up` and `down`: a whole federation on one machine, as real processes.
//!
//! ```text
//! up            foreground: this process supervises until Ctrl-C
//! up --detach   starts `role supervisor` in a session of its own, follows its words, and returns when it is ready
//! down          asks the supervisor to end everything; without one, ends what carries the state directory's mark
//! ```

pub(crate) mod control;
pub(crate) mod guide;
pub(crate) mod layout;
pub(crate) mod state;

mod admin;
mod bring_up;
mod drill;
mod observe;
mod owner;
mod plan;
mod prepare;
mod process;
mod report;
mod supervisor;
mod table;
mod tokens;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use archipelago_base::durable::{DirLock, LockError};

use self::control::{Reply, Request};
use self::prepare::{Prepared, Wish};
use self::report::{Audience, Reporter, SUPERVISOR, Word};
use self::state::StateDir;
use self::supervisor::Supervisor;
use crate::cli::{DownArgs, Global, SupervisorArgs, UpArgs};
use crate::client::Client;
use crate::commands;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Output};

/// `meshctl up`.
pub(crate) fn up(global: &Global, args: UpArgs) -> Outcome {
    let state = StateDir::new(&global.state)?;
    let wish = Wish::read(&args)?;
    // Before anything is created: a mistake in the file leaves no trace.
    prepare::check(&state, &wish)?;
    if args.detach {
        let guide = detached(&state, &args)?;
        return announce(global, &state, &guide);
    }
    state.create()?;
    supervise(&state, wish, args.ready_timeout, Audience::Terminal)?;
    output::talk(format!(
        "the state is kept in {dir}: `{meshctl} up` resumes it, `{meshctl} down` removes it",
        dir = state.root().display(),
        meshctl = guide::command(state.root()),
    ));
    Ok(())
}

/// `meshctl role supervisor`: the process behind `up --detach`.
pub(crate) fn supervisor_role(args: SupervisorArgs) -> Outcome {
    // A session of its own: the terminal of whoever started it may close. It leads no group yet, because it was
    // started without one, so this cannot fail for that reason.
    rustix::process::setsid()
        .map_err(|error| Failure::refused(format!("cannot start a session of its own: {error}")))?;
    let state = StateDir::new(&args.state)?;
    let wish = Wish::read(&args.up)?;
    supervise(&state, wish, args.up.ready_timeout, Audience::Starter)
}

/// `meshctl down`.
pub(crate) fn down(global: &Global, args: &DownArgs) -> Outcome {
    let state = StateDir::new(&global.state)?;
    commands::block_on(async {
        let exists = state.has_record();
        let lock = if exists {
            let asked = control::ask(&state, &Request::Stop, STOP_SILENCE_MAX, |line| output::talk(line)).await;
            if let Err(failure) = asked {
                output::talk(format!("{failure}; ending its processes without it"));
            }
            Some(take_over(&state).await?)
        } else {
            None
        };
        // Also when someone removed the directory under a running federation: its processes carry its name.
        let orphans = process::marked(state.root()).map_err(anyhow::Error::from)?;
        if !orphans.is_empty() {
            output::talk(format!("ending {} processes without a supervisor", orphans.len()));
            process::end(&orphans, ORPHAN_GRACE).await.map_err(anyhow::Error::from)?;
        }
        if !exists {
            output::talk(format!("no federation is left in {}", state.root().display()));
        } else if args.keep_state {
            output::talk(format!("down; the state stays in {}", state.root().display()));
        } else {
            state.remove().map_err(|error| {
                Failure::refused(format!("cannot remove {}: {error}", state.root().display()))
                    .hint("every process has ended; remove the rest by hand, or use --keep-state")
            })?;
            let rest = if state.root().exists() { "; what `up` did not make stays in its directory" } else { "" };
            output::talk(format!("down; nothing of it is left behind{rest}"));
        }
        drop(lock);
        Ok(())
    })
}

/// The processes that a supervisor reports; `None` when there is no supervisor.
pub(crate) async fn processes(state: &Path) -> Option<Vec<crate::views::ProcessView>> {
    let state = StateDir::new(state).ok()?;
    match control::ask(&state, &Request::Status, STATUS_SILENCE_MAX, |_| {}).await {
        Ok(Some(Reply::Processes { processes })) => Some(processes),
        _ => None,
    }
}

/// Runs the supervisor in this process until it is asked to end.
fn supervise(state: &StateDir, wish: Wish, ready_timeout: Duration, audience: Audience) -> Outcome {
    let reporter = Reporter::new(state, audience)
        .map_err(|error| Failure::refused(format!("cannot write to {}: {error}", state.log(SUPERVISOR).display())))?;
    let outcome = commands::block_on(async {
        let Prepared { lock, record, topology, resources, plan, observe } =
            prepare::prepare(state, wish, &reporter).await?;
        let supervisor = Supervisor::new(state, &plan, reporter.clone())?;
        let bring_up = bring_up::BringUp {
            state: state.clone(),
            record,
            topology,
            resources,
            plan: plan.into(),
            observe,
            reporter: reporter.clone(),
            handle: supervisor.handle(),
            ready_timeout,
        };
        let outcome = supervisor.run(bring_up.run()).await;
        if outcome.is_err() {
            let (meshctl, dir) = (guide::command(state.root()), state.root().display());
            reporter.say(format!(
                "its state and logs stay in {dir}: `{meshctl} up` tries again, `{meshctl} down` removes them"
            ));
        }
        drop(lock);
        outcome
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(failure) => {
            // A starter has been told and prints it; this process's own exit code is nobody's business then.
            reporter.failed(failure).map_or(Ok(()), Err)
        }
    }
}

/// Starts a supervisor in the background and follows it until it is ready. Returns the guide.
fn detached(state: &StateDir, args: &UpArgs) -> Outcome<String> {
    let state = state.create()?;
    let log = state
        .open_log(SUPERVISOR)
        .map_err(|error| Failure::refused(format!("cannot write to {}: {error}", state.root().display())))?;
    let program = std::env::current_exe()
        .map_err(|error| Failure::refused(format!("cannot find this program's own file: {error}")))?;
    let mut command = Command::new(program);
    command.args(["role", SUPERVISOR, "--for"]).arg(state.root());
    if let Some(topology) = &args.topology {
        let topology = std::path::absolute(topology).map_err(anyhow::Error::from)?;
        command.arg(topology);
    }
    if let Some(address) = args.address {
        command.args(["--address", &address.to_string()]);
    }
    for (flag, value) in [("--base-port", args.base_port), ("--workers", args.workers)] {
        if let Some(value) = value {
            command.args([flag, &value.to_string()]);
        }
    }
    for (flag, is_given) in [("--access-log", args.access_log), ("--observe", args.observe)] {
        if is_given {
            command.arg(flag);
        }
    }
    command.args(["--ready-timeout", &crate::duration::display(args.ready_timeout)]);
    let mut child = command
        .env(process::MARK, state.root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| Failure::refused(format!("cannot start the supervisor: {error}")))?;
    follow(&state, &mut child)
}

fn follow(state: &StateDir, child: &mut Child) -> Outcome<String> {
    let words = child.stdout.take().map(BufReader::new);
    for line in words.into_iter().flat_map(BufReader::lines).map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Word::Line(line)) => output::talk(line),
            Ok(Word::Ready(guide)) => return Ok(guide),
            Ok(Word::Failed(failure)) => {
                // It has ended everything it started; let it go before saying so.
                let _ = child.wait();
                return Err(failure);
            }
            Err(_) => output::talk(line),
        }
    }
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    Err(Failure::refused(format!("the supervisor ended ({status}) before the federation was ready"))
        .problems(report::tail(state, SUPERVISOR))
        .hint(format!("its log is {}", state.log(SUPERVISOR).display())))
}

/// What `up --detach` prints: the guide for people, the status for programs.
fn announce(global: &Global, state: &StateDir, guide: &str) -> Outcome {
    let output = Output::new(global.output);
    if matches!(output.format(), Format::Table | Format::Wide) {
        return output::write_stdout(guide);
    }
    commands::block_on(async {
        let client = Client::open(state.root(), global.timeout)?;
        let view = crate::views::StatusView::new(client.status().await?, processes(state.root()).await);
        output.print(&view, || view.text())
    })
}

/// The lock of a state directory, from a supervisor that is going, or is killed if it does not go.
async fn take_over(state: &StateDir) -> Outcome<DirLock> {
    let deadline = tokio::time::Instant::now() + TAKE_OVER;
    loop {
        let held = match DirLock::acquire(state.root()) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { pid, .. }) => pid,
            Err(error) => return Err(anyhow::Error::from(error).into()),
        };
        let process = held.and_then(|pid| process::Process::open(pid).ok().flatten());
        match process {
            Some(process) => {
                let left = deadline.saturating_duration_since(tokio::time::Instant::now());
                if !process.ended(left).await {
                    output::talk(format!("the supervisor (pid {}) does not end: killed", process.pid()));
                    process.signal(rustix::process::Signal::KILL).map_err(anyhow::Error::from)?;
                    process.ended(TAKE_OVER).await;
                }
            }
            None if tokio::time::Instant::now() >= deadline => {
                return Err(Failure::refused(format!("{} stays locked by another process", state.root().display())));
            }
            // Between taking the lock and writing its number into it.
            None => tokio::time::sleep(LOCK_RETRY).await,
        }
    }
}

/// Three phases with their grace, and some.
const STOP_SILENCE_MAX: Duration = Duration::from_secs(20);
const STATUS_SILENCE_MAX: Duration = Duration::from_secs(3);
/// A supervisor that has said its last word only has to return from main.
const TAKE_OVER: Duration = Duration::from_secs(5);
const ORPHAN_GRACE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);
