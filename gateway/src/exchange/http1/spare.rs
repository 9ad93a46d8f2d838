//! Buffers that the connections of a thread lend each other: who waits for the next message holds none.
//!
//! Connections that are idle outnumber those that are at work by far. Were each to free its buffers after a while, what a burst of
//! new ones had allocated would stay with the allocator; were each to allocate them anew, every request would pay for it.

use std::cell::RefCell;

use bytes::BytesMut;

thread_local! {
    static ROOMS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static TEXTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Room to read into, of [`ROOM`] bytes at least.
pub fn room() -> BytesMut {
    let spare = ROOMS.try_with(|rooms| rooms.borrow_mut().pop()).ok().flatten();
    spare.unwrap_or_else(|| BytesMut::with_capacity(ROOM))
}

/// Takes back what [`room`] gave. Large ones, and those of which somebody still holds a part, are not kept.
pub fn take_room(mut room: BytesMut) {
    room.clear();
    let is_large = room.try_reclaim(LARGE + 1);
    if !is_large && room.try_reclaim(ROOM) {
        keep(&ROOMS, room);
    }
}

/// Room to write heads and small bodies into; empty, perhaps without memory yet.
pub fn text() -> Vec<u8> {
    TEXTS.try_with(|texts| texts.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

/// Takes back what [`text`] gave. Large ones are not kept.
pub fn take_text(mut text: Vec<u8>) {
    text.clear();
    if (1..=LARGE).contains(&text.capacity()) {
        keep(&TEXTS, text);
    }
}

fn keep<T>(pool: &'static std::thread::LocalKey<RefCell<Vec<T>>>, buffer: T) {
    // A thread that ends keeps nothing.
    let _ = pool.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < KEPT_MAX {
            pool.push(buffer);
        }
    });
}

/// Heads of 900 bytes and small bodies fit.
pub const ROOM: usize = 8 * 1024;
/// What only large messages need.
const LARGE: usize = 2 * ROOM;
/// As many connections of a worker are between two messages at the same moment; half a megabyte a worker.
const KEPT_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_lent_again() {
        let mut first = room();
        first.extend_from_slice(&[7; 900]);
        let at = first.as_ptr();
        // A body of which nobody holds a part any more.
        drop(first.split_to(300).freeze());
        take_room(first);
        let again = room();
        assert_eq!((again.as_ptr(), again.len()), (at, 0));
        assert!(again.capacity() >= ROOM);
    }

    #[test]
    fn what_somebody_still_reads_is_never_lent() {
        let mut first = room();
        first.extend_from_slice(b"body");
        let held = first.split().freeze();
        take_room(first);
        let mut next = room();
        next.extend_from_slice(&[0; ROOM]);
        assert_eq!(held, b"body"[..]);
    }

    #[test]
    fn a_burst_and_large_messages_leave_little_behind() {
        let burst: Vec<_> = (0..10 * KEPT_MAX).map(|_| (room(), text())).collect();
        for (room, mut text) in burst {
            text.push(1);
            take_room(room);
            take_text(text);
        }
        take_room(BytesMut::with_capacity(1_000_000));
        take_text(Vec::with_capacity(1_000_000));
        let kept = ROOMS.with(|rooms| rooms.borrow().iter().map(BytesMut::capacity).sum::<usize>());
        let texts = TEXTS.with(|texts| texts.borrow().iter().map(Vec::capacity).sum::<usize>());
        assert!(kept <= KEPT_MAX * LARGE && texts <= KEPT_MAX * LARGE, "{kept} {texts}");
    }
}
