//! The shell blocks of the documentation, run as a reader would run them.
//!
//! The blocks of a page are run in their order by bash, which keeps its variables from one to the next, in an empty folder that has the
//! repository's `topologies/`. Programs are those of this build; `up` gets ports of its own. A page that starts no federation finds
//! the one that all such pages share. What a page shows of the output is looked for in it (`pages/mod.rs`).

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;
mod pages;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use harness::command::MESHCTL;
use harness::suite::{self, alone, shared};
use harness::{Connection, Federation, saw};
use pages::{Block, Fate};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::process::{Child, Command};

fn main() -> ExitCode {
    let mut tests = Vec::from(alone![every_page_with_blocks_to_run_is_run, getting_started, vms]);
    tests.extend(shared![readme, concepts, operations, migrating, events, top, json_names]);
    suite::run(&tests)
}

const ALONE: [&str; 2] = ["docs/getting-started.md", "docs/vms.md"];
const SHARED: [&str; 6] =
    ["README.md", "docs/concepts.md", "docs/operations.md", "docs/migrating.md", "docs/events.md", "docs/top.md"];

async fn every_page_with_blocks_to_run_is_run() {
    let is_ours = |block: &Block| matches!(&block.fate, Fate::Run(name) if name == "federation");
    let pages = pages::pages().into_iter().filter(|(_, text)| pages::blocks(text).iter().any(is_ours));
    let wanted: BTreeSet<String> = pages.map(|(name, _)| name).collect();
    let known: BTreeSet<String> = ALONE.iter().chain(&SHARED).map(|name| (*name).to_owned()).collect();
    assert_eq!(wanted, known, "the lists in this file name the pages whose blocks are run");
}

async fn getting_started() {
    let federation = Federation::plan(None);
    run(&federation, "docs/getting-started.md").await;
    assert!(!federation.state.exists(), "the page ends what it starts");
}

async fn vms() {
    assert!(Path::new(&founder()).exists(), "{} is missing: `cargo build --workspace` first", founder());
    run(&Federation::plan(None), "docs/vms.md").await;
}

async fn readme(federation: &Federation) {
    run(federation, "README.md").await;
}

async fn concepts(federation: &Federation) {
    run(federation, "docs/concepts.md").await;
}

async fn operations(federation: &Federation) {
    run(federation, "docs/operations.md").await;
}

async fn migrating(federation: &Federation) {
    run(federation, "docs/migrating.md").await;
}

async fn events(federation: &Federation) {
    run(federation, "docs/events.md").await;
}

async fn top(federation: &Federation) {
    run(federation, "docs/top.md").await;
}

/// `docs/reference/json.md` has exactly the names that commands print; `UPDATE=1` writes it anew.
async fn json_names(federation: &Federation) {
    federation.ok("split set shop/checkout paris=50 tokyo=50").await;
    federation.apply(FAILOVER).await.expect(0);
    let traffic = async || loop {
        let mut client = Connection::http1(&federation.gateway("frankfurt/gw-1").http).await;
        assert_eq!(client.get("checkout.shop", "/", &[]).await.status, 200);
    };
    let id = "spiffe://mesh.example/cluster/paris/gateway/gw-1";
    let mut page = JSON_INTRODUCTION.replace("OCCASIONAL", &OCCASIONAL.map(|name| format!("`{name}`")).join(", "));
    for command in JSON_COMMANDS {
        let line = command.replace("SPIFFE_ID", id);
        let printed = tokio::select! {
            printed = federation.json(&line) => printed,
            () = traffic() => unreachable!("it ends with the command"),
        };
        let mut names = BTreeMap::new();
        collect("", &printed, &mut names);
        let _ = writeln!(page, "\n## meshctl {command}\n\n| name | kind, where it is not null |\n| --- | --- |");
        for (name, kinds) in names {
            let kinds = if kinds.is_empty() { "-".to_owned() } else { Vec::from_iter(kinds).join(" or ") };
            let _ = writeln!(page, "| `{name}` | {kinds} |");
        }
    }
    let path = pages::root().join("docs/reference/json.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    // What is null, now or when the page was written, says nothing of what it is otherwise.
    let is_same = |(one, other): (&str, &str)| match (one.rsplit_once(" | "), other.rsplit_once(" | ")) {
        (Some((one, kind)), Some((other, wanted))) => {
            one == other && (kind == wanted || [kind, wanted].contains(&"- |"))
        }
        _ => one == other,
    };
    let apart = page.lines().zip(found.lines()).find(|pair| !is_same(*pair));
    assert_eq!(apart, None, "what is printed, and what {} says: UPDATE=1 writes it", path.display());
    assert_eq!(page.lines().count(), found.lines().count(), "{}: UPDATE=1 writes it", path.display());
}

/// The names below a value, each with what it may hold.
fn collect(at: &str, value: &Value, names: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    let kind = match value {
        Value::Null => "",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(items) => {
            for item in items {
                collect(&format!("{at}[]"), item, names);
            }
            "list"
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let place = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                if USUALLY_EMPTY.contains(&name.as_str()) {
                    names.entry(place).or_default().insert("list");
                } else if !OCCASIONAL.contains(&name.as_str()) {
                    collect(&place, value, names);
                }
            }
            "object"
        }
    };
    if !at.is_empty() && !at.ends_with("[]") {
        names.entry(at.to_owned()).or_default().extend((!kind.is_empty()).then_some(kind));
    }
}

