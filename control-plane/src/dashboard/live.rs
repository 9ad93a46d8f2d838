//! The stream of states to one page.

use std::{sync::Arc, time::Duration};

use archipelago_page::{
    action::{Bye, End},
    json,
};
use bytes::Bytes;
use http_body_util::channel::Sender;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Dashboard, Visitor, serve::Pace};
use crate::api::Context;

/// Sends every state as soon as the one before is taken, until the session ends or its reader does not read.
pub(super) async fn run(
    context: Arc<Context>,
    dashboard: Arc<Dashboard>,
    visitor: Visitor,
    left: Duration,
    pace: Pace,
    mut out: Sender<Bytes>,
) {
    let mut views = dashboard.views.subscribe();
    dashboard.looked.notify_one();
    let mut ended = visitor.ended.subscribe();
    let mut revocations = dashboard.revocations.subscribe();
    let ends = Instant::now() + left;
    let end = loop {
        revocations.mark_unchanged();
        if let Err(end) = visitor.judge(&dashboard.revocations, std::time::SystemTime::now()) {
            break end;
        }
        let view = views.borrow_and_update().clone();
        if let Some(view) = view {
            pace.allow(READ_TIME_MAX);
            // The one before it is on its way by then; what came in between is not sent at all.
            if !matches!(timeout(READ_TIME_MAX, out.send_data(view.event.clone())).await, Ok(Ok(()))) {
                return;
            }
        }
        pace.allow(READ_TIME_MAX);
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            _ = ended.changed() => {}
            _ = revocations.changed() => {}
            () = context.stopping.cancelled() => break End::Stopping,
            () = sleep_until(ends) => break End::Expired,
        }
    };
    let _ = timeout(READ_TIME_MAX, out.send_data(bye(end))).await;
}

fn bye(reason: End) -> Bytes {
    let bye = Bye { reason, message: words(reason).to_owned() };
    Bytes::from(format!("event: bye\ndata: {}\n\n", json::text(&bye)))
}

/// For whoever looks.
pub(super) const fn words(end: End) -> &'static str {
    match end {
        End::SignedOut => "you have signed out",
        End::Expired => "this session is over: run `meshctl dashboard` for a new one",
        End::Revoked => "the identity of this session was revoked",
        End::Stopping => "this member is shutting down: run `meshctl dashboard` for the page of another",
    }
}

/// Longer than any pause of a network that works; a state comes every two seconds, so that who takes none of them is gone.
const READ_TIME_MAX: Duration = Duration::from_secs(10);
