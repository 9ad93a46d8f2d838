//! What is checked in is what the code makes, and rules and dashboards name only what there is.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use archipelago_observability::{ALERTING_RULES, RECORDING_RULES, dashboards, manifests};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every file that is made, and what is in it.
fn made() -> Vec<(PathBuf, String)> {
    let (here, chart) = (root().join("topologies/observability"), root().join("topologies/kubernetes/chart/templates"));
    let boards = dashboards::all().into_iter();
    let mut files: Vec<_> =
        boards.map(|board| (here.join("dashboards").join(board.file()), format!("{:#}\n", board.json()))).collect();
    files.push((chart.join("dashboards.yaml"), manifests::dashboards_template()));
    files.push((chart.join("prometheusrule.yaml"), manifests::rules_template()));
    files
}

#[test]
fn the_files_are_those_that_the_code_makes() {
    if std::env::var_os("UPDATE").is_some() {
        for (path, text) in made() {
            fs::write(path, text).unwrap();
        }
    }
    for (path, text) in made() {
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "{} is stale: UPDATE=1 cargo test -p archipelago-observability", path.display());
    }
    let boards = fs::read_dir(root().join("topologies/observability/dashboards")).unwrap().count();
    assert_eq!(boards, dashboards::all().len(), "a file is left of a dashboard that is not made any more");
}

/// Words of an expression that are names of our metrics, without what a histogram adds to its own.
fn metrics_of(expr: &str) -> BTreeSet<String> {
    let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    let ours = words.filter(|word| (word.starts_with("mesh_") || word.starts_with("process_")) && !word.contains(':'));
    ours.map(|word| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
    })
    .collect()
}

fn expressions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for board in dashboards::all() {
        let json = board.json();
        for panel in json["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let place = format!("{} / {}", board.file(), panel["title"]);
                found.push((place, target["expr"].as_str().unwrap().to_owned()));
            }
        }
        for variable in json["templating"]["list"].as_array().unwrap() {
            found.push((
                format!("{} ${}", board.file(), variable["name"]),
                variable["query"].as_str().unwrap().to_owned(),
            ));
        }
    }
    for rule in rules() {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap().to_owned();
        found.push((name, rule["expr"].as_str().unwrap().to_owned()));
    }
    found
}

fn rules() -> Vec<Value> {
    let mut rules = Vec::new();
    for text in [RECORDING_RULES, ALERTING_RULES] {
        let file: Value = serde_saphyr::from_str(text).unwrap();
        for group in file["groups"].as_array().unwrap() {
            rules.extend(group["rules"].as_array().unwrap().iter().cloned());
        }
    }
    rules
}

/// The reference is held against real processes by a test of `meshctl`, so that what is in it exists.
#[test]
fn every_metric_that_is_asked_for_is_in_the_reference() {
    let reference = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let known: BTreeSet<&str> =
        reference.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    for (place, expr) in expressions() {
        for metric in metrics_of(&expr) {
            assert!(known.contains(&*metric), "{place}: no metric is called {metric}");
        }
    }
}

#[test]
fn every_recorded_sum_that_is_asked_for_is_recorded() {
    let rules = rules();
    let recorded: BTreeSet<&str> = rules.iter().filter_map(|rule| rule["record"].as_str()).collect();
    for (place, expr) in expressions() {
        for word in expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':') {
            assert!(!word.contains(':') || recorded.contains(word), "{place}: {word} is not recorded");
        }
    }
}

/// `promtool test rules` runs them; what is asked here is that there is one, and that it sees the alert fire.
#[test]
fn every_alert_is_seen_to_fire_by_a_test() {
    let text = fs::read_to_string(root().join("topologies/observability/rules/tests/alerts.yaml")).unwrap();
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    let tests = file["tests"].as_array().unwrap().iter().filter_map(|test| test["alert_rule_test"].as_array());
    let fires = |test: &&Value| test["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
    let fired: BTreeSet<&str> = tests.flatten().filter(fires).filter_map(|test| test["alertname"].as_str()).collect();
    for rule in rules() {
        let Some(name) = rule["alert"].as_str() else { continue };
        assert!(fired.contains(name), "no test sees {name} fire: topologies/observability/rules/tests/alerts.yaml");
    }
}

#[test]
fn every_alert_says_what_it_means_and_has_its_page() {
    let mut pages = BTreeSet::new();
    for alert in rules().iter().filter(|rule| rule["alert"].is_string()) {
        let name = alert["alert"].as_str().unwrap();
        for field in ["summary", "description", "runbook_url"] {
            assert!(alert["annotations"][field].as_str().is_some_and(|text| !text.is_empty()), "{name}: {field}");
        }
        assert!(matches!(alert["labels"]["severity"].as_str(), Some("critical" | "warning")), "{name}: severity");
        let page = format!("{name}.md");
        assert!(
            alert["annotations"]["runbook_url"].as_str().unwrap().ends_with(&format!("/docs/runbooks/{page}")),
            "{name}"
        );
        let text = fs::read_to_string(root().join("docs/runbooks").join(&page))
            .unwrap_or_else(|error| panic!("{page}: {error}"));
        for heading in ["## What it means", "## How to see it", "## What to do"] {
            assert!(text.contains(heading), "{page} lacks {heading}");
        }
        pages.insert(page);
    }
    for entry in fs::read_dir(root().join("docs/runbooks")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || pages.contains(&name), "{name} is the page of no alert");
    }
    // And panels lead to pages that there are.
    for board in dashboards::all() {
        for panel in board.json()["panels"].as_array().unwrap() {
            for link in panel["links"].as_array().into_iter().flatten() {
                let page = link["url"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
                assert!(pages.contains(&page), "{}: {} leads to {page}", board.file(), panel["title"]);
            }
        }
    }
}