/// Runs the blocks of a page.
async fn run(federation: &Federation, page: &str) {
    let folder = Folder::new(federation, page);
    let mut started = Started::default();
    let mut count = 0;
    for block in pages::blocks(&pages::page(page)) {
        let place = format!("{page}:{}", block.line);
        match &block.fate {
            Fate::Run(name) if name == "federation" => folder.run(&block, &place, &mut started).await,
            Fate::Start(name) => started.0.push((name.clone(), folder.start(&block, name))),
            Fate::Run(_) | Fate::Not(_) | Fate::Unsaid => continue,
        }
        count += 1;
    }
    saw!("{count} blocks of {page}");
}

/// The program that founds a federation, built beside `meshctl`.
fn founder() -> String {
    Path::new(MESHCTL).with_file_name("archipelago-control-plane").display().to_string()
}

/// Where the blocks of one page are run.
struct Folder {
    path: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Folder {
    fn new(federation: &Federation, page: &str) -> Self {
        let path = federation.scratch().join(page.replace(['/', '.'], "-"));
        let programs = path.join(".programs");
        fs::create_dir_all(&programs).unwrap();
        std::os::unix::fs::symlink(pages::root().join("topologies"), path.join("topologies")).unwrap();
        let (port, founder) = (federation.base_port, founder());
        // What `up` starts is this program under other names; only the founding of a federation is a program of its own.
        let as_role = |role: &str| format!("exec {MESHCTL} role {role} \"$@\"");
        for (name, body) in [
            ("meshctl", format!("[ \"$1\" != up ] || exec {MESHCTL} \"$@\" --base-port {port}\nexec {MESHCTL} \"$@\"")),
            ("archipelago-agent", as_role("agent")),
            ("archipelago-gateway", as_role("gateway")),
            (
                "archipelago-control-plane",
                format!("[ \"$1\" = run ] || exec {founder} \"$@\"\nshift\n{}", as_role("control-plane")),
            ),
        ] {
            let program = programs.join(name);
            fs::write(&program, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let inherited = std::env::var("PATH").unwrap_or_default();
        // A machine is an address of its own here, so that each has the usual ports.
        let network = format!("127.{}.{}", rand::random_range(1..=254_u8), rand::random_range(1..=254_u8));
        let environment = vec![
            ("PATH", format!("{}:{inherited}", programs.display())),
            ("ARCHIPELAGO_STATE", federation.state.display().to_string()),
            ("CONTROL_PLANE", format!("{network}.1")),
            ("PARIS", format!("{network}.2")),
            ("TOKYO", format!("{network}.3")),
        ];
        Self { path, environment }
    }

    /// A shell with the variables of the blocks before.
    fn bash(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(&self.path);
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    async fn run(&self, block: &Block, place: &str, started: &mut Started) {
        let script = format!("[ ! -f .variables ] || . ./.variables\nset -a\n{}\nexport -p > .variables", block.text);
        let output = self.path.join(".output");
        let file = fs::File::create(&output).unwrap();
        let mut shell = self.bash(&script).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let ended = tokio::time::timeout(BLOCK_MAX, shell.wait()).await;
        let printed = String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
        let Ok(ended) = ended else {
            end(&shell);
            panic!("{place}: still running after {BLOCK_MAX:?}\n{}\n{printed}\n{}", block.text, started.said(self));
        };
        let code = ended.unwrap().code();
        assert_eq!(code, Some(0), "{place}\n{}\n{printed}\n{}", block.text, started.said(self));
        let missing = pages::missing(&printed, &block.prints);
        assert_eq!(missing, None, "{place} says that this is printed; this was:\n{}\n{printed}", block.text);
    }

    /// Starts what does not end by itself. It ends with this process at the latest, which holds the other end of its shell's pipe.
    fn start(&self, block: &Block, name: &str) -> Child {
        let file = fs::File::create(self.path.join(format!(".{name}.log"))).unwrap();
        let script = format!(". ./.variables\n{} &\ncat >/dev/null\nkill -9 $!", block.text);
        let mut shell = self.bash(&script);
        shell.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap()
    }
}

/// What runs beside the blocks; ended at the latest when it is dropped.
#[derive(Default)]
struct Started(Vec<(String, Child)>);

impl Started {
    /// The last words of each.
    fn said(&self, folder: &Folder) -> String {
        let said = self.0.iter().map(|(name, _)| {
            let log = fs::read_to_string(folder.path.join(format!(".{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("---- {name}\n{}\n", lines[lines.len().saturating_sub(20)..].join("\n"))
        });
        said.collect()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.0.iter().for_each(|(_, shell)| end(shell));
    }
}

/// Kills a shell and everything that it started.
fn end(shell: &Child) {
    if let Some(group) = shell.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// `up` waits two minutes by itself.
const BLOCK_MAX: Duration = Duration::from_secs(150);

const JSON_COMMANDS: [&str; 18] = [
    "status",
    "services",
    "tunnels",
    "gateways",
    "check",
    "cluster list",
    "failover status",
    "events",
    "top --once --interval 1s",
    "slow shop/checkout",
    "explain --from paris --to shop/checkout",
    "split set shop/checkout paris=90 tokyo=10",
    "switch shop/checkout --to tokyo",
    "identity list",
    "identity describe SPIFFE_ID",
    "operator list",
    "token create --cluster paris --role gateway --name gw-9",
    "token list",
];
/// What is only there when something is wrong, uncommon or repeated, and so not in every run of a test.
const OCCASIONAL: [&str; 12] = [
    "clocks",
    "disagreements",
    "error",
    "failure",
    "firstUnixMs",
    "headless",
    "hint",
    "ports",
    "problem",
    "problems",
    "refused",
    "unknown",
];
/// Lists whose items a starved machine may show, and another not.
const USUALLY_EMPTY: [&str; 6] = ["missing", "rejections", "restarted", "stragglers", "warnings", "withoutLedger"];
const JSON_INTRODUCTION: &str = "\
# Names in JSON and YAML

What `-o json` and `-o yaml` print, command by command, generated from a running federation (`UPDATE=1 cargo test -p archipelago-meshctl --test docs_run json_names`).
A name keeps its meaning, and new ones may be added: ignore what you do not know. What is not known is `null`, never 0 or an empty text. `a[].b` is the field `b` of
every item of the list `a`. `get` and `split get` print resources: [their fields](policies.md).

Not listed, since they are only there when there is something to say: OCCASIONAL.
";
const FAILOVER: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: FailoverPolicy
metadata: { name: checkout, namespace: shop }
spec: { service: checkout, order: [{ clusters: [\"@local\"] }, { regions: [\"@same\"] }, { clusters: [paris, frankfurt, tokyo] }] }
";
