//! Informational responses (RFC 9110 §15.2): passed on when they come, to whoever can be told.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

use archipelago_http::ResponseHead;
use http::StatusCode;

use super::http1::server::Conn;

/// The way back for informational responses.
#[derive(Debug, Clone)]
pub enum Interim {
    /// To nobody: HTTP/1.0 has none, and the server of HTTP/2 behind us cannot send them.
    None,
    /// To a client of HTTP/1.1.
    Http1(Rc<Conn>),
    /// To another gateway, once the task that answers it looks here.
    Peer(Rc<RefCell<Vec<ResponseHead>>>),
}

impl Interim {
    /// Passes one on.
    pub fn send(&self, head: &ResponseHead, cx: &mut Context<'_>) {
        match self {
            Self::None => {}
            Self::Http1(conn) => conn.interim(head, cx),
            Self::Peer(queue) if queue.borrow().len() < QUEUED_MAX => queue.borrow_mut().push(head.clone()),
            Self::Peer(_) => {}
        }
    }

    /// Says 100 in the place of an endpoint that would not.
    pub async fn go_on(&self) {
        let head = ResponseHead::of(StatusCode::CONTINUE);
        std::future::poll_fn(|cx| {
            self.send(&head, cx);
            Poll::Ready(())
        })
        .await;
    }
}

/// More at once are left out: nobody needs them.
const QUEUED_MAX: usize = 16;
