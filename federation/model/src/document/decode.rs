//! Reads typed values out of a [`Node`] and collects every wrong shape instead of stopping at the first.
//!
//! Readers return a value even where the input was wrong (a placeholder, or the list without its broken items), so that
//! whatever else is in the document is checked too. A document with any [`Mistake`] is refused as a whole, hence no
//! placeholder ever leaves it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{
    suggest,
    tree::{Entry, Node, Place, Value, shorten},
};
use crate::duration;

/// A wrong shape: where, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) place: Place,
    pub(crate) path: String,
    pub(crate) message: String,
}

/// Collects mistakes; the bound keeps one absurd file from flooding a terminal.
#[derive(Debug, Default)]
pub(crate) struct Mistakes {
    found: Vec<Mistake>,
}

impl Mistakes {
    pub(crate) fn push(&mut self, place: Place, path: &str, message: impl Into<String>) {
        if self.found.len() < MISTAKES_MAX {
            self.found.push(Mistake { place, path: path.to_owned(), message: message.into() });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<Mistake> {
        self.found
    }
}

/// A node and its path from the root of the resource.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'n> {
    pub(crate) node: &'n Node,
    pub(crate) path: String,
}

impl<'n> Cursor<'n> {
    pub(crate) fn root(node: &'n Node) -> Self {
        Self { node, path: String::new() }
    }

    pub(crate) fn wrong(&self, out: &mut Mistakes, message: impl Into<String>) {
        out.push(self.node.place, &self.path, message);
    }

    fn expected(&self, what: &str, out: &mut Mistakes) {
        self.wrong(out, format!("expected {what}, found {}", self.node.value.describe()));
    }

    /// The fields of a map; duplicates are mistakes, `None` when it is no map at all.
    pub(crate) fn fields(&self, out: &mut Mistakes) -> Option<Fields<'n>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected("a map", out);
            return None;
        };
        let mut first: BTreeMap<&str, &Entry> = BTreeMap::new();
        for entry in entries {
            match first.get(entry.key.as_str()) {
                None => {
                    first.insert(&entry.key, entry);
                }
                Some(earlier) => out.push(
                    entry.place,
                    &join(&self.path, &entry.key),
                    format!("duplicate key `{}`: already given at line {}", shorten(&entry.key), earlier.place.line),
                ),
            }
        }
        Some(Fields { path: self.path.clone(), place: self.node.place, first, known: Vec::new(), missing: Vec::new() })
    }

    /// A text; numbers and booleans are refused with the advice to quote them.
    pub(crate) fn text(&self, out: &mut Mistakes) -> String {
        match &self.node.value {
            Value::Text(text) => return text.clone(),
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) => {
                self.wrong(out, format!("expected a text, found {}: put it in quotes", self.node.value.describe()));
            }
            Value::Null | Value::List(_) | Value::Map(_) => self.expected("a text", out),
        }
        String::new()
    }

    /// One of a few words.
    pub(crate) fn one_of<T: Copy>(&self, words: &[(&str, T)], out: &mut Mistakes) -> Option<T> {
        let Value::Text(text) = &self.node.value else {
            self.text(out);
            return None;
        };
        let found = words.iter().find(|(word, _)| word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let expected = words.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(" or ");
            let hint = suggest::hint(text, words.iter().map(|(word, _)| *word));
            self.wrong(out, format!("expected {expected}, found {:?}{hint}", shorten(text)));
        }
        found
    }

    pub(crate) fn boolean(&self, out: &mut Mistakes) -> bool {
        match &self.node.value {
            Value::Bool(value) => *value,
            Value::Null | Value::Integer(_) | Value::Float(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                self.expected("true or false", out);
                false
            }
        }
    }

    /// A whole number from `min` to `max`, both included.
    pub(crate) fn number(&self, min: u32, max: u32, out: &mut Mistakes) -> u32 {
        let expected = || format!("a whole number from {min} to {max}");
        match &self.node.value {
            Value::Integer(value) => match u32::try_from(*value) {
                Ok(value) if (min..=max).contains(&value) => return value,
                Ok(_) | Err(_) => self.expected(&expected(), out),
            },
            Value::Null | Value::Bool(_) | Value::Float(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                self.expected(&expected(), out);
            }
        }
        min.max(1)
    }

    /// A port, 1 to 65,535.
    pub(crate) fn port(&self, out: &mut Mistakes) -> u16 {
        u16::try_from(self.number(1, u32::from(u16::MAX), out)).unwrap_or(1)
    }

    /// A duration such as `500ms`, `2s`, `10m`, `1h`.
    pub(crate) fn duration(&self, out: &mut Mistakes) -> Duration {
        self.time(out, duration::parse)
    }

    /// The same, or `none`, which is zero.
    pub(crate) fn limit(&self, out: &mut Mistakes) -> Duration {
        self.time(out, |text| duration::limit::read(text).map_err(|message| format!("{message}; `none` for no limit")))
    }

    fn time(&self, out: &mut Mistakes, parse: impl FnOnce(&str) -> Result<Duration, String>) -> Duration {
        match &self.node.value {
            Value::Text(text) => match parse(text) {
                Ok(value) => return value,
                Err(message) => self.wrong(out, message),
            },
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => {
                self.expected("a duration such as \"2s\"", out);
            }
        }
        Duration::from_secs(1)
    }

    /// Every item of a list, read by `read`; items that give nothing are left out.
    pub(crate) fn list<T>(
        &self,
        out: &mut Mistakes,
        mut read: impl FnMut(&Self, &mut Mistakes) -> Option<T>,
    ) -> Vec<T> {
        let Value::List(items) = &self.node.value else {
            self.expected("a list", out);
            return Vec::new();
        };
        if items.len() > LIST_ITEMS_MAX {
            self.wrong(out, format!("{} items, at most {LIST_ITEMS_MAX} are allowed", items.len()));
            return Vec::new();
        }
        items
            .iter()
            .enumerate()
            .filter_map(|(index, node)| read(&Self { node, path: format!("{}[{index}]", self.path) }, out))
            .collect()
    }

    /// An address that something can listen on.
    pub(crate) fn socket_address(&self, out: &mut Mistakes) -> Option<SocketAddr> {
        let text = self.text(out);
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        if address.is_none() && !text.is_empty() {
            self.wrong(out, format!("expected ip:port, found `{}`", shorten(&text)));
        }
        address
    }

    /// A list of texts.
    pub(crate) fn texts(&self, out: &mut Mistakes) -> Vec<String> {
        self.list(out, |item, out| Some(item.text(out)))
    }

    /// A map from any key to a text.
    pub(crate) fn text_map(&self, out: &mut Mistakes) -> BTreeMap<String, String> {
        let Some(fields) = self.fields(out) else { return BTreeMap::new() };
        fields
            .first
            .iter()
            .map(|(key, entry)| {
                let cursor = Cursor { node: &entry.node, path: join(&self.path, key) };
                ((*key).to_owned(), cursor.text(out))
            })
            .collect()
    }
}

