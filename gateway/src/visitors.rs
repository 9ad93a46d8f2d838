//! What one client takes of a gateway: connections and requests by address, on all workers together.
//!
//! Without a bound, the first client that opens connections and says nothing takes them all, and everybody else is refused. An
//! IPv6 client has a /64 to itself (RFC 6177), so that is what counts. Behind some addresses there are many clients, a load
//! balancer's for one: such networks are exempt. Memory is bounded by what is open: an address without a connection is
//! not known.
//!
//! A connection costs a lock of one shard when it begins and when it ends, a request two additions on a number that only
//! connections of the same client share.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::BuildHasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much one client may have at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Connections.
    pub connections_max: usize,
    /// Requests.
    pub requests_max: usize,
    /// Connections of all clients together, on all workers: what descriptors are there for.
    pub all_connections_max: usize,
}

/// Why a client does not get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// It has as many connections as it may.
    Client,
    /// All clients together have.
    Gateway,
}

/// All clients of a gateway.
#[derive(Debug)]
pub struct Visitors {
    share: Share,
    /// Networks without bounds.
    exempt: Vec<Network>,
    /// Connections.
    open: AtomicUsize,
    hasher: foldhash::fast::RandomState,
    shards: [Mutex<HashMap<IpAddr, Arc<Counts>, foldhash::fast::RandomState>>; SHARDS],
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Visitors {
    /// Nobody yet.
    pub fn new(share: Share, exempt: Vec<Network>) -> Arc<Self> {
        Arc::new(Self {
            share,
            exempt,
            open: AtomicUsize::new(0),
            hasher: Default::default(),
            shards: Default::default(),
        })
    }

    /// A connection of the client at `ip`.
    ///
    /// # Errors
    /// There are too many.
    pub fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<Rc<Visit>, Full> {
        // Whatever becomes of it, it is counted until it is dropped.
        let mut visit = Visit { visitors: Arc::clone(self), counted: None };
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.share.all_connections_max {
            return Err(Full::Gateway);
        }
        let client = client(ip);
        if self.exempt.iter().any(|network| network.contains(client)) {
            return Ok(Rc::new(visit));
        }
        let mut shard = self.shard(client).ok_or(Full::Client)?;
        match shard.entry(client) {
            Entry::Occupied(known) if known.get().connections.load(Ordering::Relaxed) >= self.share.connections_max => {
                return Err(Full::Client);
            }
            entry => {
                let counts = entry.or_default();
                counts.connections.fetch_add(1, Ordering::Relaxed);
                visit.counted = Some((client, Arc::clone(counts)));
            }
        }
        Ok(Rc::new(visit))
    }

    fn shard(
        &self,
        client: IpAddr,
    ) -> Option<MutexGuard<'_, HashMap<IpAddr, Arc<Counts>, foldhash::fast::RandomState>>> {
        let place = usize::try_from(self.hasher.hash_one(client) % SHARDS as u64).ok()?;
        Some(self.shards.get(place)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn leave(&self, client: IpAddr) {
        let Some(mut shard) = self.shard(client) else { return };
        let Entry::Occupied(entry) = shard.entry(client) else { return };
        if entry.get().connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            entry.remove();
        }
    }
}

/// One connection of a client, until dropped.
#[derive(Debug)]
pub struct Visit {
    visitors: Arc<Visitors>,
    /// `None`: exempt.
    counted: Option<(IpAddr, Arc<Counts>)>,
}

impl Visit {
    /// One more request on it; `None` when the client has as many as it may.
    pub fn request(self: &Rc<Self>) -> Option<Asking> {
        if let Some((_, counts)) = &self.counted {
            // Workers may each see one too many for a moment, and then each refuses one too many: nobody gets more than his share.
            if counts.requests.fetch_add(1, Ordering::Relaxed) >= self.visitors.share.requests_max {
                counts.requests.fetch_sub(1, Ordering::Relaxed);
                return None;
            }
        }
        Some(Asking(Rc::clone(self)))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.visitors.open.fetch_sub(1, Ordering::Relaxed);
        if let Some((client, _)) = self.counted {
            self.visitors.leave(client);
        }
    }
}

/// One request of a client, until dropped. Its connection counts at least as long.
#[derive(Debug)]
pub struct Asking(Rc<Visit>);

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some((_, counts)) = &self.0.counted {
            counts.requests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Who counts as one: an IPv4 address, also one that is written as IPv6, or a /64.
fn client(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

/// Addresses with a common beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    bits: u32,
}

impl Network {
    /// True for its addresses.
    pub fn contains(self, ip: IpAddr) -> bool {
        prefix(ip, self.bits) == Some(self.first)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let wrong = || format!("expected an address or a network such as 10.0.0.0/8, not {text:?}");
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(all), |bits| bits.parse().ok()).filter(|bits| *bits <= all).ok_or_else(wrong)?;
        // A /64 is one client.
        let bits = if address.is_ipv6() { bits.min(64) } else { bits };
        Ok(Self { first: prefix(address, bits).ok_or_else(wrong)?, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

/// The first `bits` of an address; `None` where it has not so many.
fn prefix(ip: IpAddr, bits: u32) -> Option<IpAddr> {
    Some(match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(bits)?).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(bits)?).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    })
}

/// Workers rarely meet at one of them.
const SHARDS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn visitors(connections_max: usize, requests_max: usize, exempt: &[&str]) -> Arc<Visitors> {
        let exempt = exempt.iter().map(|network| network.parse().unwrap()).collect();
        Visitors::new(Share { connections_max, requests_max, all_connections_max: 110 }, exempt)
    }

    fn known(visitors: &Visitors) -> usize {
        visitors.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_client_has_its_share_and_no_more_and_leaves_nothing_behind() {
        let visitors = visitors(2, 3, &["10.9.0.0/16", "fd00::/48"]);
        // Addresses of one client, and another client.
        for (one, same, other) in [
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.2"),
            ("2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8:0:1::1"),
        ] {
            let (first, second) = (visitors.enter(ip(one)).unwrap(), visitors.enter(ip(same)).unwrap());
            assert!(visitors.enter(ip(one)).is_err() && visitors.enter(ip(same)).is_err(), "{one}");
            let asking = [first.request(), first.request(), second.request()];
            assert!(asking.iter().all(Option::is_some));
            assert!(first.request().is_none() && second.request().is_none(), "{one}");
            let neighbour = visitors.enter(ip(other)).unwrap();
            assert!(neighbour.request().is_some(), "{other}");
            let [asked, ..] = asking;
            drop(asked);
            assert!(second.request().is_some());
            // A connection counts until the last request on it is done.
            drop(first);
            assert_eq!(visitors.enter(ip(one)).err(), Some(Full::Client));
        }
        assert_eq!(known(&visitors), 0);
        let many: Vec<_> = (0..100).map(|_| visitors.enter(ip("10.9.1.1")).unwrap()).collect();
        let asking: Vec<_> = many.iter().map(Visit::request).collect();
        assert!(asking.iter().all(Option::is_some));
        assert!(visitors.enter(ip("fd00::7")).is_ok());
        // All together have no more than there is.
        let others: Vec<_> = (0..10).map(|n| visitors.enter(IpAddr::from([10, 1, 0, n])).unwrap()).collect();
        assert_eq!(visitors.enter(ip("10.2.0.1")).err(), Some(Full::Gateway));
        assert_eq!(visitors.enter(ip("10.9.1.1")).err(), Some(Full::Gateway), "exempt from the share only");
        drop((many, asking, others));
        assert!(visitors.enter(ip("10.2.0.1")).is_ok());
        assert_eq!(visitors.open.load(Ordering::Relaxed), 0);
        assert_eq!(known(&visitors), 0);
    }

    #[test]
    fn networks_are_read_and_said() {
        for (text, said, inside, outside) in [
            ("10.1.2.3/8", "10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3/32", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "0.0.0.0/0", "192.0.2.1", "::1"),
            ("2001:db8::1/32", "2001:db8::/32", "2001:db8:ffff::", "2001:db9::"),
            ("2001:db8::1", "2001:db8::/64", "2001:db8::", "2001:db8:0:1::"),
        ] {
            let network: Network = text.parse().unwrap();
            assert_eq!(network.to_string(), said);
            assert!(network.contains(ip(inside)) && !network.contains(ip(outside)), "{text}");
        }
        for bad in ["", "/", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "shop/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
