//! Names of the objects that stand for an import.

use archipelago_model::id::ServiceKey;
use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;

use crate::types::Transport;

/// Name of the Service that a ServiceImport is derived into: unique by a hash, and readable.
pub(super) fn derived(name: &str) -> String {
    let hash = HEXLOWER.encode(digest(&SHA256, name.as_bytes()).as_ref());
    let hash = hash.get(..10).unwrap_or(&hash);
    // Names of Services are ASCII; a cut must not leave a dash at the end.
    let cut = name.get(..48).unwrap_or(name).trim_end_matches(['-', '.']);
    format!("imp-{hash}-{cut}")
}

/// Name of one of its slices.
pub(super) fn slice(derived: &str, family: &str, index: usize) -> String {
    format!("{derived}-{}-{index}", family.to_ascii_lowercase())
}

/// Whether a slice with this name holds addresses of `family`.
pub(super) fn slice_is_of(name: &str, family: &str) -> bool {
    name.rsplit('-').nth(1) == Some(&family.to_ascii_lowercase())
}

/// Name of a port of the derived Service: it says the port of the import, so that a slice alone tells which listen port is
/// whose. A Service with several ports needs names, and those of the exporters may be empty.
pub(super) fn port(transport: Transport, port: u16) -> String {
    format!("{}-{port}", transport.as_str().to_ascii_lowercase())
}

/// The TCP port of an import that a port of a slice stands for.
pub(super) fn tcp_port(name: &str) -> Option<u16> {
    name.strip_prefix("tcp-")?.parse().ok().filter(|port| *port != 0)
}

/// A port of a service of the federation.
pub(super) type PortKey = (ServiceKey, u16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_whatever_they_come_from() {
        let long = "a".repeat(63);
        for name in ["checkout", long.as_str(), &format!("{}-b", "a".repeat(47))] {
            let derived = derived(name);
            assert!(derived.len() <= 63 && !derived.ends_with('-'), "{derived}");
            assert!(slice(&derived, "IPv6", 12).len() <= 253);
        }
        assert_eq!(derived("checkout"), derived("checkout"));
        assert_ne!(derived(&format!("{}a", "x".repeat(60))), derived(&format!("{}b", "x".repeat(60))));
        assert!(derived("checkout").ends_with("-checkout"));
    }

    #[test]
    fn a_port_reads_back_from_its_name() {
        assert_eq!(tcp_port(&port(Transport::Tcp, 8_080)), Some(8_080));
        for other in ["", "http", "tcp-", "tcp-0", "tcp-70000", "udp-53", &port(Transport::Udp, 53)] {
            assert_eq!(tcp_port(other), None, "{other}");
        }
    }
}
