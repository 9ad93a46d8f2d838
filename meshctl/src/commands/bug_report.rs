//! `bug-report`: everything that whoever is asked for help will ask for, in one archive, without secrets.

use std::fs::{self, OpenOptions};
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, stream};
use serde_json::Value;

use super::{Context, check, events, files, identity, resources, scrape, show};
use crate::bundle::Bundle;
use crate::cli::{BugReportArgs, EventsArgs, GetArgs, WatchArgs};
use crate::exit::{Failure, Outcome};
use crate::output::{Format, Output, Text, talk};

/// `bug-report`.
pub(super) async fn run(context: &Context, args: BugReportArgs) -> Outcome {
    let now = SystemTime::now();
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let stamp = jiff::Timestamp::try_from(now)
        .map_or_else(|_| seconds.to_string(), |at| at.strftime("%Y%m%d-%H%M%S").to_string());
    let folder = format!("archipelago-bug-report-{stamp}");
    let path = args.out.unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(|error| {
        Failure::refused(format!("cannot create {}: {error}", path.display())).hint("name another file with --out FILE")
    })?;
    let mut bundle = Bundle::default();
    bundle.text("meshctl.txt", "this program, and where it runs", &here(context));
    let status = looks(context, &mut bundle).await;
    metrics(&mut bundle, status.as_ref()).await;
    logs(&mut bundle, &context.state().join("logs"));
    bundle.write(&folder, seconds, BufWriter::new(file))?;
    let (there, missing) = bundle.count();
    let contents = bundle.contents();
    let mut text = Text::default();
    for line in contents.lines() {
        text = text.line(line);
    }
    talk(text.render(false).trim_end());
    talk(format!(
        "{there} files, {missing} missing; look through them before you pass them on: tar xzf {}",
        path.display()
    ));
    context.output.print(&serde_json::json!({ "path": path, "files": there, "missing": missing }), || {
        Text::default().line(path.display().to_string())
    })
}

fn here(context: &Context) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo").lines().next().unwrap_or_default().to_owned();
    format!(
        "meshctl {}\nstate directory {}\nkernel {}\n{} cores\n{memory}\n",
        env!("CARGO_PKG_VERSION"),
        context.state().display(),
        kernel.trim(),
        cores
    )
}

/// What the other commands would print; the status is also returned.
async fn looks(context: &Context, bundle: &mut Bundle) -> Option<Value> {
    let watch = WatchArgs { watch: false, interval: Duration::ZERO };
    let status = look(context, bundle, "status.json", "meshctl status", show::status).await;
    look(context, bundle, "services.json", "meshctl services", show::services).await;
    look(context, bundle, "tunnels.json", "meshctl tunnels", show::tunnels).await;
    look(context, bundle, "gateways.json", "meshctl gateways", show::gateways).await;
    look(context, bundle, "events.json", "meshctl events", async |context: &Context| {
        let all = EventsArgs {
            follow: false,
            service: None,
            cluster: None,
            kinds: Vec::new(),
            since: None,
            limit: EVENTS_MAX,
        };
        events::run(context, all).await
    })
    .await;
    look(context, bundle, "resources.json", "meshctl get", async |context: &Context| {
        resources::get(context, GetArgs { kind: None, name: None, namespace: None, watch }).await
    })
    .await;
    look(context, bundle, "check.json", "meshctl check", async |context: &Context| {
        check::once(context, false, Duration::ZERO).await
    })
    .await;
    look(context, bundle, "identities.json", "meshctl identity list", identity::list_all).await;
    status
}

async fn look(
    context: &Context,
    bundle: &mut Bundle,
    name: &str,
    what: &str,
    print: impl AsyncFn(&Context) -> Outcome,
) -> Option<Value> {
    let (output, record) = Output::new(Format::Json).recorded();
    let once = Context { global: context.global.clone(), output };
    let failure = print(&once).await.err();
    // A check that finds something fails, and says it first.
    match (serde_json::from_str::<Value>(&record.take()), failure) {
        (Ok(value), _) => {
            bundle.json(name, what, value.clone());
            Some(value)
        }
        (Err(_), Some(failure)) => {
            bundle.missing(name, failure.render().trim_end());
            None
        }
        (Err(error), None) => {
            bundle.missing(name, &error.to_string());
            None
        }
    }
}

/// Of gateways whose metrics can be reached from here, and of the members and agents beside them.
async fn metrics(bundle: &mut Bundle, status: Option<&Value>) {
    let list = |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let clusters = status.map(|status| list(status, "clusters")).unwrap_or_default();
    let gateways = clusters.iter().flat_map(|cluster| list(cluster, "gateways"));
    let asked =
        gateways.map(|gateway| (text(&gateway, "name"), text(&gateway, "metrics"))).filter(|(_, url)| !url.is_empty());
    let answers = stream::iter(asked).map(|(name, url)| async move { (name, scrape::get(&url).await) });
    let mut answers: Vec<_> = answers.buffer_unordered(SCRAPED_AT_ONCE_MAX).collect().await;
    answers.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, answer) in answers {
        let file = format!("metrics/{name}.txt");
        match answer {
            Ok(text) => bundle.text(file, "its metrics", &text),
            Err(why) => bundle.missing(file, &why),
        }
    }
}

/// Those of processes that `up` started here, without what requests asked for.
fn logs(bundle: &mut Bundle, folder: &Path) {
    let mut open = vec![folder.to_owned()];
    while let Some(inner) = open.pop() {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(&inner).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            // Not what somebody linked to there.
            let Ok(kind) = fs::symlink_metadata(&path).map(|found| found.file_type()) else { continue };
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() && !path.to_string_lossy().ends_with(".access.log") {
                let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
                match files::tail(&path, LOG_BYTES_MAX) {
                    Ok(text) => bundle.text(format!("logs/{name}"), "its log, or the end of it", &text),
                    Err(error) => bundle.missing(format!("logs/{name}"), &error.to_string()),
                }
            }
        }
    }
}

const EVENTS_MAX: u32 = 4_096;
const SCRAPED_AT_ONCE_MAX: usize = 8;
const LOG_BYTES_MAX: u64 = 1024 * 1024;
