//! What a configuration may ask of a gateway, by name.
//!
//! The compiler writes into every resource which features it needs; a gateway says in its hello which it has. A gateway
//! that lacks one must not run a half-understood resource: it gets the service as *unsupported here* and answers it
//! closed. A name means one thing for ever: what changes its meaning gets a new name.

/// A list of revoked identities, enforced on every tunnel.
pub const REVOCATIONS: &str = "revocations";

/// What this version supports, sorted.
pub const ALL: &[&str] = &[REVOCATIONS];

/// Whether this version supports `feature`.
#[must_use]
pub fn is_supported(feature: &str) -> bool {
    ALL.binary_search(&feature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_so_that_it_can_be_searched() {
        assert!(ALL.is_sorted_by(|a, b| a < b));
        assert!(ALL.iter().all(|name| is_supported(name)));
        assert!(!is_supported("tea"));
    }
}
