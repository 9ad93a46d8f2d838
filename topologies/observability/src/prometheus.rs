//! Configuration of Prometheus and provisioning of Grafana, as files.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

/// One process to scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// One of [`crate::job`].
    pub job: &'static str,
    /// host:port of its metrics.
    pub address: String,
    /// Name for people, which becomes the label `instance`: `paris/gw-1`, `cp-1`.
    pub instance: String,
    /// Its cluster, which becomes the label `cluster`; none for the control plane.
    pub cluster: Option<String>,
}

/// A configuration of Prometheus that scrapes these every `interval_seconds` and reads `rule_files`. JSON, which is YAML.
pub fn config(targets: &[Target], rule_files: &[String], interval_seconds: u32) -> String {
    let jobs: BTreeSet<&str> = targets.iter().map(|target| target.job).collect();
    let scrapes = jobs.into_iter().map(|job| {
        let of_job = targets.iter().filter(|target| target.job == job).map(|target| {
            let cluster = target.cluster.iter().map(|cluster| ("cluster", cluster));
            let labels: BTreeMap<&str, &String> = [("instance", &target.instance)].into_iter().chain(cluster).collect();
            json!({ "targets": [target.address], "labels": labels })
        });
        json!({ "job_name": job, "static_configs": of_job.collect::<Vec<_>>() })
    });
    let interval = format!("{interval_seconds}s");
    let config = json!({
        "global": { "scrape_interval": interval, "evaluation_interval": interval },
        "rule_files": rule_files,
        "scrape_configs": scrapes.collect::<Vec<_>>(),
    });
    format!("{config:#}\n")
}

/// Provisioning of Grafana: a data source at `url`.
pub fn grafana_datasource(url: &str) -> String {
    let source = json!({
        "apiVersion": 1,
        "datasources": [{ "name": "Archipelago", "type": "prometheus", "uid": "archipelago", "access": "proxy", "url": url }],
    });
    format!("{source:#}\n")
}

/// Provisioning of Grafana: the dashboards that lie in the folder `path`.
pub fn grafana_provider(path: &str) -> String {
    let provider = json!({
        "apiVersion": 1,
        "providers": [{
            "name": "archipelago",
            "folder": "Archipelago",
            "type": "file",
            "allowUiUpdates": false,
            "options": { "path": path },
        }],
    });
    format!("{provider:#}\n")
}
