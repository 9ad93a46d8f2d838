//! `up --observe`: a Prometheus beside the federation, and files for a Grafana.
//!
//! ```text
//! STATE/observe/prometheus.yml        scrapes every process, reads the rules
//! STATE/observe/rules/                recording and alerting rules
//! STATE/observe/data/                 what Prometheus has gathered
//! STATE/observe/grafana/              provisioning/ for GF_PATHS_PROVISIONING, and the dashboards that it names
//! ```

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use archipelago_observability::prometheus::{self, Target};
use archipelago_observability::{ALERTING_RULES, RECORDING_RULES, dashboards, job};

use super::plan::{Plan, Process, Role};
use super::state::StateDir;
use crate::exit::{Failure, Outcome};

/// What becomes of `--observe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observe {
    dir: PathBuf,
    /// Where Prometheus listens, and its program; `None`: it is not installed.
    prometheus: Option<(SocketAddr, PathBuf)>,
}

impl Observe {
    /// Writes everything for the processes of `plan`, and adds Prometheus to them if this machine has it.
    pub(crate) fn prepare(state: &StateDir, plan: &mut Plan) -> Outcome<Self> {
        let program = std::env::var_os("PATH").and_then(|path| find(&path));
        let address = address(plan.layout.observer())
            .map_err(|error| Failure::refused(format!("no port for Prometheus can be had: {error}")))?;
        let observe = Self { dir: state.observe(), prometheus: program.map(|program| (address, program)) };
        for (path, text) in observe.files(&targets(plan), address) {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)
                    .map_err(|error| Failure::refused(format!("cannot create {}: {error}", parent.display())))?;
            }
            state.write(&path, text.as_bytes(), 0o644)?;
        }
        if let Some((address, program)) = &observe.prometheus {
            plan.processes.push(observe.process(*address, program));
        }
        Ok(observe)
    }

    fn files(&self, targets: &[Target], address: SocketAddr) -> Vec<(PathBuf, String)> {
        let rules = self.dir.join("rules");
        let (provisioning, boards) = (self.dir.join("grafana/provisioning"), self.dir.join("grafana/dashboards"));
        let rule_files = ["recording.yaml", "alerts.yaml"].map(|name| rules.join(name).display().to_string());
        let mut files = vec![
            (self.config(), prometheus::config(targets, &rule_files, SCRAPE_SECONDS)),
            (rules.join("recording.yaml"), RECORDING_RULES.to_owned()),
            (rules.join("alerts.yaml"), ALERTING_RULES.to_owned()),
            (
                provisioning.join("datasources/archipelago.yaml"),
                prometheus::grafana_datasource(&format!("http://{address}")),
            ),
            (
                provisioning.join("dashboards/archipelago.yaml"),
                prometheus::grafana_provider(&boards.display().to_string()),
            ),
        ];
        for dashboard in dashboards::all() {
            files.push((boards.join(dashboard.file()), format!("{:#}\n", dashboard.json())));
        }
        files
    }

    fn process(&self, address: SocketAddr, program: &Path) -> Process {
        let args = [
            format!("--config.file={}", self.config().display()),
            format!("--storage.tsdb.path={}", self.dir.join("data").display()),
            format!("--storage.tsdb.retention.time={RETENTION}"),
            format!("--web.listen-address={address}"),
            "--log.level=warn".to_owned(),
        ];
        Process {
            name: "prometheus".to_owned(),
            role: Role::Prometheus,
            cluster: None,
            args: args.into(),
            join: None,
            admin_socket: None,
            program: Some(program.to_owned()),
        }
    }

    fn config(&self) -> PathBuf {
        self.dir.join("prometheus.yml")
    }

    /// What the guide says of it.
    pub(crate) fn guide(&self) -> String {
        let dir = self.dir.display();
        let mut text = String::new();
        let _ = match &self.prometheus {
            Some((address, _)) => writeln!(text, "\nPrometheus is at http://{address}/ and scrapes every process."),
            None => writeln!(
                text,
                "\nPrometheus is not installed, or not in PATH: `apt install prometheus`, or https://prometheus.io/download. \
                 Its configuration is {}; the next `up --observe` starts it.",
                self.config().display()
            ),
        };
        let _ = writeln!(
            text,
            "For Grafana, dashboards and data source: GF_PATHS_PROVISIONING={dir}/grafana/provisioning grafana server"
        );
        text
    }
}

/// Every process of the plan that has metrics.
fn targets(plan: &Plan) -> Vec<Target> {
    let target = |process: &Process, job, flag: &str| {
        let at = process.args.iter().position(|arg| arg == flag)?;
        let (address, instance) = (process.args.get(at + 1)?.clone(), process.name.clone());
        Some(Target { job, address, instance, cluster: process.cluster.clone() })
    };
    let of = |process: &Process| match process.role {
        Role::ControlPlane => target(process, job::CONTROL_PLANE, "--listen-metrics"),
        Role::Agent => target(process, job::AGENT, "--metrics"),
        Role::Gateway => target(process, job::GATEWAY, "--metrics"),
        Role::Demo | Role::Prometheus => None,
    };
    plan.processes.iter().filter_map(of).collect()
}

/// `wanted`, or a port that is free where somebody else has that one.
fn address(wanted: SocketAddr) -> std::io::Result<SocketAddr> {
    let listener =
        TcpListener::bind(wanted).or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
    listener.local_addr()
}

/// The program in a list of directories such as `PATH`.
fn find(path: &OsStr) -> Option<PathBuf> {
    let runs =
        |file: &PathBuf| file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    std::env::split_paths(path).filter(|dir| dir.is_absolute()).map(|dir| dir.join("prometheus")).find(runs)
}

/// One machine, looked at by one person, who wants to see what a drill does.
const SCRAPE_SECONDS: u32 = 2;
const RETENTION: &str = "2d";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::plan::Knobs;

    #[test]
    fn every_process_with_metrics_is_scraped() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        let document = archipelago_model::document::Document {
            file: "three-clusters.yaml".into(),
            text: include_str!("../../../topologies/three-clusters.yaml").into(),
        };
        let topology = archipelago_model::admit::topology(&document).unwrap().topology.spec;
        let plan = Plan::new(
            &topology,
            &state,
            Knobs { host: crate::up::layout::HOST_DEFAULT, base_port: 7400, workers: 1, access_log: false },
        )
        .unwrap();
        let targets = targets(&plan);
        // Three members, three agents, six gateways.
        assert_eq!(targets.len(), 12);
        let gateway = targets.iter().find(|target| target.instance == "tokyo/gw-2").unwrap();
        assert_eq!((gateway.job, gateway.cluster.as_deref()), (job::GATEWAY, Some("tokyo")));
        assert_eq!(gateway.address, plan.layout.gateway(2, 1).metrics.to_string());
        assert!(plan.claims.iter().all(|claim| claim.port != plan.layout.observer().port()), "a port of its own");
    }

    #[test]
    fn only_a_program_is_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prometheus");
        std::fs::write(&file, "").unwrap();
        assert_eq!(find(dir.path().as_os_str()), None, "it cannot be run");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(dir.path().as_os_str()), Some(file));
        assert_eq!(find(OsStr::new("")), None);
    }

    #[test]
    fn a_port_that_somebody_has_is_left_to_him() {
        let theirs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let held = TcpListener::bind(theirs);
        let held = held.or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        assert_ne!(address(held.local_addr().unwrap()).unwrap(), held.local_addr().unwrap());
    }
}
