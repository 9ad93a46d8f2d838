//! YAML text with places: from an operator's file to a tree of values that know where they stand.
//!
//! A [`Document`] is one file as it was written. [`parse`] cuts it into YAML documents, so that a syntax error in one
//! does not hide problems in the next, and turns each into a [`tree::Node`]. [`decode`] then reads typed values out of
//! the tree and *collects* what is wrong instead of stopping: an operator fixes a file once, not once per mistake.

pub(crate) mod decode;
pub(crate) mod frame;
pub(crate) mod suggest;
pub(crate) mod tree;

use std::fmt;

use self::tree::{Node, Place, Value};

/// A file as it was written; `file` comes back in every [`Problem`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Name to show, usually the path that was given on the command line.
    pub file: String,
    /// The whole text, any number of YAML documents.
    pub text: String,
}

impl Document {
    /// A document from bytes of unknown origin.
    ///
    /// # Errors
    /// A [`Problem`] at the first byte that is not UTF-8, so that a binary file gets a place like any other mistake.
    pub fn from_bytes(file: impl Into<String>, bytes: &[u8]) -> Result<Self, Problem> {
        let file = file.into();
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self { file, text: text.to_owned() }),
            Err(error) => {
                let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let before = String::from_utf8_lossy(valid);
                let place = Place::after(&before);
                Err(place.problem(&file, "", "the file is not UTF-8 text: is it binary?"))
            }
        }
    }
}

/// Something wrong in a file, fit to print: `file:line:column: path: message`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Name of the file as given.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Where in the resource, for example `spec.backends[1].weight`; empty for the document as a whole.
    pub path: String,
    /// What is wrong and, where it can be told, what was meant.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

/// One YAML document of a file.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its content.
    pub(crate) root: Node,
}

/// Cuts `document` into YAML documents and parses each.
///
/// Documents that hold nothing but comments are skipped; a file without any content is a problem of its own, because
/// an `apply` that silently does nothing hides a mistake. What parsed is returned beside what did not.
pub(crate) fn parse(document: &Document) -> (Vec<Part>, Vec<Problem>) {
    let mut problems = Vec::new();
    let start = Place { line: 1, column: 1 };
    if document.text.len() > FILE_BYTES_MAX {
        let message = format!("the file has {} bytes, at most {FILE_BYTES_MAX} are read", document.text.len());
        return (Vec::new(), vec![start.problem(&document.file, "", &message)]);
    }
    if let Some(at) = document.text.find('\0') {
        let place = Place::after(document.text.get(..at).unwrap_or_default());
        return (
            Vec::new(),
            vec![place.problem(&document.file, "", "the file contains a NUL character: is it binary?")],
        );
    }
    let mut parts = Vec::new();
    let chunks = chunks(&document.text);
    for chunk in &chunks {
        if parts.len() >= DOCUMENTS_MAX {
            let place = Place { line: chunk.line, column: 1 };
            let message = format!("more than {DOCUMENTS_MAX} documents in one file");
            problems.push(place.problem(&document.file, "", &message));
            break;
        }
        match tree::parse(chunk.text, chunk.line) {
            Ok(Some(root)) => parts.push(Part { root }),
            Ok(None) => {}
            Err((place, message)) => problems.push(place.problem(&document.file, "", &message)),
        }
    }
    if parts.is_empty() && problems.is_empty() {
        problems.push(start.problem(&document.file, "", "the file is empty: expected at least one resource"));
    }
    (parts, problems)
}

/// The kinds that the documents of a file give themselves, as far as they can be read.
pub(crate) fn kinds(document: &Document) -> Vec<String> {
    let kind = |part: &Part| {
        let Value::Map(entries) = &part.root.value else { return None };
        let entry = entries.iter().find(|entry| entry.key == "kind")?;
        let Value::Text(kind) = &entry.node.value else { return None };
        Some(kind.clone())
    };
    parse(document).0.iter().filter_map(kind).collect()
}

/// The text of one YAML document and the line of the file on which it starts.
struct Chunk<'t> {
    text: &'t str,
    line: u32,
}

/// Cuts at document markers.
///
/// A line that begins with `---` or `...` followed by white space is a marker wherever it stands, even inside a block
/// scalar or a quoted string (YAML 1.2 §9.1.2, `c-forbidden`), so cutting before parsing is exact.
fn chunks(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut from = 0;
    let mut from_line = 1u32;
    let mut at = 0;
    for (number, line) in (1u32..).zip(text.split_inclusive('\n')) {
        let end = at + line.len();
        if is_marker(line, "---") {
            chunks.push(Chunk { text: text.get(from..at).unwrap_or_default(), line: from_line });
            (from, from_line) = (at, number);
        } else if is_marker(line, "...") {
            chunks.push(Chunk { text: text.get(from..at).unwrap_or_default(), line: from_line });
            (from, from_line) = (end, number.saturating_add(1));
        }
        at = end;
    }
    chunks.push(Chunk { text: text.get(from..).unwrap_or_default(), line: from_line });
    chunks.retain(|chunk| !is_blank(chunk.text));
    chunks
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']))
}

/// Nothing but comments, directives and the marker itself.
fn is_blank(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#') || line.starts_with("%YAML")
    })
}

/// A policy file is a few KiB; a megabyte holds thousands of resources.
const FILE_BYTES_MAX: usize = 1 << 20;
/// Ten times what one cluster's services need.
const DOCUMENTS_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document { file: "f.yaml".into(), text: text.into() }
    }

    #[test]
    fn a_syntax_error_in_one_document_leaves_the_others() {
        let (parts, problems) = parse(&document("a: 1\n---\nb: [1\n---\nc: 3\n...\n# end\n"));
        assert_eq!(parts.len(), 2);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].line >= 2 && problems[0].line <= 4, "{problems:?}");
        assert_eq!(parts[1].root.place.line, 5);
    }

    #[test]
    fn a_marker_ends_even_a_block_scalar() {
        let (parts, problems) = parse(&document("a: |\n  text\n---\nb: 2\n"));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(parts.len(), 2);
    }

    #[test]
    fn empty_and_binary_files_have_a_place() {
        for text in ["", "\n\n", "# only a comment\n", "---\n---\n", "\u{feff}"] {
            let (parts, problems) = parse(&document(text));
            assert!(parts.is_empty());
            assert_eq!(problems[0].to_string(), "f.yaml:1:1: the file is empty: expected at least one resource");
        }
        let problem = Document::from_bytes("b.yaml", b"a: 1\nb: \xff\xfe").unwrap_err();
        assert_eq!((problem.line, problem.column), (2, 4));
        let (_, problems) = parse(&document("a: \0"));
        assert_eq!((problems[0].line, problems[0].column), (1, 4));
    }

    #[test]
    fn a_problem_prints_its_place_first() {
        let problem = Place { line: 3, column: 7 }.problem("f.yaml", "spec.x", "bad");
        assert_eq!(problem.to_string(), "f.yaml:3:7: spec.x: bad");
    }
}