/// The fields of one map; [`Fields::finish`] refuses those that nobody asked for.
#[derive(Debug)]
pub(crate) struct Fields<'n> {
    path: String,
    place: Place,
    first: BTreeMap<&'n str, &'n Entry>,
    known: Vec<&'static str>,
    missing: Vec<(Place, &'static str)>,
}

impl<'n> Fields<'n> {
    /// The field `name`; absent and empty (`name:`) are the same.
    pub(crate) fn optional(&mut self, name: &'static str) -> Option<Cursor<'n>> {
        self.known.push(name);
        let entry = self.first.remove(name)?;
        if entry.node.value == Value::Null {
            return None;
        }
        Some(Cursor { node: &entry.node, path: join(&self.path, name) })
    }

    /// The field `name`, a mistake when it is absent.
    pub(crate) fn required(&mut self, name: &'static str) -> Option<Cursor<'n>> {
        let at = self.first.get(name).map_or(self.place, |entry| entry.place);
        let found = self.optional(name);
        if found.is_none() {
            self.missing.push((at, name));
        }
        found
    }

    /// Required text.
    pub(crate) fn text(&mut self, name: &'static str, out: &mut Mistakes) -> String {
        self.required(name).map_or_else(String::new, |cursor| cursor.text(out))
    }

    /// Refuses every field that was not asked for, and names those that are missing; a misspelt one is named once.
    pub(crate) fn finish(mut self, out: &mut Mistakes) {
        let known = self.known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        for (name, entry) in &self.first {
            let meant = suggest::nearest(name, self.known.iter().copied());
            self.missing.retain(|(_, missing)| Some(*missing) != meant);
            let advice = match meant {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("expected {known}"),
            };
            let message = format!("unknown field `{}`, {advice}", shorten(name));
            out.push(entry.place, &join(&self.path, name), message);
        }
        for (place, name) in &self.missing {
            out.push(*place, &join(&self.path, name), format!("`{name}` is missing"));
        }
    }
}

/// The place of every path in the tree, for problems that are found later.
pub(crate) fn places(root: &Node) -> BTreeMap<String, Place> {
    let mut places = BTreeMap::new();
    collect(root, String::new(), &mut places);
    places
}

fn collect(node: &Node, path: String, places: &mut BTreeMap<String, Place>) {
    match &node.value {
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(item, format!("{path}[{index}]"), places);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                collect(&entry.node, join(&path, &entry.key), places);
            }
        }
        Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) => {}
    }
    // A key given twice keeps its first place: the second is a mistake of its own.
    places.entry(path).or_insert(node.place);
}

/// `parent.name`; a long key is shown shortened.
pub(crate) fn join(parent: &str, name: &str) -> String {
    let name = shorten(name);
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

/// More than anyone fixes in one go.
const MISTAKES_MAX: usize = 100;
/// Backends, routes, endpoints of one resource; as many as a split may have routes.
pub(crate) const LIST_ITEMS_MAX: usize = 4_096;
