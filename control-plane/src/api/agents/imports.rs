//! What the federation exports, for an agent that imports it: complete at first, then what changed.

use archipelago_model::{
    delta::{Delta, Reader, Shared},
    version::Version,
};
use archipelago_proto::v1::{Import, Imports};
use prost::Message as _;
use tokio::sync::watch;

use crate::config;

/// One agent's place in it.
pub(super) struct Feed {
    newest: watch::Receiver<Option<config::Imports>>,
    reader: Reader<String, Shared<Import>>,
    /// A majority confirmed in this session that the federation is at least there.
    confirmed: Option<Version>,
}

impl Feed {
    pub(super) fn new(newest: watch::Receiver<Option<config::Imports>>) -> Self {
        Self { newest, reader: Reader::default(), confirmed: None }
    }

    pub(super) fn confirmed(&mut self, applied: Version) {
        self.confirmed = Some(applied);
    }

    /// Resolves when there may be news; false: this member is stopping.
    pub(super) async fn changed(&mut self) -> bool {
        self.newest.changed().await.is_ok()
    }

    /// What to send now, in order. Nothing before a majority confirmed: what a member that is behind does not know of would
    /// be taken away.
    pub(super) fn next(&mut self) -> Vec<Imports> {
        let newest = self.newest.borrow_and_update();
        let Some(config::Imports { version, table }) = newest.as_ref() else { return Vec::new() };
        if self.confirmed.is_none_or(|applied| *version < applied) {
            return Vec::new();
        }
        self.reader.next(table).map(|delta| parts(delta, PART_BYTES_MAX)).unwrap_or_default()
    }
}

/// A change as messages of about so many bytes each.
fn parts(delta: Delta<String, Shared<Import>>, bytes_max: usize) -> Vec<Imports> {
    let Delta { full, upserts, removals } = delta;
    let mut parts = vec![Imports { full, ..Imports::default() }];
    let mut bytes = 0;
    let rows = upserts
        .into_iter()
        .map(|(_, import)| (import.encoded_len(), Row::Upsert(Import::clone(&import))))
        .chain(removals.into_iter().map(|key| (key.len(), Row::Removal(key))));
    for (length, row) in rows {
        if bytes + length > bytes_max && bytes > 0 {
            if let Some(last) = parts.last_mut() {
                last.more = true;
            }
            parts.push(Imports::default());
            bytes = 0;
        }
        bytes += length;
        if let Some(last) = parts.last_mut() {
            match row {
                Row::Upsert(import) => last.upserts.push(import),
                Row::Removal(key) => last.removals.push(key),
            }
        }
    }
    parts
}

enum Row {
    Upsert(Import),
    Removal(String),
}

/// A quarter of what clients of gRPC take by default.
const PART_BYTES_MAX: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use imbl::OrdMap;

    use super::*;

    fn table(names: &[&str]) -> OrdMap<String, Shared<Import>> {
        let import = |name: &&str| {
            let row = Import { namespace: "shop".into(), name: (*name).into(), exporters: Vec::new() };
            (format!("shop/{name}"), Shared::new(row))
        };
        names.iter().map(import).collect()
    }

    fn version(fleet: u64) -> Version {
        Version { fleet, ..Version::default() }
    }

    #[test]
    fn nothing_is_sent_before_a_majority_confirmed_and_then_everything_and_then_changes() {
        let (newest, receiver) = watch::channel(None);
        let mut feed = Feed::new(receiver);
        assert_eq!(feed.next(), []);
        newest.send_replace(Some(config::Imports { version: version(3), table: table(&["a"]) }));
        assert_eq!(feed.next(), []);
        feed.confirmed(version(4));
        assert_eq!(feed.next(), [], "made of a state before the one that was confirmed");
        newest.send_replace(Some(config::Imports { version: version(4), table: table(&["a", "b"]) }));
        let [full] = &feed.next()[..] else { panic!("not one message") };
        assert!(full.full && !full.more && full.upserts.len() == 2);
        newest.send_replace(Some(config::Imports { version: version(5), table: table(&["a", "b"]) }));
        assert_eq!(feed.next(), []);
        newest.send_replace(Some(config::Imports { version: version(6), table: table(&["b", "c"]) }));
        let [change] = &feed.next()[..] else { panic!("not one message") };
        assert!(!change.full && change.upserts[0].name == "c" && change.removals == ["shop/a"]);
    }

    #[test]
    fn a_large_change_comes_in_parts_and_an_empty_list_in_one() {
        let cut = parts(Delta::full(&table(&["a", "b", "c"])), 20);
        let shape: Vec<_> = cut.iter().map(|part| (part.full, part.more, part.upserts.len())).collect();
        assert_eq!(shape, [(true, true, 2), (false, false, 1)]);
        let removed = parts(Delta::between(&table(&["a", "b", "c"]), &table(&["d"])), 12);
        let shape: Vec<_> = removed.iter().map(|part| (part.more, part.upserts.len(), part.removals.len())).collect();
        assert_eq!(shape, [(true, 1, 0), (true, 0, 2), (false, 0, 1)]);
        let [empty] = &parts(Delta::full(&table(&[])), 20)[..] else { panic!("not one message") };
        assert!(empty.full && !empty.more);
    }
}
