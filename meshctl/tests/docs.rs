//! The documentation: its links lead somewhere, and what it says is held by a test is.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod pages;

use std::collections::BTreeSet;

use pages::{Fate, pages, root};

/// Targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<&str> {
    let mut in_code = false;
    let mut links = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](").filter(|_| !in_code) {
            let Some((target, after)) = after.split_once(')') else { break };
            links.push(target);
            rest = after;
        }
    }
    links
}

/// Anchors as GitHub makes them of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let anchor = |heading: &str| -> String {
        let kept = heading.trim().to_lowercase().chars().map(|c| if c == ' ' { '-' } else { c }).collect::<String>();
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for (page, text) in pages() {
        let place = root().join(&page);
        for link in links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
            let target = if path.is_empty() { place.clone() } else { place.parent().unwrap().join(path) };
            let is_there = target.exists()
                && anchor.is_none_or(|anchor| anchors(&std::fs::read_to_string(&target).unwrap()).contains(anchor));
            if !is_there {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_page_lists_the_fields_of_filters() {
    let text = pages::page("docs/tap.md");
    let rows: String = archipelago_telemetry::filter::Field::ALL
        .iter()
        .map(|(_, name, what)| format!("| `{name}` | {what} |\n"))
        .collect();
    assert!(text.contains(&format!("| field | what |\n| --- | --- |\n{rows}\n")), "docs/tap.md should have\n{rows}");
}

#[test]
fn every_shell_block_is_run_or_says_why_not() {
    let scenarios = sources("topologies/kubernetes/e2e/scenarios", "py");
    let mut complaints = Vec::new();
    let mut count = 0;
    for (page, text) in pages() {
        for block in pages::blocks(&text) {
            count += 1;
            let is_on_kubernetes = page == "docs/kubernetes.md";
            let complaint = match &block.fate {
                Fate::Unsaid => Some("neither `<!-- run: … -->` nor `<!-- not run: … -->` stands before it"),
                Fate::Not(reason) => (reason.split(' ').count() < 4).then_some("why is it not run?"),
                // `join-paris` is run as f"join-{name}".
                Fate::Run(name) if is_on_kubernetes => (!scenarios.contains(&format!("\"{name}\""))
                    && !name.strip_prefix("join-").is_some_and(|_| scenarios.contains("f\"join-{name}\"")))
                .then_some("no scenario runs it"),
                Fate::Run(name) => (name != "federation").then_some("only blocks of `federation` are run"),
                Fate::Start(_) => None,
            };
            complaints.extend(complaint.map(|complaint| format!("{page}:{}: {complaint}", block.line)));
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(count > 20, "{count}");
}

#[test]
fn what_a_block_prints_is_looked_for_in_order() {
    let text = "<!-- run: federation -->\n```sh\none\ntwo   # prints: b … d\n```\n\n```text\nA  B\n…\n… C\n```\n\nWords.\n\n```text\nnot this\n```\n";
    let blocks = pages::blocks(text);
    assert_eq!(blocks.len(), 1);
    assert_eq!((blocks[0].line, &blocks[0].fate), (2, &Fate::Run("federation".to_owned())));
    assert_eq!(blocks[0].prints, ["b … d", "A  B", "…", "… C"]);
    let missing = |printed| pages::missing(printed, &blocks[0].prints);
    assert_eq!(missing("x\nb c d\ny\nA B\nab C\n"), None);
    assert_eq!(missing("A B\nb c d\nab C\n"), Some("A  B"), "in another order");
    assert_eq!(missing("b c d e\nA B\n C\n"), Some("b … d"));
}

/// The text of all sources in a folder.
fn sources(folder: &str, extension: &str) -> String {
    let files = std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let ours = files.filter(|path| path.extension().is_some_and(|found| found == extension));
    ours.map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn every_row_that_names_a_test_is_held_by_it() {
    for (page, least) in
        [("docs/failure-modes.md", 30), ("docs/security.md", 20), ("docs/versioning.md", 8), ("docs/tls.md", 6)]
    {
        let text = pages::page(page);
        let mut rows = 0;
        let mut is_held = false;
        for line in text.lines() {
            if line.starts_with("| ") && line.contains("| held by |") {
                is_held = true;
            } else if !line.starts_with('|') {
                is_held = false;
            } else if is_held && !line.starts_with("| ---") {
                rows += 1;
                held(page, line);
            }
        }
        assert!(rows >= least, "{page}: {rows}");
    }
}

/// The last cell names tests: `path` `name`, `path` `name`.
fn held(page: &str, row: &str) {
    let cell = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
    let quoted: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
    assert!(!quoted.is_empty() && quoted.len().is_multiple_of(2), "{page}: no test is named in: {row}");
    for pair in quoted.chunks(2) {
        let source = pages::page(pair[0]);
        let is_there =
            source.contains(&format!("fn {}(", pair[1])) || source.contains(&format!("@scenario(\"{}\"", pair[1]));
        assert!(is_there, "{page}: {} has no {}", pair[0], pair[1]);
    }
}
