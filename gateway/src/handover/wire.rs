//! Messages with descriptors, between two processes on one machine: an abstract Unix socket of whole messages (SOCK_SEQPACKET).
//!
//! The name belongs to the network namespace, not to a file system: pods of a node's network share it whatever they mount. Anybody
//! there may knock, so each end looks who the other is (SO_PEERCRED) and speaks only to its own user.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use super::protocol::Message;

/// Where newcomers knock.
#[derive(Debug)]
pub struct Door(UnixListener);

impl Door {
    /// Opens it.
    ///
    /// # Errors
    /// `AddrInUse`: it is another's.
    pub fn open(name: &str) -> io::Result<Self> {
        let socket = socket()?;
        net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
        net::listen(&socket, KNOCKING_MAX)?;
        Self::of(socket)
    }

    /// One that was opened by another process.
    ///
    /// # Errors
    /// tokio does not take it.
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(UnixListener::from_std(socket.into())?))
    }

    /// The next of our own user who knocks.
    ///
    /// # Errors
    /// The door is broken, or descriptors ran out.
    pub async fn accept(&self) -> io::Result<Link> {
        loop {
            let link = Link(self.0.accept().await?.0);
            if link.is_own()? {
                return Ok(link);
            }
            tracing::warn!("a process of another user asked for the sockets of this gateway");
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A connection. tokio takes it for a stream, which it registers and polls alike; reading and writing is done here.
#[derive(Debug)]
pub struct Link(UnixStream);

impl Link {
    /// Knocks; `None` when nobody is there.
    ///
    /// # Errors
    /// Somebody is there, but of another user; or the system refuses.
    pub fn knock(name: &str) -> io::Result<Option<Self>> {
        let socket = socket()?;
        match net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?) {
            Ok(()) => {}
            Err(rustix::io::Errno::CONNREFUSED) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let link = Self(UnixStream::from_std(socket.into())?);
        if link.is_own()? {
            return Ok(Some(link));
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "a process of another user listens there"))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other end is gone, or does not read.
    pub async fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let send = async {
            loop {
                let write = || {
                    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                        return Err(io::Error::from(io::ErrorKind::InvalidInput));
                    }
                    Ok(net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?)
                };
                match self.0.async_io(Interest::WRITABLE, write).await {
                    // Too many descriptors are on their way (unix(7)): the other end is taking them.
                    Err(error) if error.raw_os_error() == Some(rustix::io::Errno::TOOMANYREFS.raw_os_error()) => {
                        tokio::time::sleep(CROWDED_PAUSE).await;
                    }
                    sent => return sent.map(drop),
                }
            }
        };
        tokio::time::timeout(SEND_TIMEOUT, send).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The next message; `None` once the other end is gone.
    ///
    /// # Errors
    /// What arrived is no message.
    pub async fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let read = || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let read = net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
            let descriptors: Vec<OwnedFd> = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                    _ => None,
                })
                .flatten()
                .collect();
            if read.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut off"));
            }
            Ok((read.bytes, descriptors))
        };
        let (count, descriptors) = match self.0.async_io(Interest::READABLE, read).await {
            Ok((0, _)) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            read => read?,
        };
        Ok(Some((serde_json::from_slice(bytes.get(..count).unwrap_or_default())?, descriptors)))
    }

    fn is_own(&self) -> io::Result<bool> {
        Ok(self.0.peer_cred()?.uid() == rustix::process::geteuid().as_raw())
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Of one message; the kernel takes 253.
pub const DESCRIPTORS_MAX: usize = 128;
/// So many names with room for a later version's.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const CROWDED_PAUSE: Duration = Duration::from_millis(5);
/// One newcomer, and those that a supervisor starts over and over.
const KNOCKING_MAX: i32 = 8;

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::super::sockets::{Kind, Name};
    use super::*;

    fn name(what: &str) -> String {
        format!("archipelago-test/{}/{what}", std::process::id())
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_message() {
        let door = Door::open(&name("descriptors")).unwrap();
        assert_eq!(Door::open(&name("descriptors")).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let knocking = Link::knock(&name("descriptors")).unwrap().unwrap();
        let link = door.accept().await.unwrap();
        let listeners: Vec<_> = (0..DESCRIPTORS_MAX).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let names = |listener: &TcpListener| Name { kind: Kind::Tcp, address: listener.local_addr().unwrap() };
        let message = Message::Sockets(listeners.iter().map(names).collect());
        // More messages than fit at once: the sender waits for the reader.
        let sending = async {
            for _ in 0..20 {
                let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
                link.send(&message, &descriptors).await.unwrap();
            }
        };
        let receiving = async {
            for _ in 0..20 {
                let (received, descriptors) = knocking.receive().await.unwrap().unwrap();
                assert_eq!(received, message);
                let at: Vec<SocketAddr> =
                    descriptors.into_iter().map(|fd| TcpListener::from(fd).local_addr().unwrap()).collect();
                assert_eq!(at, listeners.iter().map(|l| l.local_addr().unwrap()).collect::<Vec<_>>());
            }
        };
        tokio::join!(sending, receiving);
        drop(link);
        assert!(knocking.receive().await.unwrap().is_none(), "its end is seen");
        assert!(knocking.send(&Message::Ready, &[]).await.is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_no_error_and_a_door_can_be_handed_on() {
        assert!(Link::knock(&name("nobody")).unwrap().is_none());
        let door = Door::open(&name("door")).unwrap();
        let knocking = Link::knock(&name("door")).unwrap().unwrap();
        let other = Door::of(door.as_fd().try_clone_to_owned().unwrap()).unwrap();
        drop(door);
        let link = other.accept().await.unwrap();
        knocking.send(&Message::Ready, &[]).await.unwrap();
        assert_eq!(link.receive().await.unwrap().unwrap().0, Message::Ready);
        drop(other);
        assert!(Link::knock(&name("door")).unwrap().is_none());
    }
}
