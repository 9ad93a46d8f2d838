//! Names as a worker keeps them: counted on its own thread, and compared by where they are.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::rc::Rc;

/// A name of one worker. Copies of it are equal; two that were made apart are not, whatever they say: who merges workers compares texts.
///
/// The names of a snapshot belong to all workers, which would take the counters of their references from each other with every
/// request.
#[derive(Debug, Clone)]
pub struct Name(Rc<str>);

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Rc::as_ptr(&self.0).cast::<u8>().hash(state);
    }
}

/// Names that have no better place, found by their text.
#[derive(Debug, Default)]
pub struct Names(RefCell<HashMap<Box<str>, Name>>);

impl Names {
    /// The name of this text.
    pub fn of(&self, text: &str) -> Name {
        let mut names = self.0.borrow_mut();
        if let Some(known) = names.get(text) {
            return known.clone();
        }
        // Whoever still uses the old ones is counted apart until workers are merged.
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        let name = Name::from(text);
        names.insert(text.into(), name.clone());
        name
    }
}

/// Closed services, and clusters that are gone.
const NAMES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_text_and_compared_by_place() {
        let names = Names::default();
        let (one, other) = (names.of("shop/web"), names.of("shop/web"));
        assert_eq!(one, other);
        assert_ne!(one, names.of("shop/api"));
        assert_ne!(one, Name::from("shop/web"));
        (0..NAMES_MAX).for_each(|n| drop(names.of(&n.to_string())));
        assert_ne!(one, names.of("shop/web"), "there is an end to it");
        assert_eq!(&*one, "shop/web");
        assert!(names.0.borrow().len() <= NAMES_MAX);
    }
}
