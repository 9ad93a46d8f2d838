//! What goes to stdout: tables a person can read, JSON and YAML a program can.
//!
//! Data goes to stdout, talk to stderr. Colour only marks what the words already say, so a table reads
//! the same without it. Names, versions and reasons come from workloads and clusters: whatever they say, it reaches a terminal as
//! text ([`printable`]).

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{self, IsTerminal as _, Write as _};
use std::rc::Rc;

use serde::Serialize;

use crate::exit::{Failure, Outcome};

/// `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    Table,
    /// The same with more columns, where there are more.
    Wide,
    /// One JSON value.
    Json,
    /// YAML.
    Yaml,
}

/// Where and how a command prints.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    format: Format,
    colour: bool,
    /// In the place of stdout; what is one value in JSON is one line in it.
    record: Option<Rc<RefCell<String>>>,
}

impl Output {
    /// Colour is on only for a terminal that can and a person who did not say `NO_COLOR`.
    pub(crate) fn new(format: Format) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { format, colour: io::stdout().is_terminal() && !no_colour && !dumb, record: None }
    }

    /// The same into a text.
    pub(crate) fn recorded(&self) -> (Self, Rc<RefCell<String>>) {
        let record = Rc::default();
        (Self { record: Some(Rc::clone(&record)), ..self.clone() }, record)
    }

    /// The format asked for.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether people asked for more columns.
    pub(crate) fn is_wide(&self) -> bool {
        self.format == Format::Wide
    }

    /// Prints one value: `table` for people, the serialised value for programs.
    pub(crate) fn print<T: Serialize>(&self, value: &T, table: impl FnOnce() -> Text) -> Outcome {
        match self.format {
            Format::Table | Format::Wide => self.text(&table()),
            Format::Json => {
                let json = match &self.record {
                    None => serde_json::to_string_pretty(value),
                    Some(_) => serde_json::to_string(value),
                };
                let mut json = json.map_err(unprintable)?;
                json.push('\n');
                self.write(&json)
            }
            Format::Yaml => self.write(&yaml(value)?),
        }
    }

    /// Prints data that is text already.
    pub(crate) fn write(&self, text: &str) -> Outcome {
        match &self.record {
            None => write_stdout(text),
            Some(record) => {
                record.borrow_mut().push_str(text);
                Ok(())
            }
        }
    }

    /// As [`Text::render`], for whom this prints.
    pub(crate) fn render(&self, text: &Text) -> String {
        text.render(self.colour)
    }

    /// Prints text made for people.
    pub(crate) fn text(&self, text: &Text) -> Outcome {
        self.write(&text.render(self.colour))
    }
}

/// Writes one line of talk to stderr; a closed stderr is no reason to fail.
pub(crate) fn talk(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(&line.to_string()));
}

/// Writes a part of what goes on for ever; false when nobody reads it any more.
pub(crate) fn write_part(text: &str) -> Outcome<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::refused(format!("cannot write to stdout: {error}"))),
    }
}

/// Empties the screen, before what follows each other on it.
pub(crate) const CLEAR: &str = "\x1b[2J\x1b[H";

/// In the place of the screen before, as far as it fits: each line ends what stood there, and what is left below goes.
pub(crate) fn screen(text: &str) -> String {
    let rows = terminal_size::terminal_size().map_or(usize::MAX, |(_, height)| usize::from(height.0));
    let count = text.lines().count();
    let shown = if count < rows { count } else { rows.saturating_sub(2) };
    let mut screen = "\x1b[H".to_owned();
    for line in text.lines().take(shown) {
        screen.push_str(&format!("{line}\x1b[K\n"));
    }
    if shown < count {
        screen.push_str(&format!("… and {} more lines\x1b[K\n", count - shown));
    }
    screen + "\x1b[J"
}

/// Writes data to stdout. A reader that went away (`| head`) ends the output, not the command.
pub(crate) fn write_stdout(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::refused(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// A value as a YAML document.
pub(crate) fn yaml<T: Serialize>(value: &T) -> Outcome<String> {
    let mut text = serde_saphyr::to_string(value).map_err(unprintable)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn unprintable(error: impl std::fmt::Display) -> Failure {
    Failure::refused(format!("cannot print the answer: {error}"))
}

/// Paragraphs and tables, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Text {
    blocks: Vec<Block>,
}

#[derive(Debug)]
enum Block {
    Line(String),
    Table(Table),
}

impl Text {
    /// Appends a line.
    #[must_use]
    pub(crate) fn line(mut self, line: impl Into<String>) -> Self {
        self.blocks.push(Block::Line(line.into()));
        self
    }

    /// Appends a table; an empty one prints nothing.
    #[must_use]
    pub(crate) fn table(mut self, table: Table) -> Self {
        self.blocks.push(Block::Table(table));
        self
    }

    /// The text as printed.
    pub(crate) fn render(&self, colour: bool) -> String {
        let mut text = String::new();
        for block in &self.blocks {
            match block {
                Block::Line(line) => {
                    text.push_str(&printable(line));
                    text.push('\n');
                }
                Block::Table(table) => table.render(colour, &mut text),
            }
        }
        text
    }
}

impl From<Table> for Text {
    fn from(table: Table) -> Self {
        Self::default().table(table)
    }
}

/// Aligned columns under upper-case headings, no borders, three spaces apart, as `kubectl` prints them.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells beyond the headings are printed without one.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let shown = |cell: Cell| Cell { text: printable(&cell.text).replace('\n', "\\n"), ..cell };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Whether there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn render(&self, colour: bool, text: &mut String) {
        if self.rows.is_empty() {
            return;
        }
        let columns = self.rows.iter().map(Vec::len).chain([self.headings.len()]).max().unwrap_or(0);
        let mut widths = vec![0_usize; columns];
        for (width, heading) in widths.iter_mut().zip(&self.headings) {
            *width = heading.chars().count();
        }
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let headings: Vec<Cell> = self.headings.iter().map(|heading| Cell::from(*heading)).collect();
        // Pairs of name and value have no headings.
        let headings = Some(&headings).filter(|cells| cells.iter().any(|cell| !cell.text.is_empty()));
        for row in headings.into_iter().chain(&self.rows) {
            let last = row.iter().rposition(|cell| !cell.text.is_empty());
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if last.is_none_or(|last| column > last) {
                    break;
                }
                match cell.tone.code().filter(|_| colour) {
                    Some(code) => text.push_str(&format!("\x1b[{code}m{}\x1b[0m", cell.text)),
                    None => text.push_str(&cell.text),
                }
                if Some(column) != last {
                    let padding = width - cell.text.chars().count() + GAP;
                    text.extend(std::iter::repeat_n(' ', padding));
                }
            }
            text.push('\n');
        }
    }
}

