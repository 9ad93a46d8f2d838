//! Heads whose memory is used again: a message then costs neither the allocations of its head nor copies of it from hand to hand.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

use crate::fields::Fields;
use crate::head::{RequestHead, ResponseHead};

/// One that goes back to its thread's pool when it is dropped. Empty at first, a pointer in size.
pub struct Pooled<T: Reusable>(Option<Box<T>>);

/// What can be pooled.
pub trait Reusable: Default + 'static {
    /// Forgets what it holds, and gives back the memory that only large messages need.
    fn reset(&mut self);

    /// Those that nobody uses now.
    #[doc(hidden)]
    fn idle() -> &'static LocalKey<RefCell<Vec<Box<Self>>>>;
}

macro_rules! reusable {
    ($($type:ty: $pool:ident,)*) => {$(
        thread_local! {
            static $pool: RefCell<Vec<Box<$type>>> = const { RefCell::new(Vec::new()) };
        }

        impl Reusable for $type {
            fn reset(&mut self) {
                self.clear();
                self.shrink_to(BYTES_KEPT);
            }

            fn idle() -> &'static LocalKey<RefCell<Vec<Box<Self>>>> {
                &$pool
            }
        }
    )*};
}

reusable! {
    RequestHead: REQUESTS,
    ResponseHead: RESPONSES,
    Fields: FIELDS,
}

impl<T: Reusable> Pooled<T> {
    /// One of the pool, or a new one.
    pub fn new() -> Self {
        let idle = T::idle().try_with(|idle| idle.borrow_mut().pop());
        Self(Some(idle.ok().flatten().unwrap_or_default()))
    }
}

impl<T: Reusable> Pooled<T> {
    /// Takes what it holds; nobody may look at it any more.
    pub fn hand_over(&mut self) -> Self {
        Self(self.0.take())
    }
}

impl<T: Reusable> Default for Pooled<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Reusable> From<T> for Pooled<T> {
    fn from(head: T) -> Self {
        Self(Some(Box::new(head)))
    }
}

impl<T: Reusable> Deref for Pooled<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        match &self.0 {
            Some(head) => head,
            None => unreachable!("only one that is being dropped is empty"),
        }
    }
}

impl<T: Reusable> DerefMut for Pooled<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.0 {
            Some(head) => head,
            None => unreachable!("only one that is being dropped is empty"),
        }
    }
}

impl<T: Reusable> Drop for Pooled<T> {
    fn drop(&mut self) {
        let Some(mut head) = self.0.take() else { return };
        // A thread that ends has no pool any more.
        let _ = T::idle().try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.len() < IDLE_MAX {
                head.reset();
                idle.push(head);
            }
        });
    }
}

impl<T: Reusable + fmt::Debug> fmt::Debug for Pooled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Of each kind and thread; with [`BYTES_KEPT`] half a megabyte at most, and less than a hundred kilobytes for usual messages.
const IDLE_MAX: usize = 128;
/// Nearly every head of a browser.
const BYTES_KEPT: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Known;

    #[test]
    fn memory_is_used_again_and_nothing_else() {
        let mut head = Pooled::<RequestHead>::new();
        assert!(head.set_path(b"/secret") && head.set_authority(b"a"));
        head.fields.push(Known::Cookie, b"secret");
        head.protocol = Some("websocket".into());
        let (at, room) = (&raw const *head, head.fields.text_bytes());
        drop(head);
        let again = Pooled::<RequestHead>::new();
        assert_eq!((&raw const *again, &*again), (at, &RequestHead::new()));
        assert!(room > 0 && again.fields.text_bytes() == 0);
        assert_ne!(&raw const *Pooled::<RequestHead>::new(), at, "it is in use");
    }

    #[test]
    fn the_pool_is_bounded() {
        let mut large = Pooled::<ResponseHead>::new();
        large.fields.push(Known::Cookie, &vec![b'a'; 1 << 20]);
        drop(large);
        assert!(Pooled::<ResponseHead>::new().fields.room() <= BYTES_KEPT);
        drop((0..IDLE_MAX + 10).map(|_| Pooled::<ResponseHead>::new()).collect::<Vec<_>>());
        RESPONSES.with_borrow(|idle| assert_eq!(idle.len(), IDLE_MAX));
    }
}
