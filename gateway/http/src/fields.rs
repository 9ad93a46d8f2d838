//! The fields of a message, in order, as spans into one text.

use std::fmt;

use crate::name::{self, Known, MESH, Name, OTHER_MESH};
use crate::text;

/// An ordered list of fields.
///
/// The text of what came by HTTP/1.1 is its lines as they were; what is [pushed](Self::push) becomes such a line. Lines in the
/// form `name: value CRLF` that stand side by side are written to HTTP/1.1 by one copy, so what a gateway does not touch costs it
/// next to nothing. Removing a field leaves a hole in the text. [`clear`](Self::clear) keeps the memory for the next message.
///
/// Names are tokens and values have no control but tab and no white space around them, whoever put them here.
#[derive(Clone, Default)]
pub struct Fields {
    text: Vec<u8>,
    fields: Vec<Field>,
    /// A bit for each known name that is here, and maybe for some that were.
    known: u128,
}

/// One field: 16 bytes, offsets into the text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub(crate) start: u32,
    pub(crate) value_start: u32,
    pub(crate) value_end: u32,
    pub(crate) name_len: u16,
    pub(crate) known: u8,
    pub(crate) flags: u8,
}

/// Why a field was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidField {
    /// RFC 9110 §5.1.
    #[error("a field name is a token of at most 65,535 letters, digits and some signs")]
    Name,
    /// RFC 9110 §5.5.
    #[error("a field value has no control characters but tab")]
    Value,
    /// The text would pass 4 GiB.
    #[error("the fields of one message have less than 4 GiB")]
    Full,
}

