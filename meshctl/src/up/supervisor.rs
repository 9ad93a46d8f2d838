//! Runs the processes of one federation: performs what [`Table`] decides, answers the control socket, and ends
//! everything when asked.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::process::Command as Spawn;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::control::{self, Call, Reply, Request};
use super::drill::Cut;
use super::plan::{Plan, Process, Role};
use super::process::{self, MARK};
use super::report::{Reporter, SUPERVISOR};
use super::state::StateDir;
use super::table::{Action, Event, Table};
use super::tokens::Need;
use super::{admin, tokens};
use crate::duration;
use crate::exit::{Failure, Outcome};
use crate::views::ProcessView;

/// The supervisor of one federation.
pub(crate) struct Supervisor {
    state: StateDir,
    processes: Arc<[Process]>,
    /// Pidfd of each process that was started, by position.
    running: Vec<Option<process::Process>>,
    table: Table,
    cut: Option<Cut>,
    reporter: Reporter,
    executable: PathBuf,
    notes: mpsc::Receiver<Note>,
    handle: Handle,
}

/// How the tasks around a supervisor reach it.
#[derive(Clone)]
pub(crate) struct Handle {
    notes: mpsc::Sender<Note>,
}

/// What tasks tell a supervisor.
enum Note {
    /// Something happened to a process.
    Event(Event),
    /// A process has what it needs to start.
    Launch(usize),
    /// Send back the rows of the table.
    Rows(oneshot::Sender<Vec<ProcessView>>),
}

/// Why the supervisor's loop ended.
enum End {
    /// A person or `down` asked; whoever waits for the end.
    Asked(Option<mpsc::Sender<Reply>>),
    /// The federation could not be brought up.
    Failed(Failure),
}

impl Handle {
    /// It is the turn of these processes.
    pub(crate) async fn start(&self, indexes: impl IntoIterator<Item = usize>) {
        for index in indexes {
            self.note(Note::Event(Event::Start(index))).await;
        }
    }

    /// Every process as it is now; empty when the supervisor is ending.
    pub(crate) async fn rows(&self) -> Vec<ProcessView> {
        let (send, receive) = oneshot::channel();
        self.note(Note::Rows(send)).await;
        receive.await.unwrap_or_default()
    }

    async fn note(&self, note: Note) {
        // The receiver lives as long as the loop; afterwards nobody needs to know.
        let _ = self.notes.send(note).await;
    }
}

impl Supervisor {
    /// A supervisor of the plan's processes, none of which is started yet.
    pub(crate) fn new(state: &StateDir, plan: &Plan, reporter: Reporter) -> Outcome<Self> {
        let executable = std::env::current_exe()
            .map_err(|error| Failure::refused(format!("cannot find this program's own file: {error}")))?;
        let (send, notes) = mpsc::channel(NOTES_MAX);
        Ok(Self {
            state: state.clone(),
            processes: plan.processes.clone().into(),
            running: plan.processes.iter().map(|_| None).collect(),
            table: Table::new(plan.processes.iter().map(|process| process.name.clone())),
            cut: None,
            reporter,
            executable,
            notes,
            handle: Handle { notes: send },
        })
    }

    /// How tasks reach this supervisor.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Supervises until `down`, a signal, or the failure of `bring_up`; then ends every process.
    pub(crate) async fn run(mut self, bring_up: impl Future<Output = Outcome>) -> Outcome {
        let listener = control::listen(&self.state)
            .map_err(|error| Failure::refused(format!("cannot listen on the supervisor's socket: {error}")))?;
        let (send, mut calls) = mpsc::channel(CALLS_MAX);
        tokio::spawn(control::serve(listener, send));
        let mut stop = Stop::install()?;
        let end = self.supervise(bring_up, &mut calls, &mut stop).await;
        if let End::Failed(failure) = &end {
            self.reporter.say(format!("not ready: {failure}; ending every process"));
        }
        let told = match &end {
            End::Asked(reply_to) => reply_to.clone(),
            End::Failed(_) => None,
        };
        self.end_all(told.as_ref(), &mut stop).await;
        // Before the last word: whoever hears it may start the next federation here.
        let _ = std::fs::remove_file(self.state.root().join(super::state::SOCKET));
        self.reporter.say("every process has ended");
        if let Some(told) = told {
            let _ = told.send(Reply::Done { lines: Vec::new() }).await;
            // Closed when the last reply is written: only then may the runtime go.
            let _ = tokio::time::timeout(LAST_WORD, told.closed()).await;
        }
        match end {
            End::Asked(_) => Ok(()),
            End::Failed(failure) => Err(failure),
        }
    }

