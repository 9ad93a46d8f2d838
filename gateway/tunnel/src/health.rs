//! What gateways tell each other about their services: how many endpoints are ready.
//!
//! The accepting side sends it on a unidirectional stream of a private type: everything once, in parts, and from then on what changes.
//! [`HealthBook`] keeps what is published, with the changes of late, once for all connections; a writer that is further behind than
//! those sends everything anew. [`HealthReader`] follows on the other side. Every message says from which state to which it leads; a
//! reader that is elsewhere stops the stream, which asks the writer for another one. The stream is silent while nothing changes:
//! beats say that the peer lives.

use crate::{codec::varint, news::HealthNews};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

/// Readiness of one service version behind one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceHealth {
    /// `namespace/name`.
    pub service: String,
    /// Version of its endpoints; empty when they carry none.
    pub version: String,
    /// Endpoints that take requests.
    pub ready: u32,
}

/// Service and version.
type Key = (String, String);

/// One entry that changed; `None`: it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    key: Key,
    ready: Option<u32>,
}

/// What this gateway publishes, with the changes of late.
#[derive(Debug, Default)]
pub(crate) struct HealthBook {
    /// Counts changes; 0: nothing has been published, which is not the same as "no services".
    version: u64,
    entries: BTreeMap<Key, u32>,
    /// Each with the version it leads to; the newest last.
    recent: VecDeque<(u64, Arc<[Change]>)>,
    recent_entries: usize,
}

impl HealthBook {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Replaces what is published; true when that changed anything. Of two entries with one name the last counts.
    pub(crate) fn publish(&mut self, services: Vec<ServiceHealth>) -> bool {
        let next: BTreeMap<Key, u32> = services.into_iter().map(|s| ((s.service, s.version), s.ready)).collect();
        let gone = self.entries.keys().filter(|key| !next.contains_key(*key));
        let mut changes: Vec<_> = gone.map(|key| Change { key: key.clone(), ready: None }).collect();
        let moved = next.iter().filter(|(key, ready)| self.entries.get(*key) != Some(ready));
        changes.extend(moved.map(|(key, ready)| Change { key: key.clone(), ready: Some(*ready) }));
        if changes.is_empty() && self.version > 0 {
            return false;
        }
        self.entries = next;
        self.keep(changes);
        true
    }

    /// Replaces what is published of these services, and of no other; a service without versions is gone. As [`Self::publish`].
    pub(crate) fn change(&mut self, services: BTreeMap<String, Vec<(String, u32)>>) -> bool {
        let mut changes = Vec::new();
        for (service, versions) in services {
            let next: BTreeMap<String, u32> = versions.into_iter().collect();
            let first = (service.clone(), String::new());
            let known = self.entries.range(&first..).take_while(|((name, _), _)| *name == service);
            let gone = known.filter(|((_, version), _)| !next.contains_key(version));
            changes.extend(gone.map(|(key, _)| Change { key: key.clone(), ready: None }));
            for (version, ready) in next {
                let key = (service.clone(), version);
                if self.entries.get(&key) != Some(&ready) {
                    changes.push(Change { key, ready: Some(ready) });
                }
            }
        }
        if changes.is_empty() && self.version > 0 {
            return false;
        }
        for Change { key, ready } in &changes {
            match ready {
                Some(ready) => self.entries.insert(key.clone(), *ready),
                None => self.entries.remove(key),
            };
        }
        self.keep(changes);
        true
    }

    /// Makes a version of what has changed.
    fn keep(&mut self, changes: Vec<Change>) {
        self.version += 1;
        self.recent_entries += changes.len();
        self.recent.push_back((self.version, changes.into()));
        while self.recent.len() > RECENT_MAX || self.recent_entries > self.entries.len().max(RECENT_ENTRIES_MIN) {
            let Some((_, oldest)) = self.recent.pop_front() else { break };
            self.recent_entries -= oldest.len();
        }
    }