impl Fields {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all fields and keeps the memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
        self.known = 0;
    }

    /// Gives memory back beyond what a message of `bytes` needs; for a pool, after a large one.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.text.shrink_to(bytes);
        self.fields.shrink_to(bytes / LINE_BYTES_TYPICAL);
    }

    /// Appends a field. Bytes that no value may have are written as spaces (RFC 9110 §5.5), so that nothing can be smuggled in.
    pub fn push(&mut self, name: Known, value: &[u8]) {
        let taken = if text::is_value(value) {
            self.append(name.as_str().as_bytes(), text::trim(value), name as u8)
        } else {
            let clean: Vec<u8> =
                value.iter().map(|byte| if text::is_value_byte(*byte) { *byte } else { b' ' }).collect();
            self.append(name.as_str().as_bytes(), text::trim(&clean), name as u8)
        };
        debug_assert!(taken.is_some(), "a message of 4 GiB");
    }

    /// Appends a field, checked.
    ///
    /// # Errors
    /// Values with controls.
    pub fn push_known(&mut self, name: Known, value: &[u8]) -> Result<(), InvalidField> {
        if !text::is_value(value) {
            return Err(InvalidField::Value);
        }
        self.append(name.as_str().as_bytes(), text::trim(value), name as u8).ok_or(InvalidField::Full)
    }

    /// Makes room for fields of so many bytes.
    pub fn reserve(&mut self, bytes: usize) {
        self.text.reserve(bytes);
    }

    /// Appends a field of any name, checked.
    ///
    /// # Errors
    /// Names that are no tokens, values with controls.
    pub fn push_named(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidField> {
        let value = text::trim(value);
        if !text::is_value(value) {
            return Err(InvalidField::Value);
        }
        let taken = match Known::of(name) {
            Some(known) => self.append(name, value, known as u8),
            None if name.len() > usize::from(u16::MAX) || !text::is_token(name) => return Err(InvalidField::Name),
            None => self.append(name, value, Field::OTHER),
        };
        taken.ok_or(InvalidField::Full)
    }

    /// Appends a field whose value is a number.
    pub fn push_number(&mut self, name: Known, value: u64) {
        self.push(name, text::digits_of(value, &mut [0; text::DECIMAL_MAX]));
    }

    /// All fields as lines, each with its CR LF, where nothing was removed and everything was [pushed](Self::push).
    pub fn lines(&self) -> &[u8] {
        &self.text
    }

    /// Replaces all fields of that name by one.
    pub fn set(&mut self, name: Known, value: &[u8]) {
        self.remove(name);
        self.push(name, value);
    }

    /// Removes all fields of that name; says how many there were.
    pub fn remove(&mut self, name: Known) -> usize {
        if self.known & name.bit() == 0 {
            return 0;
        }
        let before = self.fields.len();
        self.fields.retain(|field| field.known != name as u8);
        self.known &= !name.bit();
        before - self.fields.len()
    }

    /// Removes all fields of that name, in whatever case; says how many there were.
    pub fn remove_named(&mut self, name: &[u8]) -> usize {
        if let Some(known) = Known::of(name) {
            return self.remove(known);
        }
        let (before, text) = (self.fields.len(), &self.text);
        self.fields.retain(|field| field.known != Field::OTHER || !field.name(text).eq_ignore_ascii_case(name));
        before - self.fields.len()
    }

    /// Keeps the fields for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(Name<'_>, &[u8]) -> bool) {
        let text = &self.text;
        let mut known = 0;
        self.fields.retain(|field| {
            let kept = keep(field.named(text), field.value(text));
            known |= if kept { field.bit() } else { 0 };
            kept
        });
        self.known = known;
    }

    /// Removes what only gateways may say, under any spelling; for trailers, and for clients that forge it.
    pub fn strip_mesh(&mut self) {
        if self.known & (MESH | OTHER_MESH) == 0 {
            return;
        }
        self.known &= !(MESH | OTHER_MESH);
        self.fields.retain(|field| !field.is_mesh());
    }

    /// Removes what may not be in trailers, see [`Known::may_trail`]; what came by HTTP/1.1 has none of it.
    pub fn strip_trailers(&mut self) {
        self.fields.retain(|field| !field.is_mesh() && Known::from_id(field.known).is_none_or(Known::may_trail));
    }

    /// One line for cookies that came in several fields, as HTTP/2 and HTTP/3 allow and HTTP/1.1 does not (RFC 9113 §8.2.3).
    pub fn join_cookies(&mut self) {
        if self.count(Known::Cookie) < 2 {
            return;
        }
        let mut joined = Vec::new();
        for cookie in self.get_all(Known::Cookie).filter(|cookie| !cookie.is_empty()) {
            if !joined.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(cookie);
        }
        self.set(Known::Cookie, &joined);
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// What the fields take as RFC 9113 §6.5.2 counts it: names, values, and 32 bytes for each.
    pub fn bytes(&self) -> usize {
        self.fields.iter().map(|field| field.size() + 32).sum()
    }

    /// The value of the first field of that name.
    #[inline]
    pub fn get(&self, name: Known) -> Option<&[u8]> {
        self.get_all(name).next()
    }

    /// The values of all fields of that name, in order.
    #[inline]
    pub fn get_all(&self, name: Known) -> impl Iterator<Item = &[u8]> {
        let fields = if self.known & name.bit() == 0 { &[] } else { self.fields.as_slice() };
        fields.iter().filter(move |field| field.known == name as u8).map(|field| field.value(&self.text))
    }

    /// True when there is a field of that name.
    pub fn contains(&self, name: Known) -> bool {
        self.get(name).is_some()
    }

    /// How many fields of that name there are.
    pub fn count(&self, name: Known) -> usize {
        self.get_all(name).count()
    }

    /// The value of the first field of any name, in whatever case.
    pub fn find<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        self.find_all(name).next()
    }

    /// The values of all fields of any name, in whatever case, in order.
    pub fn find_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let known = Known::of(name.as_bytes()).map_or(Field::OTHER, |known| known as u8);
        let same = move |field: &&Field| {
            field.known == known
                && (known != Field::OTHER || field.name(&self.text).eq_ignore_ascii_case(name.as_bytes()))
        };
        self.fields.iter().filter(same).map(|field| field.value(&self.text))
    }

    /// Names as they were spelt, values, and what is known of the names, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8], Option<Known>)> {
        self.fields.iter().map(|field| (field.name(&self.text), field.value(&self.text), Known::from_id(field.known)))
    }

    /// Appends `name: value CRLF` to the text, if it has room.
    fn append(&mut self, name: &[u8], value: &[u8], known: u8) -> Option<()> {
        let start = self.text.len();
        let value_start = start + name.len() + 2;
        let value_end = value_start + value.len();
        let field = Field {
            start: u32::try_from(start).ok()?,
            value_start: u32::try_from(value_start).ok()?,
            value_end: u32::try_from(value_end).ok().filter(|end| *end < u32::MAX - 2)?,
            name_len: u16::try_from(name.len()).ok()?,
            known,
            flags: Field::flags(Known::from_id(known), name) | Field::CANONICAL,
        };
        self.text.reserve(name.len() + value.len() + 4);
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(b": ");
        self.text.extend_from_slice(value);
        self.text.extend_from_slice(b"\r\n");
        self.note(field);
        Some(())
    }

    /// Takes a field whose line will be given to [`adopt`](Self::adopt).
    pub(crate) fn note(&mut self, field: Field) {
        self.known |= field.bit();
        if self.fields.capacity() == 0 {
            // Room for most messages at once, rather than in three steps.
            self.fields.reserve(FIELDS_TYPICAL);
        }
        self.fields.push(field);
    }

    /// Takes the lines of all fields noted since the last [`clear`](Self::clear).
    pub(crate) fn adopt(&mut self, lines: &[u8]) {
        self.text.extend_from_slice(lines);
    }

    /// Bytes of text for which there is memory.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.text.capacity()
    }

    pub(crate) fn parts(&mut self) -> (&[u8], &mut Vec<Field>, &mut u128) {
        (&self.text, &mut self.fields, &mut self.known)
    }

    /// More than what the lines of all fields take, or little less.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Appends all fields to a message of HTTP/1.1 but those that its writer writes itself: `Host`, `Connection`, `Transfer-Encoding`, and
    /// the length unless `with_length`.
    #[inline]
    pub(crate) fn write_lines(&self, with_length: bool, out: &mut Vec<u8>) {
        let text = |from: usize, to: usize| self.text.get(from..to).unwrap_or_default();
        // The run of kept lines that has not been copied yet.
        let (mut from, mut to) = (0, 0);
        for field in &self.fields {
            if Known::is_written_by_framing(field.known, !with_length) {
                continue;
            }
            let start = field.start as usize;
            if field.flags & Field::CANONICAL == 0 {
                out.extend_from_slice(text(from, to));
                (from, to) = (0, 0);
                for part in [field.name(&self.text), b": ", field.value(&self.text), b"\r\n"] {
                    out.extend_from_slice(part);
                }
                continue;
            }
            if start != to {
                out.extend_from_slice(text(from, to));
                from = start;
            }
            to = field.value_end as usize + 2;
        }
        out.extend_from_slice(text(from, to));
    }
}

