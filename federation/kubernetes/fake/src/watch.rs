//! Watches: what happened since a version, for those who select it, as long as they listen.

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};

use crate::{
    Shared,
    kinds::Kind,
    lock,
    selector::Selector,
    store::{Change, id},
};

pub(crate) struct Watch {
    pub(crate) shared: Arc<Shared>,
    pub(crate) kind: Kind,
    /// Version of the kind in the path.
    pub(crate) served: String,
    pub(crate) selector: Selector,
    pub(crate) version: u64,
    pub(crate) wants_bookmarks: bool,
    pub(crate) time: Duration,
}

/// Lines; an error breaks the connection off.
pub(crate) fn lines(watch: Watch) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
    let end = Instant::now() + watch.time;
    let changes = watch.shared.changes.subscribe();
    let mut broken = watch.shared.watches.subscribe();
    let mut bookmarks = watch.shared.bookmarks.subscribe();
    broken.mark_unchanged();
    bookmarks.mark_unchanged();
    stream::unfold(Some((watch, changes, broken, bookmarks)), move |state| async move {
        let (mut watch, mut changes, mut broken, mut bookmarks) = state?;
        loop {
            let mut is_paused = watch.shared.is_paused.subscribe();
            let _ = is_paused.wait_for(|is_paused| !is_paused).await;
            changes.mark_unchanged();
            let happened = lock(&watch.shared.store).since(watch.version);
            let lines = match happened {
                Ok(happened) => watch.events(&happened),
                Err(refusal) => {
                    let status = json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "code": refusal.code, "reason": refusal.reason, "message": refusal.message,
                    });
                    return Some((Ok(line("ERROR", &status)), None));
                }
            };
            if !lines.is_empty() {
                return Some((Ok(lines), Some((watch, changes, broken, bookmarks))));
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = broken.changed() => return Some((Err(std::io::Error::other("broken on purpose")), None)),
                changed = bookmarks.changed() => if changed.is_ok() && watch.wants_bookmarks {
                    let at = lock(&watch.shared.store).version();
                    watch.version = at;
                    let object = json!({
                        "kind": watch.kind.kind, "apiVersion": watch.kind.api_version(&watch.served),
                        "metadata": { "resourceVersion": at.to_string() },
                    });
                    return Some((Ok(line("BOOKMARK", &object)), Some((watch, changes, broken, bookmarks))));
                },
                () = sleep_until(end) => return None,
            }
        }
    })
}

impl Watch {
    fn events(&mut self, happened: &[Change]) -> Bytes {
        let mut lines = Vec::new();
        for change in happened {
            self.version = self.version.max(change.version);
            if change.plural != id(&self.kind) {
                continue;
            }
            let fits = |object: &&Value| self.selector.fits(object);
            let (before, after) = (change.before.as_ref().filter(fits), change.after.as_ref().filter(fits));
            let (what, object) = match (before, after) {
                (None, None) => continue,
                (None, Some(after)) => ("ADDED", after.clone()),
                (Some(_), Some(after)) => ("MODIFIED", after.clone()),
                // With the version of the change, by which the watcher knows how far it is.
                (Some(before), None) => {
                    let mut last = before.clone();
                    last["metadata"]["resourceVersion"] = change.version.to_string().into();
                    ("DELETED", last)
                }
            };
            lines.extend_from_slice(&line(what, &as_served(object, &self.kind, &self.served)));
        }
        lines.into()
    }
}

/// An object as a version of its kind shows it.
pub(crate) fn as_served(mut object: Value, kind: &Kind, version: &str) -> Value {
    object["apiVersion"] = kind.api_version(version).into();
    object
}

fn line(what: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({ "type": what, "object": object })).into()
}