    /// The messages that lead from version `from` (0: nothing) to the current one, and that version.
    pub(crate) fn since(&self, from: u64) -> (Vec<Bytes>, u64) {
        let mut messages = Vec::new();
        if from == self.version {
            return (messages, from);
        }
        let first = self.recent.front().map_or(u64::MAX, |(version, _)| *version);
        if from > 0 && from < self.version && from + 1 >= first {
            for (version, changes) in self.recent.iter().filter(|(version, _)| *version > from) {
                let changes = changes.iter().map(|change| (&change.key, change.ready));
                write(&mut messages, Header { full: false, base: version - 1, version: *version }, changes);
            }
        } else {
            let entries = self.entries.iter().map(|(key, ready)| (key, Some(*ready)));
            write(&mut messages, Header { full: true, base: 0, version: self.version }, entries);
        }
        (messages, self.version)
    }
}

/// What opens a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// Of everything, not of changes.
    full: bool,
    /// The state it builds on; 0 for a part of everything.
    base: u64,
    /// The state that the last of the parts leads to.
    version: u64,
}

/// Stream type, from the private space as the settings ids are (RFC 9114 §11.2.4).
pub(crate) const STREAM_TYPE: u64 = 0x1a7c_6e5d_4d65_7371;

/// The type byte(s) that open a health stream.
pub(crate) fn stream_prefix() -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    varint::encode(STREAM_TYPE, &mut out);
    out.freeze()
}

/// Appends the message, or as many parts of it as it takes.
///
/// Layout: `length: varint | flags: u8 | base: varint | version: varint | (service: text, version: text, ready + 1: varint)*`, where
/// text is `length: varint | UTF-8`. Flags: 1 everything (else changes), 2 first part, 4 last part. A ready + 1 of 0 says that
/// the entry is gone.
fn write<'a>(messages: &mut Vec<Bytes>, header: Header, entries: impl Iterator<Item = (&'a Key, Option<u32>)>) {
    let mut entries = entries.peekable();
    let mut is_first = true;
    loop {
        let mut payload = BytesMut::new();
        while payload.len() < PART_BYTES
            && let Some(((service, version), ready)) = entries.next()
        {
            for text in [service, version] {
                varint::encode(text.len() as u64, &mut payload);
                payload.put_slice(text.as_bytes());
            }
            varint::encode(ready.map_or(0, |ready| u64::from(ready) + 1), &mut payload);
        }
        let is_last = entries.peek().is_none();
        let mut head = BytesMut::with_capacity(24);
        head.put_u8(u8::from(header.full) * FULL + u8::from(is_first) * FIRST + u8::from(is_last) * LAST);
        varint::encode(header.base, &mut head);
        varint::encode(header.version, &mut head);
        let mut out = BytesMut::with_capacity(head.len() + payload.len() + 8);
        varint::encode((head.len() + payload.len()) as u64, &mut out);
        out.put(head);
        out.put(payload);
        messages.push(out.freeze());
        if is_last {
            return;
        }
        is_first = false;
    }
}

/// What a peer last said, by service.
pub(crate) type HealthTable = HashMap<String, Vec<ServiceHealth>>;

/// Follows the health stream of a peer.
#[derive(Debug, Default)]
pub(crate) struct HealthReader {
    buffer: BytesMut,
    /// The state that the table is in; 0: none.
    version: u64,
    table: HealthTable,
    entries: usize,
    /// Parts of everything that have come so far.
    staged: Option<HealthTable>,
    staged_entries: usize,
    /// Changes of which the last part has not come.
    is_mid_change: bool,
    /// Of what it said something since that was asked last.
    news: HealthNews,
}

impl HealthReader {
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Takes every complete message in; true when the table changed.
    ///
    /// # Errors
    /// [`HealthError::Gap`]: ask for another stream. [`HealthError::Invalid`]: the peer is broken.
    pub(crate) fn advance(&mut self) -> Result<bool, HealthError> {
        let mut changed = false;
        while let Some((length, used)) = varint::decode(&self.buffer) {
            let length = usize::try_from(length).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
            let length = length.ok_or(HealthError::Invalid)?;
            if self.buffer.len() < used + length {
                break;
            }
            self.buffer.advance(used);
            let message = self.buffer.split_to(length);
            changed |= self.take(&message)?;
        }
        Ok(changed)
    }

    pub(crate) fn table(&self) -> &HealthTable {
        &self.table
    }

