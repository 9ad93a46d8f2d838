//! Drives a UDP link: one reader for clients, one per client for answers, one sender for what is due.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    net::UdpSocket,
    sync::Notify,
    task::{AbortHandle, JoinHandle},
};
use tracing::{debug, warn};

use super::{
    LinkConfig,
    conduit::{Carries, Conduit, DropReason, Offered},
    control::{Direction, LinkControl},
};
use crate::timer::Timer;

/// A UDP link; it carries packets until it is dropped.
#[derive(Debug)]
pub struct UdpLink {
    shared: Arc<Shared>,
    local: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

impl UdpLink {
    /// Binds `config.listen` and carries packets from then on. Needs a tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound, or there is no timer to be had.
    pub fn start(config: LinkConfig) -> io::Result<Self> {
        let listener = socket(config.listen)?;
        let local = listener.local_addr()?;
        let timer = Timer::new()?;
        let state = State {
            forward: Conduit::new(Carries::Datagrams, config.shape),
            back: Conduit::new(Carries::Datagrams, config.shape),
            rng: StdRng::seed_from_u64(config.seed),
            clients: HashMap::new(),
        };
        let shared = Arc::new(Shared {
            listener,
            to: config.to,
            control: LinkControl::new(config.shape),
            state: Mutex::new(state),
            sooner: Notify::new(),
        });
        let tasks =
            [tokio::spawn(read_clients(Arc::clone(&shared))), tokio::spawn(send_due(Arc::clone(&shared), timer))];
        Ok(Self { shared, local, tasks })
    }

    /// Where clients send to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Steers this link, also after it was moved elsewhere.
    pub fn control(&self) -> LinkControl {
        self.shared.control.clone()
    }

    /// Drops everything in silence, both ways, including what is on its way.
    pub fn cut(&self) {
        self.shared.control.cut();
    }

    /// Carries again, both ways.
    pub fn heal(&self) {
        self.shared.control.heal();
    }

    /// Sets the delay of each direction.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.control.set_delay(delay);
    }

    /// Sets the share of packets lost in each direction, from 0 to 1.
    pub fn set_loss(&self, loss: f64) {
        self.shared.control.set_loss(loss);
    }

    /// Gives every client a new address towards the far end, as a NAT does that lost its state.
    pub fn rebind(&self) {
        self.shared.state().clients.clear();
    }

    /// Client addresses that the link knows.
    pub fn clients(&self) -> usize {
        self.shared.state().clients.len()
    }
}

impl Drop for UdpLink {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.rebind();
    }
}

#[derive(Debug)]
struct Shared {
    listener: UdpSocket,
    to: SocketAddr,
    control: LinkControl,
    state: Mutex<State>,
    /// Something is due sooner than the sender knows.
    sooner: Notify,
}

#[derive(Debug)]
struct State {
    forward: Conduit<Packet>,
    back: Conduit<Packet>,
    rng: StdRng,
    clients: HashMap<SocketAddr, Client>,
}

/// A client's socket towards the far end, and the task that reads it.
#[derive(Debug)]
struct Client {
    socket: Arc<UdpSocket>,
    last_used: Instant,
    reader: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Debug)]
struct Packet {
    client: SocketAddr,
    socket: Arc<UdpSocket>,
    bytes: Bytes,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offer(&self, direction: Direction, packet: Packet) {
        let now = Instant::now();
        let length = packet.bytes.len();
        let mut state = self.state();
        let state = &mut *state;
        let conduit = match direction {
            Direction::Forward => &mut state.forward,
            Direction::Back => &mut state.back,
        };
        self.apply_settings(direction, conduit);
        let earliest = conduit.next_due();
        match conduit.offer(packet, length, now, &mut state.rng) {
            Offered::Dropped(why) => self.control.counts(direction).dropped(why, 1),
            Offered::Carried { due } if earliest.is_none_or(|earliest| due < earliest) => {
                self.sooner.notify_one();
            }
            Offered::Carried { .. } => {}
        }
    }

    fn apply_settings(&self, direction: Direction, conduit: &mut Conduit<Packet>) {
        let way = self.control.way(direction);
        let lost = conduit.set(way.shape, way.is_cut);
        self.control.counts(direction).dropped(DropReason::Cut, lost);
    }

