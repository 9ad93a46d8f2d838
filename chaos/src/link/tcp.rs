//! Drives a TCP link: accepts, connects onwards, and runs one conduit each way per connection.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use super::{
    LinkConfig,
    conduit::{Carries, Conduit},
    control::{Direction, LinkControl},
};
use crate::timer::Timer;

/// A TCP link; it accepts and carries until it is dropped, which resets what is open.
#[derive(Debug)]
pub struct TcpLink {
    control: LinkControl,
    local: SocketAddr,
    _acceptor: JoinHandle<()>,
    _stop: DropGuard,
}

impl TcpLink {
    /// Binds `config.listen` and carries connections from then on. Needs a tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn start(config: LinkConfig) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let local = listener.local_addr()?;
        let control = LinkControl::new(config.shape);
        let stop = CancellationToken::new();
        let accept = accept(listener, config, control.clone(), stop.clone());
        Ok(Self { control, local, _acceptor: tokio::spawn(accept), _stop: stop.drop_guard() })
    }

    /// Where clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Steers this link, also after it was moved elsewhere.
    pub fn control(&self) -> LinkControl {
        self.control.clone()
    }

    /// Holds everything back, both ways.
    pub fn cut(&self) {
        self.control.cut();
    }

    /// Carries again, both ways, beginning with what was held back.
    pub fn heal(&self) {
        self.control.heal();
    }

    /// Sets the delay of each direction.
    pub fn set_delay(&self, delay: Duration) {
        self.control.set_delay(delay);
    }
}

async fn accept(listener: TcpListener, config: LinkConfig, control: LinkControl, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut seed = config.seed;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, listener.accept().await)
            } => accepted,
        };
        let (slot, stream) = match accepted {
            (slot, Ok((stream, _))) => (slot, stream),
            (_, Err(error)) => {
                warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        seed = seed.wrapping_add(2);
        let (control, stop) = (control.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                outcome = carry(stream, config.to, &control, seed) => {
                    if let Err(error) = outcome {
                        debug!(%error, "a connection broke");
                    }
                }
                () = stop.cancelled() => {}
            }
            drop(slot);
        });
    }
}

/// Carries one connection until both directions have ended, or either broke.
async fn carry(mut near: TcpStream, to: SocketAddr, control: &LinkControl, seed: u64) -> io::Result<()> {
    // An abandoned connection must end in a reset: a link that breaks must not look like a clean end.
    reset_on_drop(&near, true)?;
    let mut far = timeout(CONNECT_TIME, TcpStream::connect(to)).await??;
    reset_on_drop(&far, true)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    {
        // Borrowed halves: owned ones send a FIN when they are dropped.
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        let forward = pump(near_read, far_write, control, Direction::Forward, seed);
        let back = pump(far_read, near_write, control, Direction::Back, seed.wrapping_add(1));
        tokio::try_join!(forward, back)?;
    }
    // Both ways ended properly: what the kernel still holds must arrive.
    reset_on_drop(&near, false)?;
    reset_on_drop(&far, false)
}

/// Carries one direction until its end of stream has been passed on.
async fn pump(
    mut from: tcp::ReadHalf<'_>,
    mut to: tcp::WriteHalf<'_>,
    control: &LinkControl,
    direction: Direction,
    seed: u64,
) -> io::Result<()> {
    let timer = Timer::new()?;
    let mut settings = control.watch();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut conduit = Conduit::new(Carries::Stream, control.shape(direction));
    let mut buffer = BytesMut::new();
    let mut is_open = true;
    loop {
        let way = control.way(direction);
        conduit.set(way.shape, way.is_cut);
        while let Some(part) = conduit.pop_due(Instant::now()) {
            match part {
                Part::Bytes(bytes) => {
                    to.write_all(&bytes).await?;
                    control.counts(direction).carried(bytes.len());
                }
                Part::End => return to.shutdown().await,
            }
        }
        let next = conduit.next_due();
        buffer.reserve(READ_BYTES);
        tokio::select! {
            // The sender of the settings lives as long as `control`.
            _ = settings.changed() => {}
            waited = async {
                match next {
                    Some(next) => timer.until(next).await,
                    None => std::future::pending().await,
                }
            } => waited?,
            read = from.read_buf(&mut buffer), if is_open && conduit.has_room(READ_BYTES) => {
                is_open = read? > 0;
                let bytes = buffer.split().freeze();
                let length = bytes.len();
                let part = if is_open { Part::Bytes(bytes) } else { Part::End };
                conduit.offer(part, length, Instant::now(), &mut rng);
            }
        }
    }
}

enum Part {
    Bytes(Bytes),
    End,
}

fn reset_on_drop(stream: &TcpStream, reset: bool) -> io::Result<()> {
    socket2::SockRef::from(stream).set_linger(reset.then_some(Duration::ZERO))
}

const CONNECTIONS_MAX: usize = 1024;
const CONNECT_TIME: Duration = Duration::from_secs(10);
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
const READ_BYTES: usize = 64 << 10;
