//! Every file in `topologies/` is valid, and a bogus key in any of its maps is refused by name and line.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on may say so by panicking")]

use std::{fs, path::PathBuf};

use archipelago_model::{admit, document::Document, resource::Resource};

fn files() -> Vec<Document> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../topologies");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
        .into_iter()
        .map(|path| Document::from_bytes(path.display().to_string(), &fs::read(&path).unwrap()).unwrap())
        .collect()
}

#[test]
fn every_topology_is_valid() {
    for file in files() {
        let federation = admit::topology(&file).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let clusters = federation.resources.iter().filter(|resource| matches!(resource, Resource::Cluster(_)));
        assert_eq!(clusters.count(), federation.topology.spec.clusters.len(), "{}", file.file);
    }
}

#[test]
fn the_default_topology_is_the_documented_one() {
    let file = files().into_iter().find(|file| file.file.ends_with("three-clusters.yaml")).unwrap();
    let federation = admit::topology(&file).unwrap();
    let spec = &federation.topology.spec;
    let shown: Vec<(&str, &str, u32, usize)> = spec
        .clusters
        .iter()
        .map(|cluster| (cluster.name.as_str(), cluster.region.as_str(), cluster.gateways, cluster.services.len()))
        .collect();
    assert_eq!(shown, [("paris", "eu-west", 2, 4), ("frankfurt", "eu-central", 2, 4), ("tokyo", "ap-northeast", 2, 4)]);
    assert_eq!(spec.control_plane.nodes, 3);
    let exports = federation.resources.iter().filter(|resource| matches!(resource, Resource::ServiceExport(_)));
    assert_eq!(exports.count(), 4);
}

#[test]
fn a_bogus_key_in_any_map_is_refused_by_name_and_line() {
    for file in files() {
        let mut tried = 0;
        for (line, text) in with_bogus_key(&file.text) {
            let document = Document { file: file.file.clone(), text };
            let problems = admit::validate_any(&[document]).expect_err("accepted a bogus key");
            assert!(
                problems.iter().any(|problem| problem.message.contains("`zzBogus`") && problem.line == line),
                "line {line}: {problems:?}"
            );
            tried += 1;
        }
        assert!(tried > 10, "only {tried} maps found in {}", file.file);
    }
}

/// The same for service files, which stand beside a running federation and not in `topologies/`.
#[test]
fn a_bogus_key_in_any_map_of_a_service_file_is_refused_by_name_and_line() {
    let mut tried = 0;
    for (line, text) in with_bogus_key(SERVICES) {
        let document = Document { file: "paris.yaml".into(), text };
        let problems = admit::validate_any(&[document]).expect_err("accepted a bogus key");
        assert!(
            problems.iter().any(|problem| problem.message.contains("`zzBogus`") && problem.line == line),
            "line {line}: {problems:?}"
        );
        tried += 1;
    }
    assert!(tried > 10, "only {tried} maps found");
    assert_eq!(
        admit::validate_any(&[Document { file: "paris.yaml".into(), text: SERVICES.into() }]).unwrap().services.len(),
        2
    );
}

const SERVICES: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: Service
metadata: { name: checkout, namespace: shop }
spec:
  port: 80
  endpoints:
    - { address: \"10.0.0.7:8080\", version: v2, instance: a }
    - address: \"10.0.0.8:8080\"
  healthCheck:
    http: /healthz
    interval: 250ms
---
apiVersion: archipelago.dev/v1alpha1
kind: Service
metadata:
  name: ledger
  namespace: shop
spec: { port: 9000, protocol: tcp, healthCheck: { tcp: true } }
---
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: { name: checkout, namespace: shop }
";

/// The text once per map, with a bogus key in it, and the line on which it stands. Block maps get a line of their own
/// before their first key, flow maps get the key inside their braces.
fn with_bogus_key(text: &str) -> Vec<(u32, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut variants = Vec::new();
    let mut previous: Option<usize> = Some(usize::MAX);
    for (index, line) in lines.iter().enumerate() {
        let number = u32::try_from(index).unwrap() + 1;
        let content = line.trim_start();
        if content.starts_with('#') || content.is_empty() {
            continue;
        }
        let mut variant = |replacement: &[String], at: u32| {
            let mut all: Vec<String> = lines.iter().map(ToString::to_string).collect();
            all.splice(index..=index, replacement.iter().cloned());
            variants.push((at, all.join("\n")));
        };
        if line.starts_with("---") {
            previous = None;
            continue;
        }
        if let Some(brace) = line.find('{') {
            let (before, after) = line.split_at(brace + 1);
            variant(&[format!("{before} zzBogus: 1,{after}")], number);
        }
        // The first key of a block map: deeper than what came before, or behind a dash.
        let indent = line.len() - content.len();
        let dash = content.starts_with("- ") && !content.starts_with("- {");
        let opens = match previous {
            None | Some(usize::MAX) => true,
            Some(before) => indent > before && content.contains(':') && !content.starts_with('-'),
        };
        if dash {
            let inner = " ".repeat(indent + 2);
            let first = format!("{}- zzBogus: 1", " ".repeat(indent));
            variant(&[first, format!("{inner}{}", content.trim_start_matches("- "))], number);
        } else if opens {
            variant(&[format!("{}zzBogus: 1", " ".repeat(indent)), (*line).to_owned()], number);
        }
        previous = Some(if dash { indent + 2 } else { indent });
    }
    variants
}