impl Field {
    /// In [`Field::known`]: none of the table.
    pub(crate) const OTHER: u8 = u8::MAX;
    /// The line in the text is `name: value CRLF`.
    pub(crate) const CANONICAL: u8 = 1;
    /// A name that only gateways may say.
    pub(crate) const MESH: u8 = 2;
    /// Marked by one pass for removal by the next.
    pub(crate) const DOOMED: u8 = 4;

    /// What is worth knowing of a name before it is asked for.
    #[inline]
    pub(crate) fn flags(known: Option<Known>, name: &[u8]) -> u8 {
        let is_mesh = known.map_or_else(|| name::is_mesh(name), Known::is_mesh);
        if is_mesh { Self::MESH } else { 0 }
    }

    #[inline]
    pub(crate) fn bit(&self) -> u128 {
        match self.known {
            Self::OTHER if self.is_mesh() => OTHER_MESH,
            Self::OTHER => 0,
            known => 1_u128.checked_shl(u32::from(known)).unwrap_or(0),
        }
    }

    pub(crate) fn name<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        text.get(start..start + usize::from(self.name_len)).unwrap_or_default()
    }

    pub(crate) fn value<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        text.get(self.value_start as usize..self.value_end as usize).unwrap_or_default()
    }

    fn named<'a>(&self, text: &'a [u8]) -> Name<'a> {
        Known::from_id(self.known).map_or_else(|| Name::Other(self.name(text)), Name::Known)
    }

    pub(crate) fn is_mesh(&self) -> bool {
        self.flags & Self::MESH != 0
    }

    /// Only the first bytes of the value count.
    pub(crate) fn cut_value(&mut self, length: usize) {
        self.value_end = self.value_start.saturating_add(u32::try_from(length).unwrap_or(u32::MAX)).min(self.value_end);
        self.flags &= !Self::CANONICAL;
    }

    fn size(&self) -> usize {
        usize::from(self.name_len) + (self.value_end - self.value_start) as usize
    }
}

impl PartialEq for Fields {
    /// The same names, in whatever case, with the same values in the same order.
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.iter().zip(other.iter()).all(|(a, b)| a.0.eq_ignore_ascii_case(b.0) && a.1 == b.1)
    }
}

impl Eq for Fields {}

impl fmt::Debug for Fields {
    /// Names only: values can be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, ..)| String::from_utf8_lossy(name).into_owned())).finish()
    }
}

const FIELDS_TYPICAL: usize = 16;
/// Bytes of a line in a browser's request, more or less.
const LINE_BYTES_TYPICAL: usize = 32;