    /// What has arrived, and when to look again.
    fn take_due(&self, due: &mut Vec<(Direction, Packet)>) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state();
        let State { forward, back, .. } = &mut *state;
        let mut next = None;
        for (direction, conduit) in [(Direction::Forward, forward), (Direction::Back, back)] {
            self.apply_settings(direction, conduit);
            while due.len() < BATCH
                && let Some(packet) = conduit.pop_due(now)
            {
                due.push((direction, packet));
            }
            next = [next, conduit.next_due()].into_iter().flatten().min();
        }
        next
    }

    /// The socket of `client` towards the far end, made when it is first heard of.
    fn socket_of(self: &Arc<Self>, client: SocketAddr) -> io::Result<Arc<UdpSocket>> {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(known) = state.clients.get_mut(&client) {
            known.last_used = now;
            return Ok(Arc::clone(&known.socket));
        }
        if state.clients.len() >= CLIENTS_MAX {
            state.clients.retain(|_, client| now.duration_since(client.last_used) < CLIENT_IDLE);
        }
        if state.clients.len() >= CLIENTS_MAX {
            return Err(io::Error::other("too many clients"));
        }
        let unspecified = match self.to {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = Arc::new(socket(unspecified)?);
        let reader = read_answers(Arc::clone(self), client, Arc::clone(&socket));
        let known = Client { socket: Arc::clone(&socket), last_used: now, reader: tokio::spawn(reader).abort_handle() };
        state.clients.insert(client, known);
        Ok(socket)
    }
}

async fn read_clients(shared: Arc<Shared>) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let (length, client) = match shared.listener.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Linux reports here that an earlier answer found no listener; it says so once.
                debug!(%error, "receiving from clients failed");
                continue;
            }
        };
        let Some(bytes) = buffer.get(..length).map(Bytes::copy_from_slice) else {
            continue;
        };
        match shared.socket_of(client) {
            Ok(socket) => shared.offer(Direction::Forward, Packet { client, socket, bytes }),
            Err(error) => {
                warn!(%client, %error, "dropping a packet of a new client");
                let counts = shared.control.counts(Direction::Forward);
                counts.dropped(DropReason::Queue, 1);
            }
        }
    }
}

async fn read_answers(shared: Arc<Shared>, client: SocketAddr, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "receiving answers failed");
                continue;
            }
        };
        // Not a connected socket, whose errors would end the link while the far end restarts; so
        // strangers are turned away here.
        if from != shared.to {
            continue;
        }
        let Some(bytes) = buffer.get(..length).map(Bytes::copy_from_slice) else {
            continue;
        };
        let packet = Packet { client, socket: Arc::clone(&socket), bytes };
        shared.offer(Direction::Back, packet);
    }
}

async fn send_due(shared: Arc<Shared>, timer: Timer) {
    let mut due = Vec::with_capacity(BATCH);
    loop {
        let next = shared.take_due(&mut due);
        if due.is_empty() {
            let waited = tokio::select! {
                () = shared.sooner.notified() => Ok(()),
                waited = async {
                    match next {
                        Some(next) => timer.until(next).await,
                        None => std::future::pending().await,
                    }
                } => waited,
            };
            if let Err(error) = waited {
                warn!(%error, "the timer failed; the link ends");
                return;
            }
        }
        for (direction, packet) in due.drain(..) {
            let sent = match direction {
                Direction::Forward => packet.socket.send_to(&packet.bytes, shared.to).await,
                Direction::Back => shared.listener.send_to(&packet.bytes, packet.client).await,
            };
            match sent {
                Ok(bytes) => shared.control.counts(direction).carried(bytes),
                // Nobody listens there: as on a real network, the packet is gone.
                Err(error) => debug!(%error, "sending a packet failed"),
            }
        }
    }
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let options = socket2::SockRef::from(&socket);
    // The kernel gives as much as it allows; the default holds a tenth of a fast tunnel's burst.
    for outcome in
        [options.set_recv_buffer_size(SOCKET_BUFFER_BYTES), options.set_send_buffer_size(SOCKET_BUFFER_BYTES)]
    {
        if let Err(error) = outcome {
            debug!(%error, "setting a socket buffer failed");
        }
    }
    UdpSocket::from_std(socket)
}

const BATCH: usize = 64;
/// Each holds a socket and a 64 KiB buffer.
const CLIENTS_MAX: usize = 1024;
/// Clients silent for longer make room for new ones (RFC 4787 §4.3 asks NATs for two minutes).
const CLIENT_IDLE: Duration = Duration::from_secs(120);
const DATAGRAM_BYTES_MAX: usize = 65_536;
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
