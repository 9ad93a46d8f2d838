//! Where a gateway can be reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::Context as _;

use crate::handover::Offered;

/// Where the tunnels of each worker arrive. A successor has ports of another generation: those of the gateway before are in use, and
/// there is a way to tell peers of new ones, but none to hand over a QUIC connection.
pub(super) fn tunnels(base: SocketAddr, workers: usize, before: Option<&Offered>) -> anyhow::Result<Vec<SocketAddr>> {
    let beyond = || format!("the tunnel port {} plus the number of workers is beyond 65535", base.port());
    if base.port() == 0 {
        return Ok(vec![base; workers]);
    }
    let Some(before) = before else { return generation(base, workers, workers, 0).with_context(beyond) };
    // The counts may differ: of four blocks as long as the longer one, those before can touch two.
    let stride = workers.max(before.tunnel_ports.len());
    let is_free =
        |address: &SocketAddr| !before.tunnel_ports.contains(&address.port()) && UdpSocket::bind(address).is_ok();
    (0..TUNNEL_GENERATIONS)
        .filter_map(|number| generation(base, workers, stride, number))
        .find(|addresses| addresses.iter().all(is_free))
        .with_context(|| {
            let last = usize::from(base.port()) + TUNNEL_GENERATIONS * stride - 1;
            format!("no {workers} free UDP ports for the tunnels of a successor from {} to {last}", base.port())
        })
}

fn generation(base: SocketAddr, workers: usize, stride: usize, number: usize) -> Option<Vec<SocketAddr>> {
    let port = |worker: usize| base.port().checked_add(u16::try_from(number * stride + worker).ok()?);
    (0..workers).map(|worker| Some(SocketAddr::new(base.ip(), port(worker)?))).collect()
}

/// The address from which this machine reaches others; nothing is sent.
pub(super) fn own_ip() -> IpAddr {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // TEST-NET-1 (RFC 5737) stands for anywhere.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    };
    probe().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

/// One in use, one of a gateway that drains, and room for counts of workers that change.
const TUNNEL_GENERATIONS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_has_tunnel_ports_of_another_generation() {
        let ports = |addresses: Vec<SocketAddr>| addresses.iter().map(SocketAddr::port).collect::<Vec<_>>();
        let base = SocketAddr::from(([127, 0, 0, 1], free_block(32)));
        let at = |offset: u16| base.port() + offset;
        let before =
            |taken: &[u16]| Offered { boot: 1, tunnel_ports: taken.iter().map(|offset| at(*offset)).collect() };
        for (workers, taken, expected) in [
            (2, None, vec![0, 1]),
            (2, Some(vec![0, 1]), vec![2, 3]),
            (2, Some(vec![2, 3]), vec![0, 1]),
            (4, Some(vec![0, 1]), vec![4, 5, 6, 7]),
            (1, Some(vec![0, 1, 2, 3, 4, 5, 6, 7]), vec![8]),
            (8, Some(vec![2, 3]), vec![8, 9, 10, 11, 12, 13, 14, 15]),
        ] {
            let before = taken.map(|taken| before(&taken));
            let chosen = tunnels(base, workers, before.as_ref()).unwrap();
            let expected: Vec<u16> = expected.into_iter().map(at).collect();
            assert_eq!(ports(chosen), expected, "{workers} workers after {before:?}");
        }
        // The one before that may be draining still.
        let _taken = UdpSocket::bind(SocketAddr::new(base.ip(), at(3))).unwrap();
        assert_eq!(ports(tunnels(base, 2, Some(&before(&[0, 1]))).unwrap()), [at(4), at(5)]);
        let _all: Vec<_> = [4, 6].map(|offset| UdpSocket::bind(SocketAddr::new(base.ip(), at(offset))).unwrap()).into();
        let error = tunnels(base, 2, Some(&before(&[0, 1]))).unwrap_err().to_string();
        assert!(error.contains("no 2 free UDP ports"), "{error}");
        let high = SocketAddr::from(([127, 0, 0, 1], u16::MAX));
        assert!(tunnels(high, 2, None).unwrap_err().to_string().contains("beyond 65535"));
    }

    fn free_block(count: u16) -> u16 {
        let is_free = |port: u16| UdpSocket::bind(("127.0.0.1", port)).is_ok();
        (21_000..32_000).step_by(usize::from(count)).find(|base| (*base..base + count).all(is_free)).unwrap()
    }
}