    async fn supervise(
        &mut self,
        bring_up: impl Future<Output = Outcome>,
        calls: &mut mpsc::Receiver<Call>,
        stop: &mut Stop,
    ) -> End {
        tokio::pin!(bring_up);
        let mut brought_up = false;
        loop {
            let wake = self.table.next_wake().unwrap_or_else(|| Instant::now() + IDLE_WAKE);
            tokio::select! {
                Some(note) = self.notes.recv() => self.on_note(note),
                Some((request, reply_to)) = calls.recv() => {
                    if request == Request::Stop {
                        return End::Asked(Some(reply_to));
                    }
                    let reply = self.answer(request).await;
                    let _ = reply_to.send(reply).await;
                }
                () = stop.requested() => return End::Asked(None),
                outcome = &mut bring_up, if !brought_up => match outcome {
                    Ok(()) => brought_up = true,
                    Err(failure) => return End::Failed(failure),
                },
                () = tokio::time::sleep_until(wake.into()) => self.on_event(Event::Tick),
            }
        }
    }

    fn on_note(&mut self, note: Note) {
        match note {
            Note::Event(event) => self.on_event(event),
            Note::Launch(index) if self.table.is_stopping() => {
                self.on_event(Event::SpawnFailed(index, "everything is stopping".to_owned()));
            }
            Note::Launch(index) => self.launch(index),
            Note::Rows(send) => {
                let _ = send.send(self.rows());
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        if let Event::Exited(index, _) = &event
            && let Some(slot) = self.running.get_mut(*index)
        {
            *slot = None;
        }
        let mut actions = Vec::new();
        self.table.on(event, Instant::now(), &mut actions);
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Say(line) => self.reporter.say(line),
            Action::Kill(index, _) => self.signal(index, Signal::KILL),
            Action::Spawn(index) => {
                let Some(process) = self.processes.get(index) else { return };
                let join = process.join.as_ref().map(|join| (join.clone(), tokens::needed(join)));
                let (handle, state) = (self.handle.clone(), self.state.clone());
                match join {
                    None | Some((_, Need::Nothing)) => self.launch(index),
                    Some((join, need)) => {
                        tokio::spawn(async move {
                            let note = match tokens::mint(&state, &join, need).await {
                                Ok(()) => Note::Launch(index),
                                Err(_) if need == Need::Spare => Note::Launch(index),
                                Err(failure) => {
                                    let why = format!("no join token: {failure}");
                                    Note::Event(Event::SpawnFailed(index, why))
                                }
                            };
                            handle.note(note).await;
                        });
                    }
                }
            }
        }
    }

    fn launch(&mut self, index: usize) {
        let event = match self.spawn(index) {
            Ok(pid) => Event::Spawned(index, pid),
            Err(error) => Event::SpawnFailed(index, error.to_string()),
        };
        let spawned = matches!(event, Event::Spawned(..));
        self.on_event(event);
        if spawned {
            self.renew_cut(index);
        }
    }

    fn spawn(&mut self, index: usize) -> io::Result<u32> {
        let Some(process) = self.processes.get(index) else {
            return Err(io::Error::other("no such process"));
        };
        let log = self.state.open_log(&process.name)?;
        // A rebuilt binary leaves the path pointing nowhere; what runs now is still behind /proc/self/exe.
        let program = if self.executable.exists() { self.executable.clone() } else { "/proc/self/exe".into() };
        let mut command = match &process.program {
            Some(other) => Spawn::new(other),
            None => {
                let mut command = Spawn::new(program);
                command.args(["role", process.role.word()]);
                command
            }
        };
        let mut child = command
            .args(&process.args)
            .env(MARK, self.state.root())
            .current_dir(self.state.root())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C at the terminal reaches the supervisor, which ends things in order.
            .process_group(0)
            .spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
        if let Some(slot) = self.running.get_mut(index) {
            // Not reaped before the task below runs, so the pid is still its own.
            *slot = process::Process::open(pid)?;
        }
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let how = match child.wait().await {
                Ok(status) => describe(status),
                Err(error) => format!("was lost: {error}"),
            };
            handle.note(Note::Event(Event::Exited(index, how))).await;
        });
        Ok(pid)
    }

    fn signal(&self, index: usize, signal: Signal) {
        if let Some(Some(process)) = self.running.get(index)
            && let Err(error) = process.signal(signal)
        {
            self.reporter.say(format!("cannot signal pid {}: {error}", process.pid()));
        }
    }

    async fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Status => Reply::Processes { processes: self.rows_with_supervisor() },
            Request::Kill { target, for_ms } => self.drill_kill(&target, Duration::from_millis(for_ms)).await,
            Request::Cut { clusters, for_ms } => self.drill_cut(&clusters, Duration::from_millis(for_ms)).await,
            Request::EndDrills => self.drill_end().await,
            Request::Stop => Reply::Refused { message: "already stopping".to_owned() },
        }
    }

    async fn drill_kill(&mut self, target: &str, time: Duration) -> Reply {
        let indexes = match Plan::targets(&self.processes, target) {
            Ok(indexes) => indexes,
            Err(message) => return Reply::Refused { message },
        };
        let until = Instant::now() + time;
        let mut lines = Vec::new();
        for index in &indexes {
            let Some(process) = self.processes.get(*index) else { continue };
            let name = process.name.clone();
            let pid = self.running.get(*index).and_then(Option::as_ref).map(process::Process::pid);
            self.on_event(Event::KeepDown(*index, until));
            lines.push(match pid {
                Some(pid) => format!("killed {name} (pid {pid})"),
                None => format!("{name} was down already"),
            });
        }
        for index in &indexes {
            if let Some(Some(process)) = self.running.get(*index) {
                process.ended(KILLED_WITHIN).await;
            }
        }
        let summary = format!("drill: {target} is kept down for {}", duration::display(time));
        self.reporter.say(&summary);
        lines.push(summary);
        Reply::Done { lines }
    }

    async fn drill_cut(&mut self, clusters: &[String], time: Duration) -> Reply {
        let known: Vec<String> = self.clusters();
        let cut = match Cut::new(clusters, &known, Instant::now() + time) {
            Ok(cut) => cut,
            Err(message) => return Reply::Refused { message },
        };
        if let Err(message) = self.end_cut().await {
            self.reporter.say(format!("drill: {message}"));
        }
        let outcome = self.post_to_gateways("/drill/cut", |cluster| cut.body(cluster, &known, Instant::now())).await;
        let summary = format!("drill: {} cut off for {}", clusters.join(","), duration::display(time));
        self.cut = Some(cut);
        self.reporter.say(&summary);
        match outcome {
            Ok(()) => Reply::Done { lines: vec![summary] },
            Err(message) => Reply::Done { lines: vec![summary, message] },
        }
    }

    async fn drill_end(&mut self) -> Reply {
        let ended = self.end_cut().await;
        self.on_event(Event::Release);
        let mut lines = vec!["every drill has ended".to_owned()];
        lines.extend(ended.err());
        self.reporter.say("drill: ended");
        Reply::Done { lines }
    }

    /// Ends the cut in force, if there is one; a gateway that cannot be told ends it by itself in its time.
    async fn end_cut(&mut self) -> Result<(), String> {
        if self.cut.take().is_none() {
            return Ok(());
        }
        self.post_to_gateways("/drill/end", |_| Some(serde_json::json!({}))).await
    }

    /// Posts to every running gateway whose cluster has a body. The error names those that did not take it.
    async fn post_to_gateways(
        &self,
        path: &str,
        body: impl Fn(&str) -> Option<serde_json::Value>,
    ) -> Result<(), String> {
        let posts = self.processes.iter().enumerate().filter_map(|(index, process)| {
            let (cluster, socket) = (process.cluster.as_deref()?, process.admin_socket.as_deref()?);
            self.running.get(index)?.as_ref()?;
            let body = body(cluster)?;
            Some(async move {
                let outcome = admin::post(self.state.root(), socket, path, &body).await;
                outcome.err().map(|error| format!("{}: {error:#}", process.name))
            })
        });
        let failed: Vec<String> = futures_util::future::join_all(posts).await.into_iter().flatten().collect();
        if failed.is_empty() { Ok(()) } else { Err(format!("not reached: {}", failed.join("; "))) }
    }

    /// A gateway that starts in the middle of a cut is cut too, as soon as it listens.
    fn renew_cut(&self, index: usize) {
        let Some(process) = self.processes.get(index).filter(|process| process.role == Role::Gateway) else { return };
        let (Some(cut), Some(socket)) = (self.cut.clone(), process.admin_socket.clone()) else { return };
        let (root, cluster) = (self.state.root().to_owned(), process.cluster.clone().unwrap_or_default());
        let known = self.clusters();
        tokio::spawn(async move {
            while let Some(body) = cut.body(&cluster, &known, Instant::now()) {
                if admin::post(&root, &socket, "/drill/cut", &body).await.is_ok() {
                    return;
                }
                tokio::time::sleep(CUT_RETRY).await;
            }
        });
    }

    fn clusters(&self) -> Vec<String> {
        let mut names: Vec<String> = self.processes.iter().filter_map(|process| process.cluster.clone()).collect();
        names.dedup();
        names
    }

    fn rows(&self) -> Vec<ProcessView> {
        self.table
            .rows()
            .zip(self.processes.iter())
            .map(|((name, state, restarts), process)| ProcessView {
                name: name.to_owned(),
                role: process.role.word().to_owned(),
                cluster: process.cluster.clone(),
                pid: state.pid(),
                state: state.word().to_owned(),
                restarts,
            })
            .collect()
    }

    fn rows_with_supervisor(&self) -> Vec<ProcessView> {
        let own = ProcessView {
            name: SUPERVISOR.to_owned(),
            role: SUPERVISOR.to_owned(),
            cluster: None,
            pid: Some(std::process::id()),
            state: "running".to_owned(),
            restarts: 0,
        };
        std::iter::once(own).chain(self.rows()).collect()
    }

    /// Ends every process: traffic first, so that nothing is sent to what is already gone; the control plane last.
    async fn end_all(&mut self, told: Option<&mpsc::Sender<Reply>>, stop: &mut Stop) {
        self.on_event(Event::Stop);
        for (roles, what) in [
            (&[Role::Gateway][..], "gateways"),
            (&[Role::Agent, Role::Demo][..], "agents and demo backends"),
            (&[Role::ControlPlane][..], "control-plane members"),
            (&[Role::Prometheus][..], "Prometheus"),
        ] {
            let indexes: Vec<usize> = self
                .processes
                .iter()
                .enumerate()
                .filter(|(index, process)| roles.contains(&process.role) && self.table.is_live(*index))
                .map(|(index, _)| index)
                .collect();
            if indexes.is_empty() {
                continue;
            }
            let line = match roles {
                [Role::Prometheus] => format!("stopping {what}"),
                _ => format!("stopping {} {what}", indexes.len()),
            };
            self.reporter.say(&line);
            if let Some(told) = told {
                let _ = told.try_send(Reply::Progress { line });
            }
            for index in &indexes {
                self.signal(*index, Signal::TERM);
            }
            let deadline = tokio::time::Instant::now() + STOP_GRACE;
            self.reap(&indexes, deadline, stop).await;
            for index in &indexes {
                if self.table.is_live(*index) {
                    let name = self.processes.get(*index).map_or("", |process| &process.name);
                    self.reporter.say(format!("{name} did not end within {}: killed", duration::display(STOP_GRACE)));
                    self.signal(*index, Signal::KILL);
                }
            }
            self.reap(&indexes, tokio::time::Instant::now() + KILLED_WITHIN, stop).await;
        }
    }

    /// Takes notes until these processes have ended, the deadline has passed, or a second signal says: now.
    async fn reap(&mut self, indexes: &[usize], deadline: tokio::time::Instant, stop: &mut Stop) {
        while indexes.iter().any(|index| self.table.is_live(*index)) {
            tokio::select! {
                Some(note) = self.notes.recv() => self.on_note(note),
                () = stop.requested() => return,
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }
}

/// SIGTERM, SIGINT and SIGHUP, each of which asks to stop; asking twice asks to hurry.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stop {
    fn install() -> Outcome<Self> {
        let install =
            |kind| signal(kind).map_err(|error| Failure::refused(format!("cannot install signal handlers: {error}")));
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
            hangup: install(SignalKind::hangup())?,
        })
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// A few per process; senders wait when it is full.
const NOTES_MAX: usize = 256;
const CALLS_MAX: usize = 16;
/// Only a bound on the wait; nothing is due.
const IDLE_WAKE: Duration = Duration::from_secs(3600);
/// Longer than a drain of streams that are already idle, shorter than a person's patience; three phases have it each.
const STOP_GRACE: Duration = Duration::from_secs(5);
const KILLED_WITHIN: Duration = Duration::from_secs(2);
const CUT_RETRY: Duration = Duration::from_millis(50);
const LAST_WORD: Duration = Duration::from_secs(1);
