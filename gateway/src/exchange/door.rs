//! The way to an endpoint: every connection to it is made here, so that it is known whether any comes about ([`reach`]).

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::balance::reach::{self, Dialled, Reach, Way};

/// The way from one worker to one endpoint.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    way: Cell<Way>,
    is_probing: Cell<bool>,
}

impl Door {
    /// To an endpoint of which nothing is known.
    pub fn new(address: SocketAddr) -> Rc<Self> {
        Rc::new(Self { address, way: Cell::default(), is_probing: Cell::new(false) })
    }

    /// Where the endpoint listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether connections come about.
    pub fn reach(&self) -> Reach {
        self.way.get().reach()
    }

    /// A connection.
    ///
    /// # Errors
    /// None can be had; see [`is_shortage`] for whose fault that is.
    pub async fn connect(self: &Rc<Self>) -> io::Result<TcpStream> {
        let connected = dial(self.address).await;
        if self.observe(&connected) && !self.is_probing.replace(true) {
            tokio::task::spawn_local(probe(Rc::downgrade(self)));
        }
        let stream = connected?;
        // Small writes must not wait for the acknowledgement of earlier ones; failure only costs latency.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// Takes how an attempt ended; true when probes have to begin.
    fn observe(&self, connected: &io::Result<TcpStream>) -> bool {
        let dialled = match connected {
            Ok(_) => Dialled::Connected,
            // It was not even asked.
            Err(error) if is_shortage(error) => return false,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Dialled::Refused,
            Err(_) => Dialled::Unanswered,
        };
        let mut way = self.way.get();
        let before = way.reach();
        let begins = way.observe(dialled);
        self.way.set(way);
        match (before, way.reach()) {
            (Reach::Reachable, Reach::Refuses | Reach::Silent) => {
                tracing::info!(endpoint = %self.address, ?dialled, "no connection to an endpoint comes about, it is probed");
            }
            (Reach::Refuses | Reach::Silent, Reach::Reachable) => {
                tracing::info!(endpoint = %self.address, "an endpoint can be connected to again");
            }
            _ => {}
        }
        begins
    }
}

/// Tries, ever more rarely, until a connection comes about, by this or for a request, or nobody wants to know any more.
async fn probe(door: Weak<Door>) {
    for number in 0.. {
        tokio::time::sleep(reach::probe_pause(number, rand::random())).await;
        let Some(door) = door.upgrade() else { return };
        if door.reach() != Reach::Reachable {
            door.observe(&dial(door.address).await);
        }
        if door.reach() == Reach::Reachable {
            door.is_probing.set(false);
            return;
        }
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM, and EADDRNOTAVAIL, which is all ports being in use: no fault of the endpoint.
pub fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    Errno::from_io_error(error).is_some_and(|errno| shortages.contains(&errno))
}

/// Endpoints are in the same cluster: a second means packets are dropped.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    async fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A listener whose queue is full: the kernel answers nobody any more, as if the address led nowhere.
    fn silent() -> (Socket, Vec<std::net::TcpStream>, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
        }
        (socket, queued, address)
    }

    #[tokio::test(flavor = "local")]
    async fn who_does_not_answer_is_known_after_three_and_back_by_itself() {
        let (socket, queued, address) = silent();
        let door = Door::new(address);
        let (one, two, three) = tokio::join!(door.connect(), door.connect(), door.connect());
        assert!(one.is_err() && two.is_err() && three.is_err());
        assert_eq!(door.reach(), Reach::Silent);
        let accepting = std::thread::spawn(move || {
            // Those that were queued, and one more: a probe.
            (0..=queued.len()).for_each(|_| drop(socket.accept().unwrap()));
            socket
        });
        until("a probe comes through", || door.reach() == Reach::Reachable).await;
        let socket = accepting.join().unwrap();
        // Nobody listens at all.
        drop(socket);
        for _ in 0..3 {
            assert!(door.connect().await.is_err());
        }
        assert_eq!(door.reach(), Reach::Refuses);
    }

    #[tokio::test(flavor = "local")]
    async fn a_request_that_comes_through_ends_the_probes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let door = Door::new(address);
        for _ in 0..3 {
            assert!(door.connect().await.is_err());
        }
        assert_eq!((door.reach(), door.is_probing.get()), (Reach::Refuses, true));
        let listener = std::net::TcpListener::bind(address).unwrap();
        assert!(door.connect().await.is_ok());
        assert_eq!(door.reach(), Reach::Reachable);
        until("the probes end", || !door.is_probing.get()).await;
        drop(listener);
    }

    #[test]
    fn what_we_are_short_of_is_not_the_endpoints_fault() {
        let door = Door::new(SocketAddr::from(([192, 0, 2, 1], 80)));
        for _ in 0..10 {
            let error = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
            assert!(!door.observe(&Err(error)));
        }
        assert_eq!(door.reach(), Reach::Reachable);
    }
}
