//! The listening sockets of a gateway: bound by it, or taken over from the one before.
//!
//! What identifies a socket is its kind and its address; nobody needs to know here what it is for. Whoever wants to listen
//! somewhere asks [`Sockets`], keeps what it is given for as long as it listens, and what is kept can be handed on.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use socket2::{SockRef, Type};

/// What a socket takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A socket as both processes name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// What it takes.
    pub kind: Kind,
    /// Where.
    pub address: SocketAddr,
}

/// All of a gateway's.
#[derive(Debug, Default)]
pub struct Sockets(Mutex<State>);

#[derive(Default)]
struct State {
    /// Taken over, and not asked for yet.
    inherited: HashMap<Name, Vec<OwnedFd>>,
    open: Vec<(Name, Weak<dyn Descriptor>)>,
    /// Those that are open as long as the gateway is.
    kept: Vec<Arc<dyn Descriptor>>,
}

/// Any socket.
pub trait Descriptor: AsFd + Send + Sync {}

impl<T: AsFd + Send + Sync> Descriptor for T {}

/// An open socket that can be handed on.
pub struct Open {
    /// Its name; several may have the same, which share its clients.
    pub name: Name,
    socket: Arc<dyn Descriptor>,
}

impl AsFd for Open {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (*self.socket).as_fd()
    }
}

