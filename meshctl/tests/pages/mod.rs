//! The documentation as tests read it: pages, and the shell blocks in them.
//!
//! The line before a shell block says what becomes of it:
//!
//! | comment | the block |
//! | --- | --- |
//! | `<!-- run: federation -->` | is run by `docs_run.rs`, in order with the others of its page, by one shell |
//! | `<!-- start: NAME -->` | is started there, and ended with the page |
//! | `<!-- run: NAME -->`, `<!-- start: NAME -->` in docs/kubernetes.md | is run by `topologies/kubernetes/e2e/run` |
//! | `<!-- not run: REASON -->` | is not run |

#![allow(dead_code, reason = "each of the test binaries with this module uses a part of it")]

use std::path::{Path, PathBuf};

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// README.md and its like, and everything below docs/: name below the repository, and text.
pub(crate) fn pages() -> Vec<(String, String)> {
    let below = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders = vec![root().join("docs")];
    let mut pages: Vec<PathBuf> = below(root()).filter(|path| path.is_file()).collect();
    while let Some(folder) = folders.pop() {
        let (inner, files): (Vec<_>, Vec<_>) = below(folder).partition(|path| path.is_dir());
        folders.extend(inner);
        pages.extend(files);
    }
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    assert!(pages.len() > 8, "{pages:?}");
    pages
        .into_iter()
        .map(|path| (path.strip_prefix(root()).unwrap().display().to_string(), std::fs::read_to_string(&path).unwrap()))
        .collect()
}

/// One page.
pub(crate) fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What becomes of a shell block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// `run: NAME`.
    Run(String),
    /// `start: NAME`.
    Start(String),
    /// `not run: REASON`.
    Not(String),
    /// Nothing is said.
    Unsaid,
}

/// A fenced block of `sh` or `console`.
#[derive(Debug)]
pub(crate) struct Block {
    /// Line of its fence, from 1.
    pub(crate) line: usize,
    pub(crate) fate: Fate,
    pub(crate) text: String,
    /// Lines that it prints, in this order among others, `…` for anything: comments `# prints: …`, and a block of `text` right behind it.
    pub(crate) prints: Vec<String>,
}

/// The shell blocks of a page.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let lines: Vec<&str> = text.lines().collect();
    let mut blocks: Vec<Block> = Vec::new();
    // Where the latest shell block ended, as long as nothing but empty lines came since.
    let mut behind = false;
    let mut at = 0;
    while at < lines.len() {
        let Some(language) = lines[at].strip_prefix("```") else {
            behind &= lines[at].is_empty();
            at += 1;
            continue;
        };
        let end = (at + 1..lines.len()).find(|line| lines[*line] == "```").unwrap_or_else(|| panic!("{at}: no end"));
        let body = &lines[at + 1..end];
        let is_shell = matches!(language, "sh" | "bash" | "console" | "shell");
        if is_shell {
            let fate = if at == 0 { Fate::Unsaid } else { fate(lines[at - 1]) };
            let said = body.iter().filter_map(|line| Some(line.split_once("# prints: ")?.1.to_owned()));
            blocks.push(Block { line: at + 1, fate, text: body.join("\n"), prints: said.collect() });
        } else if language == "text"
            && behind
            && let Some(block) = blocks.last_mut()
        {
            block.prints.extend(body.iter().map(|line| (*line).to_owned()));
        }
        behind = is_shell;
        at = end + 1;
    }
    blocks
}

fn fate(line: &str) -> Fate {
    let Some(said) = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) else { return Fate::Unsaid };
    match said.split_once(": ") {
        Some(("run", name)) => Fate::Run(name.to_owned()),
        Some(("start", name)) => Fate::Start(name.to_owned()),
        Some(("not run", reason)) => Fate::Not(reason.to_owned()),
        _ => Fate::Unsaid,
    }
}

/// Whether `printed` has the expected lines in their order, others between them; the first that is missing otherwise.
pub(crate) fn missing<'a>(printed: &str, expected: &'a [String]) -> Option<&'a str> {
    let mut lines = printed.lines();
    let wanted = expected.iter().filter(|line| !matches!(line.trim(), "" | "…"));
    wanted.map(String::as_str).find(|wanted| !lines.any(|line| is_like(line, wanted)))
}

/// Whether a line is what the page shows, however wide its columns are.
fn is_like(line: &str, shown: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, shown) = (squeeze(line), squeeze(shown));
    let parts: Vec<&str> = shown.split('…').collect();
    let [first, .., last] = parts[..] else { return line == shown };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for part in &parts[1..parts.len() - 1] {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}
