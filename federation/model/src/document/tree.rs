//! The value tree of one YAML document: every node and every key with its place.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    DuplicateKeyPolicy, Location, MergeKeyPolicy, MessageFormatter, NonFiniteFloatPolicy, Options, Spanned,
    UserMessageFormatter,
};

use super::Problem;

/// A place in a file: line and column in characters, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Place {
    /// The place just after `text`.
    pub(crate) fn after(text: &str) -> Self {
        let line = text.matches('\n').count();
        let column = text.rsplit('\n').next().map_or(0, |last| last.chars().count());
        Self {
            line: u32::try_from(line).unwrap_or(u32::MAX).saturating_add(1),
            column: u32::try_from(column).unwrap_or(u32::MAX).saturating_add(1),
        }
    }

    /// A problem at this place.
    pub(crate) fn problem(self, file: &str, path: &str, message: &str) -> Problem {
        Problem {
            file: file.to_owned(),
            line: self.line,
            column: self.column,
            path: printable(path),
            message: printable(message),
        }
    }
}

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What YAML 1.2's core schema can say.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key with its value; duplicates are kept here and refused by whoever reads the map.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Value {
    /// What it is, for messages: `the number 3`.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(value) => format!("the text {:?}", shorten(value)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }
}

/// Parses the text of one YAML document that starts on line `first_line` of its file. `None`: there is no content.
///
/// # Errors
/// The place in the file and a message: broken syntax, or a document larger than any resource has reason to be.
pub(crate) fn parse(text: &str, first_line: u32) -> Result<Option<Node>, (Place, String)> {
    match serde_saphyr::from_str_with_options::<Node>(text, options()) {
        Ok(mut root) => {
            if root.value == Value::Null {
                return Ok(None);
            }
            shift(&mut root, first_line.saturating_sub(1));
            Ok(Some(root))
        }
        Err(error) => {
            let place =
                error.location().map(place).filter(|place| place.line > 0).unwrap_or_else(|| Place::after(text));
            let message = UserMessageFormatter.format_message(error.without_snippet()).into_owned();
            let line = place.line.saturating_add(first_line.saturating_sub(1));
            Err((Place { line, column: place.column.max(1) }, shorten(&message).to_owned()))
        }
    }
}

/// Limits far above any real resource and far below anything that costs a noticeable moment or much memory.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 100_000,
            max_nodes: 50_000,
            max_depth: 24,
            flow_nesting_limit: 24,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 50_000,
            max_recorded_anchor_bytes: 1 << 20,
            max_documents: 1,
            max_total_scalar_bytes: 1 << 20,
            max_inclusion_depth: 0,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 8,
        },
        // The reader of the map reports duplicates itself: it knows the place of the first.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `<<` is YAML 1.1 and hides which value counts.
        merge_keys: MergeKeyPolicy::Error,
        // `no`, `on` and `off` are texts, as in YAML 1.2.
        strict_booleans: true,
        // `007` and `1_000` are more likely names than numbers.
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { place: place(spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(i128::from(value)))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(i128::from(value)))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        Ok(i128::try_from(value).map_or(Value::Float(f64::MAX), Value::Integer))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = items.next_element::<Node>()? {
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = items.next_entry::<Spanned<String>, Node>()? {
            entries.push(Entry { key: key.value, place: place(key.referenced), node });
        }
        Ok(Value::Map(entries))
    }
}

fn place(location: Location) -> Place {
    Place {
        line: u32::try_from(location.line()).unwrap_or(u32::MAX),
        column: u32::try_from(location.column()).unwrap_or(u32::MAX),
    }
}

/// Moves every place down by `lines`: the parser saw only its own document.
fn shift(node: &mut Node, lines: u32) {
    node.place.line = node.place.line.saturating_add(lines);
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| shift(item, lines)),
        Value::Map(entries) => {
            for entry in entries {
                entry.place.line = entry.place.line.saturating_add(lines);
                shift(&mut entry.node, lines);
            }
        }
        Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) => {}
    }
}

/// At most [`SHOWN_CHARS_MAX`] characters: a message must not carry a megabyte of someone's file.
pub(crate) fn shorten(text: &str) -> &str {
    text.char_indices().nth(SHOWN_CHARS_MAX).map_or(text, |(end, _)| text.get(..end).unwrap_or(text))
}

/// Without anything that moves the cursor, rings a bell or turns the direction of writing on an operator's terminal.
pub(crate) fn printable(text: &str) -> String {
    let hostile =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hostile(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

const SHOWN_CHARS_MAX: usize = 200;