/// One cell.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A number, or a dash where it is not known.
    pub(crate) fn known(number: Option<u64>) -> Self {
        number.map_or_else(|| Self::from("-"), Self::from)
    }

    /// A cell whose colour follows the state it names.
    pub(crate) fn state(state: &str) -> Self {
        Self { text: state.to_owned(), tone: Tone::of(state) }
    }

    /// At least so wide, for rows that are printed one by one.
    pub(crate) fn padded(mut self, width: usize) -> Self {
        let missing = width.saturating_sub(self.text.chars().count());
        self.text.extend(std::iter::repeat_n(' ', missing));
        self
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), tone: Tone::Plain }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, tone: Tone::Plain }
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        number.to_string().into()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Uneasy,
    Bad,
}

impl Tone {
    fn of(state: &str) -> Self {
        match state {
            "synced" | "up" | "ready" | "active" | "leader" | "follower" | "running" | "connected" => Self::Good,
            "syncing" | "suspect" | "degraded" | "drained" | "draining" | "dialing" | "candidate" | "pending"
            | "starting" | "restarting" | "avoided" | "unknown" | "kept down" | "warning" => Self::Uneasy,
            "dead" | "down" | "rejected" | "disconnected" | "unreachable" | "failed" | "error" => Self::Bad,
            _ => Self::Plain,
        }
    }

    /// ANSI SGR parameter.
    fn code(self) -> Option<u8> {
        match self {
            Self::Plain => None,
            Self::Good => Some(32),
            Self::Uneasy => Some(33),
            Self::Bad => Some(31),
        }
    }
}

/// What may be shown of a text: control characters and what turns the direction of writing are shown by their numbers. Only a new
/// line and a tabulator do what they say.
///
/// A terminal obeys them: a version label could clear it, set its title, or, on some, type for its user (CVE-2003-0063 and its kind).
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().fold(String::with_capacity(text.len() + 8), |mut shown, c| {
        match is_obeyed(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
        shown
    });
    Cow::Owned(shown)
}

const GAP: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Text {
        let mut table = Table::new(&["NAME", "STATE", "NOTE"]);
        table.row(["paris".into(), Cell::state("active"), "".into()]);
        table.row(["frankfurt".into(), Cell::state("drained"), "by an operator".into()]);
        Text::default().line("2 clusters").table(table)
    }

    #[test]
    fn columns_align_without_trailing_blanks() {
        assert_eq!(
            sample().render(false),
            "2 clusters\nNAME        STATE     NOTE\nparis       active\nfrankfurt   drained   by an operator\n"
        );
    }

    #[test]
    fn colour_does_not_move_columns() {
        let plain = sample().render(false);
        let coloured = sample().render(true);
        assert!(coloured.contains("\x1b[32mactive\x1b[0m"));
        let stripped = ["\x1b[32m", "\x1b[33m", "\x1b[0m"].iter().fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(stripped, plain);
    }

    #[test]
    fn a_terminal_obeys_nothing_of_what_is_shown() {
        let hostile = "v1\u{1b}]0;owned\u{7}\u{202e}\u{9b}2J\r";
        let shown = r"v1\u{1b}]0;owned\u{7}\u{202e}\u{9b}2J\u{d}";
        let mut table = Table::new(&["VERSION", "STATE"]);
        table.row([hostile.into(), Cell::state("up\n")]);
        let text = Text::default().line(hostile).table(table);
        assert_eq!(
            text.render(false),
            format!("{shown}\n{:width$}   STATE\n{shown}   up\\n\n", "VERSION", width = shown.len())
        );
        assert_eq!(printable("naïve – 東京\n\tΩ"), "naïve – 東京\n\tΩ");
    }

    #[test]
    fn an_empty_table_prints_nothing() {
        assert_eq!(Text::from(Table::new(&["NAME"])).render(false), "");
    }
}
