//! Who waits in a handshake, and who has to make room, without I/O.
//!
//! A handshake costs a stranger one packet and us state for as long as we wait. One source may hold a few places; the next one
//! from there takes the place of its own oldest. When every place is taken, the source that holds the most gives up its oldest. So
//! a flood displaces itself, and an honest handshake, which is done within a round trip or two, is hardly ever the oldest of the greediest.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

/// The handshakes in progress.
#[derive(Debug)]
pub(crate) struct Lobby {
    places: usize,
    per_source: usize,
    /// Oldest first, since tickets are counted up.
    waiting: BTreeMap<Ticket, Source>,
    counts: HashMap<Source, usize>,
    next: u64,
}

/// One handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// Where handshakes come from: an IPv4 address, or the /64 that one IPv6 host has all to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source(IpAddr);

impl Source {
    pub(crate) fn of(address: SocketAddr) -> Self {
        Self(match address.ip().to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & !u128::from(u64::MAX)).into()),
            ip @ IpAddr::V4(_) => ip,
        })
    }
}

impl Lobby {
    pub(crate) fn new(places: usize, per_source: usize) -> Self {
        let places = places.max(1);
        Self {
            places,
            per_source: per_source.clamp(1, places),
            waiting: BTreeMap::new(),
            counts: HashMap::new(),
            next: 0,
        }
    }

    /// Takes one more handshake in; returns its ticket, and the one to be dropped for it.
    pub(crate) fn arrive(&mut self, source: Source) -> (Ticket, Option<Ticket>) {
        let greedy = if self.count(source) >= self.per_source {
            Some(source)
        } else if self.waiting.len() >= self.places {
            // Among equals the one with the oldest handshake: no order of a hash table decides.
            let most = self.counts.values().copied().max().unwrap_or(0);
            self.waiting.values().find(|source| self.count(**source) == most).copied()
        } else {
            None
        };
        let dropped =
            greedy.and_then(|greedy| self.waiting.iter().find(|(_, s)| **s == greedy).map(|(ticket, _)| *ticket));
        if let Some(dropped) = dropped {
            self.leave(dropped);
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.insert(ticket, source);
        *self.counts.entry(source).or_insert(0) += 1;
        (ticket, dropped)
    }

    /// A handshake ended, whichever way. A ticket that was dropped before is no error.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        let Some(source) = self.waiting.remove(&ticket) else { return };
        if let Some(count) = self.counts.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&source);
            }
        }
    }

    /// True when addresses should prove themselves before they cost anything.
    pub(crate) fn is_busy(&self, source: Source) -> bool {
        self.waiting.len() * 2 >= self.places || self.count(source) * 2 >= self.per_source
    }

    fn count(&self, source: Source) -> usize {
        self.counts.get(&source).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(host: u8) -> Source {
        Source::of(SocketAddr::from(([10, 0, 0, host], 1)))
    }

    #[test]
    fn one_source_displaces_itself() {
        let mut lobby = Lobby::new(8, 3);
        let (honest, _) = lobby.arrive(source(1));
        let flood: Vec<_> = (0..20).map(|_| lobby.arrive(source(2))).collect();
        assert_eq!(flood.iter().filter(|(_, dropped)| dropped.is_none()).count(), 3);
        for (n, (_, dropped)) in flood.iter().enumerate().skip(3) {
            assert_eq!(*dropped, Some(flood[n - 3].0), "its own oldest");
        }
        assert!(lobby.waiting.contains_key(&honest));
        assert!(!lobby.is_busy(source(1)) || lobby.waiting.len() * 2 >= 8);
        assert!(lobby.is_busy(source(2)));
    }

    #[test]
    fn a_full_lobby_drops_the_oldest_of_the_greediest() {
        let mut lobby = Lobby::new(4, 3);
        let (honest, _) = lobby.arrive(source(1));
        let (first, _) = lobby.arrive(source(2));
        lobby.arrive(source(2));
        lobby.arrive(source(2));
        let (_, dropped) = lobby.arrive(source(3));
        assert_eq!(dropped, Some(first));
        assert!(lobby.waiting.contains_key(&honest));
    }

    #[test]
    fn one_host_of_ipv6_is_one_source() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff:1]:2"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_eq!(of("[::ffff:10.0.0.1]:1"), of("10.0.0.1:2"));
    }

    proptest! {
        #[test]
        fn never_more_than_there_are_places(steps in proptest::collection::vec((0u8..6, any::<bool>(), 0usize..40), 0..200)) {
            let mut lobby = Lobby::new(10, 4);
            let mut tickets = Vec::new();
            for (host, arrives, pick) in steps {
                if arrives || tickets.is_empty() {
                    let (ticket, dropped) = lobby.arrive(source(host));
                    prop_assert!(dropped != Some(ticket));
                    tickets.push(ticket);
                } else {
                    lobby.leave(tickets[pick % tickets.len()]);
                }
                prop_assert!(lobby.waiting.len() <= 10);
                prop_assert_eq!(lobby.counts.values().sum::<usize>(), lobby.waiting.len());
                prop_assert!(lobby.counts.values().all(|count| (1..=4).contains(count)));
            }
        }
    }
}
