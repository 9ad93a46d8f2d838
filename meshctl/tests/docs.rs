//! The documentation: its links lead somewhere, and what it says is held by a test is.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// README.md and its like, and everything below docs/.
fn pages() -> Vec<PathBuf> {
    let below = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders = vec![root().join("docs")];
    let mut pages: Vec<PathBuf> = below(root()).filter(|path| path.is_file()).collect();
    while let Some(folder) = folders.pop() {
        let (inner, files): (Vec<_>, Vec<_>) = below(folder).partition(|path| path.is_dir());
        folders.extend(inner);
        pages.extend(files);
    }
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    assert!(pages.len() > 8, "{pages:?}");
    pages
}

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
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let is_there = target.exists()
                && anchor.is_none_or(|anchor| anchors(&std::fs::read_to_string(&target).unwrap()).contains(anchor));
            if !is_there {
                broken.push(format!("{}: {link}", page.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_page_lists_the_fields_of_filters() {
    let text = std::fs::read_to_string(root().join("docs/tap.md")).unwrap();
    let rows: String = archipelago_telemetry::filter::Field::ALL
        .iter()
        .map(|(_, name, what)| format!("| `{name}` | {what} |\n"))
        .collect();
    assert!(text.contains(&format!("| field | what |\n| --- | --- |\n{rows}\n")), "docs/tap.md should have\n{rows}");
}

#[test]
fn every_row_of_failure_modes_is_held_by_a_test() {
    let text = std::fs::read_to_string(root().join("docs/failure-modes.md")).unwrap();
    let mut rows = 0;
    for row in text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---") && !line.contains("| held by |"))
    {
        rows += 1;
        let cell = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
        // `path` `name`, `path` `name`
        let quoted: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!quoted.is_empty() && quoted.len().is_multiple_of(2), "no test is named in: {row}");
        for pair in quoted.chunks(2) {
            let source =
                std::fs::read_to_string(root().join(pair[0])).unwrap_or_else(|error| panic!("{}: {error}", pair[0]));
            let is_there =
                source.contains(&format!("fn {}(", pair[1])) || source.contains(&format!("@scenario(\"{}\"", pair[1]));
            assert!(is_there, "{} has no {}", pair[0], pair[1]);
        }
    }
    assert!(rows >= 30, "{rows}");
}