    /// Of what it said something since this was asked last.
    pub(crate) fn take_news(&mut self) -> HealthNews {
        std::mem::take(&mut self.news)
    }

    fn take(&mut self, mut message: &[u8]) -> Result<bool, HealthError> {
        let flags = *message.first().ok_or(HealthError::Invalid)?;
        message.advance(1);
        let base = number(&mut message).ok_or(HealthError::Invalid)?;
        let version = number(&mut message).ok_or(HealthError::Invalid)?;
        let (is_full, is_first, is_last) = (flags & FULL != 0, flags & FIRST != 0, flags & LAST != 0);
        if is_full {
            if is_first {
                (self.staged, self.staged_entries) = (Some(HealthTable::new()), 0);
            }
            let staged = self.staged.as_mut().ok_or(HealthError::Gap)?;
            fill(staged, &mut self.staged_entries, message, |_| {})?;
            if !is_last {
                return Ok(false);
            }
            self.table = self.staged.take().unwrap_or_default();
            (self.entries, self.version, self.is_mid_change) = (self.staged_entries, version, false);
            self.news = HealthNews::Everything;
            return Ok(true);
        }
        if self.staged.is_some() || base != self.version || version <= base || is_first == self.is_mid_change {
            return Err(HealthError::Gap);
        }
        fill(&mut self.table, &mut self.entries, message, |service| self.news.name(service))?;
        self.is_mid_change = !is_last;
        if is_last {
            self.version = version;
        }
        Ok(true)
    }
}

/// A health stream that cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HealthError {
    /// Something is missing in between.
    #[error("health messages are missing")]
    Gap,
    /// Not a health message, or more than any gateway has to say.
    #[error("invalid health message")]
    Invalid,
}

/// Applies the entries of a message, and tells of each which service it is about.
fn fill(
    table: &mut HealthTable,
    count: &mut usize,
    mut message: &[u8],
    mut told: impl FnMut(&str),
) -> Result<(), HealthError> {
    while !message.is_empty() {
        let (service, version, ready) = entry(&mut message).ok_or(HealthError::Invalid)?;
        told(&service);
        let versions = table.entry(service.clone()).or_default();
        let known = versions.iter().position(|known| known.version == version);
        match (known.and_then(|at| versions.get_mut(at)), ready) {
            (Some(known), Some(ready)) => known.ready = ready,
            (None, Some(ready)) => {
                *count += 1;
                if *count > ENTRIES_MAX || versions.len() >= VERSIONS_MAX {
                    return Err(HealthError::Invalid);
                }
                versions.push(ServiceHealth { service, version, ready });
            }
            (_, None) => {
                if let Some(at) = known {
                    versions.swap_remove(at);
                    *count -= 1;
                }
                if versions.is_empty() {
                    table.remove(&service);
                }
            }
        }
    }
    Ok(())
}

fn entry(message: &mut &[u8]) -> Option<(String, String, Option<u32>)> {
    let (service, version) = (text(message)?, text(message)?);
    let ready = number(message)?.checked_sub(1).map(u32::try_from).transpose().ok()?;
    Some((service, version, ready))
}

fn number(message: &mut &[u8]) -> Option<u64> {
    let (value, used) = varint::decode(message)?;
    *message = message.get(used..)?;
    Some(value)
}

fn text(message: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(number(message)?).ok()?;
    let (text, rest) = message.split_at_checked(length)?;
    *message = rest;
    String::from_utf8(text.to_vec()).ok()
}

const FULL: u8 = 1;
const FIRST: u8 = 2;
const LAST: u8 = 4;
/// A part is sent once it is this long: one entry more is at most what two names of Kubernetes and their lengths take.
const PART_BYTES: usize = 16 * 1024;
/// More than any part, less than a peer could hurt with.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Ten thousand services in ten versions each; at about 150 bytes an entry 15 MiB per peer.
const ENTRIES_MAX: usize = 100_000;
/// Versions of one service: a preview of every branch, and then some. They are looked through one by one.
const VERSIONS_MAX: usize = 1024;
/// Changes kept for writers that are behind: a writer that is further behind than everything is long sends everything.
const RECENT_MAX: usize = 256;
const RECENT_ENTRIES_MIN: usize = 1024;

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
