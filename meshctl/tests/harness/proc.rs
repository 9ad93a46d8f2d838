//! Processes as `/proc` shows them: whose they are, what they hold, how much memory they use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// Sends SIGKILL to a process that `status` named a moment ago.
pub(crate) fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Processes that a state directory's supervisor started, and itself: they carry its path in their environment.
pub(crate) fn marked(state: &Path) -> Vec<u32> {
    let wanted = format!("ARCHIPELAGO_UP={}", state.display());
    pids()
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()))
        })
        .collect()
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Value of a command line flag of a process.
pub(crate) fn flag(pid: u32, name: &str) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    words.find(|word| word == name).unwrap_or_else(|| panic!("pid {pid} has no {name}"));
    words.next().unwrap().into_owned()
}

/// Resident memory in bytes: now, and the largest since [`reset_peak`].
pub(crate) fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0 kB");
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Memory of processes from here on; [`Watched::growth`] says by how much the worst grew.
pub(crate) struct Watched(BTreeMap<String, (u32, u64)>);

/// Starts to watch the memory of these processes.
pub(crate) fn watch_memory(processes: impl IntoIterator<Item = (String, u32)>) -> Watched {
    let watch = |(name, pid): (String, u32)| {
        // 5 resets VmHWM to the present use (proc_pid_clear_refs(5)).
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        (name, (pid, memory(pid).0))
    };
    Watched(processes.into_iter().map(watch).collect())
}

impl Watched {
    /// The process whose peak rose highest above where it began, in bytes.
    pub(crate) fn growth(&self) -> (String, u64) {
        self.0
            .iter()
            .map(|(name, (pid, before))| (name.clone(), memory(*pid).1.saturating_sub(*before)))
            .max_by_key(|(_, growth)| *growth)
            .unwrap()
    }
}

/// Transport of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// Everything on which a process can be reached: TCP listeners and UDP sockets.
pub(crate) fn listeners(pid: u32) -> BTreeSet<(Transport, SocketAddr)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let inodes: BTreeSet<u64> = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect();
    let tcp = sockets("/proc/net/tcp").into_iter().filter(|socket| socket.state == LISTEN);
    let udp = sockets("/proc/net/udp").into_iter();
    let tagged = tcp.map(|socket| (Transport::Tcp, socket)).chain(udp.map(|socket| (Transport::Udp, socket)));
    tagged.filter(|(_, socket)| inodes.contains(&socket.inode)).map(|(kind, socket)| (kind, socket.local)).collect()
}

/// One line of `/proc/net/tcp`.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) state: u8,
    /// Bytes that the peer has not acknowledged.
    pub(crate) unsent: u64,
    /// Bytes that the process has not read.
    pub(crate) unread: u64,
    inode: u64,
}

/// Established TCP connections whose local end is `local`.
pub(crate) fn connections_of(local: SocketAddr) -> Vec<Socket> {
    let all = sockets("/proc/net/tcp").into_iter();
    all.filter(|socket| socket.state == ESTABLISHED && socket.local == local).collect()
}

/// Reads a table as proc_pid_net(5) describes it: `sl local remote st tx:rx …  inode`, numbers in hexadecimal.
fn sockets(table: &str) -> Vec<Socket> {
    let text = fs::read_to_string(table).unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let address = |text: &str| {
        let (ip, port) = text.split_once(':').unwrap();
        let ip = Ipv4Addr::from((hex(ip) as u32).to_le_bytes());
        SocketAddr::from((ip, hex(port) as u16))
    };
    text.lines()
        .skip(1)
        .map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let (unsent, unread) = columns[4].split_once(':').unwrap();
            Socket {
                local: address(columns[1]),
                remote: address(columns[2]),
                state: hex(columns[3]) as u8,
                unsent: hex(unsent),
                unread: hex(unread),
                inode: columns[9].parse().unwrap(),
            }
        })
        .collect()
}

const ESTABLISHED: u8 = 0x01;
const LISTEN: u8 = 0x0a;
