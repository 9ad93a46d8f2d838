//! The rules of Grafana Labs' dashboard-linter, by their names there, and a few of our own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use archipelago_observability::dashboards;
use serde_json::Value;

fn each_dashboard(check: impl Fn(&str, &Value)) {
    for board in dashboards::all() {
        check(&board.file(), &board.json());
    }
}

fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

fn each_query(check: impl Fn(&str, &str)) {
    each_dashboard(|file, board| {
        for panel in panels(board) {
            for target in panel["targets"].as_array().unwrap() {
                check(&format!("{file} / {}", panel["title"]), target["expr"].as_str().unwrap());
            }
        }
    });
}

/// Selectors of an expression: the name, what is in its braces, and what comes right behind them.
fn selectors(expr: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let mut rest = expr;
    while let Some(open) = rest.find('{') {
        let start =
            rest[..open].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').map_or(0, |at| at + 1);
        // Values of labels hold no braces here.
        let close = open + rest[open..].find('}').unwrap();
        let behind = &rest[close + 1..];
        found.push((rest[start..open].to_owned(), rest[open + 1..close].to_owned(), behind.to_owned()));
        rest = behind;
    }
    found
}

#[test]
fn template_datasource_rule() {
    each_dashboard(|file, board| {
        let first = &board["templating"]["list"][0];
        assert_eq!(
            (first["type"].as_str(), first["name"].as_str(), first["query"].as_str()),
            (Some("datasource"), Some("datasource"), Some("prometheus")),
            "{file}"
        );
        assert_eq!(first["label"], "Data source", "{file}");
    });
}

#[test]
fn template_job_and_instance_rules() {
    each_dashboard(|file, board| {
        for (name, label) in [("job", "Job"), ("instance", "Instance")] {
            let found =
                board["templating"]["list"].as_array().unwrap().iter().find(|variable| variable["name"] == name);
            let variable = found.unwrap_or_else(|| panic!("{file} has no {name}"));
            assert_eq!(variable["datasource"]["uid"], "${datasource}", "{file} {name}");
            assert_eq!(
                (&variable["type"], &variable["label"]),
                (&Value::from("query"), &Value::from(label)),
                "{file} {name}"
            );
            assert_eq!(
                (&variable["multi"], &variable["allValue"]),
                (&Value::from(true), &Value::from(".+")),
                "{file} {name}"
            );
        }
    });
}

#[test]
fn template_on_time_change_reload_and_label_promql_rules() {
    each_dashboard(|file, board| {
        for variable in board["templating"]["list"].as_array().unwrap().iter().filter(|one| one["type"] == "query") {
            assert_eq!(variable["refresh"], 2, "{file} {}", variable["name"]);
            assert!(
                variable["query"].as_str().unwrap().starts_with("label_values(mesh_"),
                "{file} {}",
                variable["name"]
            );
        }
    });
}

#[test]
fn panel_datasource_title_description_units_and_no_targets_rules() {
    // Of the linter's list of Grafana's units, those that are used here.
    let units = ["none", "reqps", "ops", "pps", "Bps", "bytes", "s", "percentunit"];
    each_dashboard(|file, board| {
        let mut ids = BTreeSet::new();
        for panel in panels(board) {
            let place = format!("{file} / {}", panel["title"]);
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{place}");
            assert!(panel["title"].as_str().is_some_and(|text| !text.is_empty()), "{place}");
            assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{place}: a sentence");
            assert!(units.contains(&panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap()), "{place}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{place}");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{place}: its id is another's, too");
        }
    });
}

#[test]
fn target_job_and_instance_rules() {
    each_query(|place, expr| {
        let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names = words.filter(|word| ["mesh_", "process_", "scrape_"].iter().any(|start| word.starts_with(start)));
        let count = names.count() + expr.matches("up{").count();
        let selectors = selectors(expr);
        assert_eq!(count, selectors.len(), "{place}: a selector without matchers in {expr}");
        for (name, matchers, _) in selectors {
            assert!(
                matchers.contains(r#"job=~"$job""#) && matchers.contains(r#"instance=~"$instance""#),
                "{place}: {name}"
            );
        }
    });
}

#[test]
fn target_counter_agg_and_rate_interval_rules() {
    each_query(|place, expr| {
        for (name, _, behind) in selectors(expr) {
            let is_ranged = behind.starts_with("[$__rate_interval]");
            assert!(is_ranged || !behind.starts_with('['), "{place}: another range than $__rate_interval");
            let is_counter = name.ends_with("_total") || name.ends_with("_bucket");
            let rated = ["rate(", "increase("].iter().any(|call| expr.contains(&format!("{call}{name}{{")));
            assert_eq!(is_counter, is_ranged && rated, "{place}: {name}");
        }
    });
}

#[test]
fn target_promql_rule() {
    // A real Prometheus reads each of them in meshctl's tests; here is what needs none.
    each_query(|place, expr| {
        for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
            assert_eq!(expr.matches(open).count(), expr.matches(close).count(), "{place}: {expr}");
        }
        assert!(!expr.contains('@'), "{place}");
    });
}

#[test]
fn uneditable_dashboard_rule() {
    each_dashboard(|file, board| assert_eq!(board["editable"], false, "{file}"));
}

/// Grafana removed or replaced others (graph, table-old, singlestat, worldmap).
#[test]
fn kinds_of_panels_are_current() {
    let current = ["stat", "timeseries", "state-timeline", "heatmap", "table"];
    each_dashboard(|file, board| {
        for panel in panels(board) {
            assert!(current.contains(&panel["type"].as_str().unwrap()), "{file} / {}", panel["title"]);
        }
    });
}

#[test]
fn dashboards_can_be_told_apart_and_lead_to_each_other() {
    let mut uids = BTreeSet::new();
    for board in dashboards::all() {
        let json = board.json();
        let uid = json["uid"].as_str().unwrap().to_owned();
        assert!(uid.len() <= 40, "Grafana takes no longer ones: {uid}");
        assert!(uids.insert(uid), "{}", board.file());
        assert!(json.get("id").is_none(), "an id belongs to one Grafana");
        assert_eq!(json["links"][0]["tags"], json["tags"], "{}", board.file());
    }
}

/// Nothing lies on anything else, and nothing hangs over the edge.
#[test]
fn panels_have_their_places() {
    each_dashboard(|file, board| {
        let mut taken = BTreeSet::new();
        for panel in board["panels"].as_array().unwrap() {
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{file} / {}", panel["title"]);
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(taken.insert((x, y)), "{file} / {} lies on another", panel["title"]);
                }
            }
        }
    });
}

/// The chart quotes them whole.
#[test]
fn nothing_ends_the_quotes_of_a_template() {
    each_dashboard(|file, board| assert!(!board.to_string().contains('`'), "{file}"));
    assert!(!archipelago_observability::ALERTING_RULES.contains('`'));
}
