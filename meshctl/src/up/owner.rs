//! Who holds a port: `/proc/net/{tcp,udp}` gives the socket's inode, `/proc/PID/fd` who has it open.

use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};

use super::layout::{Claim, Transport};

/// Every claim that cannot be had, as a line that names the port, who wants it and who has it.
///
/// The check binds and lets go again, so it sees exactly what the process would see.
pub(crate) fn conflicts(claims: &[Claim]) -> Vec<String> {
    claims
        .iter()
        .filter_map(|claim| {
            let bound = match claim.transport {
                Transport::Tcp => TcpListener::bind((claim.host, claim.port)).map(drop),
                Transport::Udp => UdpSocket::bind((claim.host, claim.port)).map(drop),
            };
            let why = match bound {
                Ok(()) => return None,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => format!("taken by {}", describe(claim)),
                Err(error) => error.to_string(),
            };
            let transport = match claim.transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            Some(format!("port {}/{transport} for {}: {why}", claim.port, claim.purpose))
        })
        .collect()
}

fn describe(claim: &Claim) -> String {
    let tables: &[&str] = match claim.transport {
        Transport::Tcp => &["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => &["/proc/net/udp", "/proc/net/udp6"],
    };
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|text| inodes_of(&text, claim.port, claim.transport))
        .collect();
    match holders(&inodes).as_slice() {
        [] => "a process that this user cannot see".to_owned(),
        holders => holders.join(", "),
    }
}

/// Inodes of the sockets in a `/proc/net/tcp`-style table that hold `port` locally.
///
/// Format: proc_pid_net(5); columns `sl local_address rem_address st … inode`, addresses `HEXIP:HEXPORT`.
/// A TCP connection that merely uses the port number does not hold it; a listener (state 0A) does.
fn inodes_of(table: &str, port: u16, transport: Transport) -> Vec<u64> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_ascii_whitespace();
            let (_, local_port) = columns.nth(1)?.rsplit_once(':')?;
            let state = columns.nth(1)?;
            let inode = columns.nth(5)?.parse().ok()?;
            let holds = transport == Transport::Udp || state == "0A";
            (u16::from_str_radix(local_port, 16) == Ok(port) && holds && inode != 0).then_some(inode)
        })
        .collect()
}

/// `pid N (name)` of every process that has one of these sockets open.
fn holders(inodes: &[u64]) -> Vec<String> {
    let targets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    if targets.is_empty() {
        return Vec::new();
    }
    super::process::pids()
        .filter(|pid| {
            let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
            entries
                .flatten()
                .filter_map(|entry| fs::read_link(entry.path()).ok())
                .any(|link| link.to_str().is_some_and(|link| targets.iter().any(|target| target == link)))
        })
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let of = super::process::mark_of(pid)
                .map_or_else(String::new, |state| format!(", of the federation in {}", state.display()));
            format!("pid {pid} ({}{of})", name.trim())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_owner_of_a_taken_port_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let host = Ipv4Addr::LOCALHOST.into();
        let claim = |transport, port| Claim { transport, host, port, purpose: "cp-1".to_owned() };
        let lines = conflicts(&[
            claim(Transport::Tcp, listener.local_addr().unwrap().port()),
            claim(Transport::Udp, socket.local_addr().unwrap().port()),
            claim(Transport::Tcp, free),
        ]);
        let us = format!("taken by pid {}", std::process::id());
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.iter().all(|line| line.contains(&us) && line.contains("for cp-1")), "{lines:?}");
    }

    #[test]
    fn tables_are_read_by_column() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1CE8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0
   1: 0100007F:1CE8 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0
   2: 0100007F:1CE9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4244 1 0
 short line
";
        assert_eq!(inodes_of(table, 7400, Transport::Tcp), [4242]);
        assert_eq!(inodes_of(table, 7400, Transport::Udp), [4242, 4243]);
        assert_eq!(inodes_of("", 7400, Transport::Tcp), Vec::<u64>::new());
    }
}
