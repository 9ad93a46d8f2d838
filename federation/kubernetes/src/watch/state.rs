//! List and watch of one kind, without I/O: what to ask next, and what the index becomes.
//!
//! - An index is replaced by a complete one: what a list did not get to yet is not gone.
//! - A version that is too old (410) begins a new list, and the index stays until that is complete. If it happens in the
//!   middle of a paged list, the next list is not paged, so that a busy cluster cannot keep it from ever finishing.
//! - An object that cannot be read keeps what was known of it.

use std::{mem, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use super::wire::{self, Event, Head, Page};
use crate::{
    client::Failure,
    types::{Key, Kind, Names},
};

/// Objects by name.
pub type Objects<K> = OrdMap<Key, Arc<K>>;

/// Everything of a kind at one moment.
#[derive(Debug)]
pub struct Index<K> {
    /// By name.
    pub objects: Objects<K>,
    /// All were read at least once since the start; until then, what is absent may just not have been found yet.
    pub is_complete: bool,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self { objects: OrdMap::new(), is_complete: false }
    }
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self { objects: self.objects.clone(), is_complete: self.is_complete }
    }
}

impl<K: PartialEq> PartialEq for Index<K> {
    fn eq(&self, other: &Self) -> bool {
        self.is_complete == other.is_complete && (self.objects.ptr_eq(&other.objects) || self.objects == other.objects)
    }
}

/// What was added, removed or changed: key, before, after.
pub(crate) fn differences<'a, V: PartialEq>(
    before: &'a OrdMap<Key, V>,
    after: &'a OrdMap<Key, V>,
) -> impl Iterator<Item = (&'a Key, Option<&'a V>, Option<&'a V>)> {
    before.diff(after).map(|change| match change {
        DiffItem::Add(key, after) => (key, None, Some(after)),
        DiffItem::Remove(key, before) => (key, Some(before), None),
        DiffItem::Update { old: (_, before), new: (key, after) } => (key, Some(before), Some(after)),
    })
}

/// What to ask the API server next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Page { limit: Option<u32>, token: String },
    Watch { version: String },
}

#[derive(Debug)]
pub(super) struct ListWatch<K> {
    index: Index<K>,
    phase: Phase<K>,
    names: Names,
}

#[derive(Debug)]
enum Phase<K> {
    /// `token`: of the next page.
    Listing {
        found: Vec<(Key, Arc<K>)>,
        token: String,
        is_paged: bool,
    },
    Watching {
        version: String,
    },
}

impl<K> Phase<K> {
    fn from_the_start(is_paged: bool) -> Self {
        Self::Listing { found: Vec::new(), token: String::new(), is_paged }
    }
}

impl<K> Default for ListWatch<K> {
    fn default() -> Self {
        Self { index: Index::default(), phase: Phase::from_the_start(true), names: Names::default() }
    }
}

impl<K: Kind> ListWatch<K> {
    pub(super) fn ask(&self) -> Ask {
        match &self.phase {
            Phase::Listing { token, is_paged, .. } => {
                Ask::Page { limit: is_paged.then_some(PAGE_OBJECTS), token: token.clone() }
            }
            Phase::Watching { version } => Ask::Watch { version: version.clone() },
        }
    }

    pub(super) fn index(&self) -> Index<K> {
        self.index.clone()
    }

    /// A page came. The new index, if it was the last.
    pub(super) fn page(
        &mut self,
        page: Page<'_>,
        report: &mut impl FnMut(&Key, &serde_json::Error),
    ) -> Option<Index<K>> {
        let Phase::Listing { found, token, .. } = &mut self.phase else { return None };
        for object in page.items.unwrap_or_default() {
            let Ok(head) = Head::parse(object) else { continue };
            let key = head.key(&mut self.names);
            match wire::read::<K>(object, &mut self.names) {
                Ok(Some(now)) => {
                    found.push(shared(key, now, &self.index.objects));
                }
                Ok(None) => {}
                Err(error) => {
                    report(&key, &error);
                    if let Some(before) = self.index.objects.get(&key) {
                        found.push((key, before.clone()));
                    }
                }
            }
        }
        if !page.metadata.r#continue.is_empty() {
            *token = page.metadata.r#continue;
            return None;
        }
        self.index = Index { objects: packed(mem::take(found)), is_complete: true };
        self.phase = Phase::Watching { version: page.metadata.resource_version };
        Some(self.index.clone())
    }

    /// An event came. Whether the index changed.
    pub(super) fn event(
        &mut self,
        event: Event<'_>,
        report: &mut impl FnMut(&Key, &serde_json::Error),
    ) -> Result<bool, Failure> {
        let Phase::Watching { version } = &mut self.phase else { return Ok(false) };
        let object = match event {
            Event::Bookmark { version: at } => {
                advance(version, at);
                return Ok(false);
            }
            Event::Error(failure) => return Err(failure),
            Event::Applied(object) | Event::Deleted(object) => object,
        };
        let head = Head::parse(object).map_err(Failure::transport)?;
        let key = head.key(&mut self.names);
        let now = match event {
            Event::Deleted(_) => None,
            _ => match wire::read::<K>(object, &mut self.names) {
                Ok(now) => now,
                Err(error) => {
                    report(&key, &error);
                    advance(version, head.resource_version);
                    return Ok(false);
                }
            },
        };
        advance(version, head.resource_version);
        let objects = &mut self.index.objects;
        Ok(match now {
            None => objects.remove(&key).is_some(),
            Some(now) if objects.get(&key).is_some_and(|before| **before == now) => false,
            Some(now) => {
                let (key, now) = shared(key, now, objects);
                objects.insert(key, now);
                true
            }
        })
    }

    /// A request failed; the same is asked again, unless it would fail again for ever.
    pub(super) fn failed(&mut self, failure: &Failure) {
        if !failure.is_expired() {
            return;
        }
        self.phase = match &self.phase {
            // In the middle of a list: the pages were too slow for this cluster.
            Phase::Listing { token, .. } if !token.is_empty() => Phase::from_the_start(false),
            Phase::Listing { .. } | Phase::Watching { .. } => Phase::from_the_start(true),
        };
    }
}

/// Shared with what is known: a new list that brings nothing new costs no memory, and is no change.
fn shared<K: Kind>(key: Key, mut now: K, known: &Objects<K>) -> (Key, Arc<K>) {
    let Some((known_key, before)) = known.get_key_value(&key) else { return (key, Arc::new(now)) };
    if **before == now {
        return (known_key.clone(), before.clone());
    }
    now.share(before);
    (known_key.clone(), Arc::new(now))
}

/// Of several with one key the last counts.
///
/// A tree that grows at its end only, as that of a sorted list does, leaves every node half empty. Every second entry first, and
/// then the others in between, fills them.
fn packed<K>(mut list: Vec<(Key, Arc<K>)>) -> Objects<K> {
    list.sort_by(|(a, _), (b, _)| a.cmp(b));
    list.dedup_by(|later, earlier| {
        let is_same = later.0 == earlier.0;
        if is_same {
            mem::swap(later, earlier);
        }
        is_same
    });
    let mut objects = Objects::new();
    for first in [0, 1] {
        objects.extend(list.iter().skip(first).step_by(2).cloned());
    }
    objects
}

fn advance(version: &mut String, to: String) {
    // Without one, the old one is still right: the watch only repeats what is known.
    if !to.is_empty() {
        *version = to;
    }
}

/// As client-go.
const PAGE_OBJECTS: u32 = 500;