impl Sockets {
    /// Listeners that the workers share, all of them on `address`: each worker gets at least one, and none is without a worker.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen_shared(&self, address: SocketAddr, workers: usize) -> io::Result<Vec<Vec<TcpListener>>> {
        let mut listeners: Vec<TcpListener> = self.take(Kind::Tcp, address).into_iter().map(Into::into).collect();
        if listeners.is_empty() {
            listeners = bind_shared(address, workers)?;
        }
        let mut shares: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
        // The gateway before may have had more workers, or fewer: a queue that nobody looks into would swallow connections.
        let places = listeners.len().max(workers);
        for (listener, index) in listeners.iter().cycle().zip(0..places) {
            if let Some(share) = shares.get_mut(index % workers) {
                listener.set_nonblocking(true)?;
                share.push(listener.try_clone()?);
            }
        }
        for listener in listeners {
            self.keep(Kind::Tcp, listener.local_addr()?, Arc::new(listener));
        }
        Ok(shares)
    }

    /// A listener on a port that nobody else has. It can be handed on for as long as it is held.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen_alone(&self, address: SocketAddr) -> io::Result<Arc<TcpListener>> {
        let inherited = self.take(Kind::Tcp, address).into_iter().next();
        let listener = inherited.map_or_else(|| crate::tcp::listen_alone(address), |fd| Ok(TcpListener::from(fd)))?;
        listener.set_nonblocking(true)?;
        let (address, listener) = (listener.local_addr()?, Arc::new(listener));
        let socket: Arc<dyn Descriptor> = Arc::clone(&listener) as _;
        self.note(Kind::Tcp, address, &socket);
        Ok(listener)
    }

    /// As [`Self::listen_alone`], open as long as the gateway is.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen_always(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let listener = self.listen_alone(address)?;
        let own = listener.try_clone()?;
        self.state().kept.push(listener);
        Ok(own)
    }

    /// Sockets of that kind and address that were taken over.
    pub fn take(&self, kind: Kind, address: SocketAddr) -> Vec<OwnedFd> {
        self.state().inherited.remove(&Name { kind, address }).unwrap_or_default()
    }

    /// Keeps `socket` open as long as the gateway is, to be handed on.
    pub fn keep(&self, kind: Kind, address: SocketAddr, socket: Arc<dyn Descriptor>) {
        self.note(kind, address, &socket);
        self.state().kept.push(socket);
    }

    /// Takes over a socket; it is closed unless somebody asks for it in time.
    ///
    /// # Errors
    /// It is another socket than its name says.
    pub fn inherit(&self, name: Name, socket: OwnedFd) -> io::Result<()> {
        {
            let socket = SockRef::from(&socket);
            let kind = socket.r#type()?;
            let is_kind = match name.kind {
                Kind::Tcp => kind == Type::STREAM && socket.is_listener()?,
                Kind::Udp => kind == Type::DGRAM,
            };
            if !is_kind || socket.local_addr()?.as_socket() != Some(name.address) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a socket is not {name:?}")));
            }
        }
        self.state().inherited.entry(name).or_default().push(socket);
        Ok(())
    }

    /// Closes what was taken over and not asked for: what it was for does not exist any more. Returns how many those were.
    pub fn forget_inherited(&self) -> usize {
        std::mem::take(&mut self.state().inherited).values().map(Vec::len).sum()
    }

    /// What is open now.
    pub fn open(&self) -> Vec<Open> {
        let state = self.state();
        let open = state.open.iter().filter_map(|(name, socket)| Some(Open { name: *name, socket: socket.upgrade()? }));
        open.collect()
    }

    /// Lets go of everything: nothing is handed on any more.
    pub fn release(&self) {
        *self.state() = State::default();
    }

    fn note(&self, kind: Kind, address: SocketAddr, socket: &Arc<dyn Descriptor>) {
        let mut state = self.state();
        state.open.retain(|(_, socket)| socket.strong_count() > 0);
        state.open.push((Name { kind, address }, Arc::downgrade(socket)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.open.iter().map(|(name, _)| name);
        f.debug_struct("State").field("inherited", &self.inherited).field("open", &open.collect::<Vec<_>>()).finish()
    }
}

/// One listener per worker on the same port.
fn bind_shared(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    // Those share it among themselves; anybody else's listener there would take a share of the clients too.
    drop(crate::tcp::listen_alone(address)?);
    let first = crate::tcp::listen(address)?;
    let address = first.local_addr()?;
    std::iter::once(Ok(first)).chain((1..count).map(|_| crate::tcp::listen(address))).collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// What `from` has open, taken over by `to` as across a socket.
    fn hand_over(from: &Sockets, to: &Sockets) {
        for open in from.open() {
            to.inherit(open.name, open.as_fd().try_clone_to_owned().unwrap()).unwrap();
        }
    }

    #[test]
    fn an_http_port_is_not_shared_with_another_process() {
        let theirs = crate::tcp::listen(any()).unwrap();
        let address = theirs.local_addr().unwrap();
        let sockets = Sockets::default();
        assert_eq!(sockets.listen_shared(address, 2).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(theirs);
        assert_eq!(sockets.listen_shared(address, 2).unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn no_queue_is_without_a_worker_and_no_worker_without_a_queue() {
        for (before, after, shares) in [(2, 2, vec![1, 1]), (5, 2, vec![3, 2]), (2, 5, vec![1; 5]), (1, 1, vec![1])] {
            let (old, new) = (Sockets::default(), Sockets::default());
            let address = old.listen_shared(any(), before).unwrap()[0][0].local_addr().unwrap();
            hand_over(&old, &new);
            drop(old);
            let listeners = new.listen_shared(address, after).unwrap();
            assert_eq!(listeners.iter().map(Vec::len).collect::<Vec<_>>(), shares, "{before} to {after}");
            // Whichever queue the kernel chooses, somebody finds the connection.
            for _ in 0..20 {
                let client = std::net::TcpStream::connect(address).unwrap();
                let found = (0..1_000).any(|_| listeners.iter().flatten().any(|listener| listener.accept().is_ok()));
                assert!(found, "{client:?}");
            }
        }
    }

    #[test]
    fn what_is_held_is_handed_on_and_what_is_let_go_is_not() {
        let (old, new) = (Sockets::default(), Sockets::default());
        let always = old.listen_always(any()).unwrap();
        let (held, gone) = (old.listen_alone(any()).unwrap(), old.listen_alone(any()).unwrap());
        let udp = UdpSocket::bind(any()).unwrap();
        old.keep(Kind::Udp, udp.local_addr().unwrap(), Arc::new(udp.try_clone().unwrap()));
        let address = gone.local_addr().unwrap();
        drop(gone);
        hand_over(&old, &new);
        assert_eq!(old.open().len(), 3);
        let waiting = std::net::TcpStream::connect(held.local_addr().unwrap()).unwrap();
        let mine = new.listen_alone(held.local_addr().unwrap()).unwrap();
        drop(held);
        assert_eq!(mine.accept().unwrap().1, waiting.local_addr().unwrap(), "the same queue");
        assert_eq!(new.take(Kind::Udp, udp.local_addr().unwrap()).len(), 1);
        assert!(new.listen_alone(address).is_ok(), "nobody has it any more");
        assert_eq!(new.forget_inherited(), 1, "{always:?}");
    }

    #[test]
    fn a_socket_that_is_not_what_it_is_called_is_refused() {
        let (listener, udp) = (TcpListener::bind(any()).unwrap(), UdpSocket::bind(any()).unwrap());
        let (tcp_at, udp_at) = (listener.local_addr().unwrap(), udp.local_addr().unwrap());
        let client = std::net::TcpStream::connect(tcp_at).unwrap();
        let at = client.local_addr().unwrap();
        let sockets = Sockets::default();
        for (kind, address, socket) in [
            (Kind::Udp, tcp_at, OwnedFd::from(listener.try_clone().unwrap())),
            (Kind::Tcp, udp_at, udp.try_clone().unwrap().into()),
            (Kind::Tcp, udp_at, listener.try_clone().unwrap().into()),
            (Kind::Tcp, at, client.into()),
            (Kind::Tcp, tcp_at, std::fs::File::open("/dev/null").unwrap().into()),
        ] {
            assert!(sockets.inherit(Name { kind, address }, socket).is_err(), "{kind:?} {address}");
        }
        assert_eq!(sockets.forget_inherited(), 0);
    }
}
