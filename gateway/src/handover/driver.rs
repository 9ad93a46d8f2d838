//! Both ends of the handover: asks the one before, and answers the one after.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::timeout;

use super::protocol::{Action, Event, Giver, Hello, Message, Offered, Phase};
use super::sockets::{Name, Sockets};
use super::wire::{DESCRIPTORS_MAX, Door, Link};
use super::{Seat, Turn};
use crate::balance::hash::fnv1a;

/// A gateway between the one before and the one after.
#[derive(Debug)]
pub struct Handover {
    hello: Hello,
    sockets: Arc<Sockets>,
    phase: watch::Sender<Phase>,
    offered: Option<Offered>,
    /// To the one before.
    before: Option<Link>,
    door: Option<Door>,
}

/// Asks the one before for its sockets.
///
/// # Errors
/// Somebody is there and does not let go: starting beside it would fail at the first port.
pub async fn inherit(hello: Hello) -> anyhow::Result<Handover> {
    let sockets = Arc::new(Sockets::default());
    let mut handover =
        Handover { hello, sockets, phase: watch::Sender::new(Phase::Serving), offered: None, before: None, door: None };
    if handover.hello.http.port() == 0 {
        return Ok(handover);
    }
    let name = handover.hello.door();
    let link = match Link::knock(&name) {
        Ok(link) => link,
        Err(error) => {
            tracing::warn!(%error, name, "the gateway before cannot be asked for its sockets; binding anew");
            return Ok(handover);
        }
    };
    if let Some(link) = link {
        let answer = timeout(ANSWER_TIMEOUT, handover.ask(&link)).await;
        let answer =
            answer.context("the gateway that runs here does not answer its successor; is another one starting?");
        if answer.context("end it first")?? {
            handover.phase.send_replace(Phase::Waiting);
            handover.before = Some(link);
            return Ok(handover);
        }
    }
    match Door::open(&name) {
        Ok(door) => handover.door = Some(door),
        Err(error) => tracing::warn!(%error, name, "a successor will find the ports of this gateway taken"),
    }
    Ok(handover)
}

impl Handover {
    /// What the gateway starts with.
    pub fn seat(&self) -> Seat {
        Seat { sockets: Arc::clone(&self.sockets), turn: Turn::of(&self.phase), before: self.offered.clone() }
    }

    /// Takes its turn once `settled`, or as soon as the one before is gone, and answers successors from then on; for ever.
    /// `offered`: what a successor is to know.
    pub async fn run(mut self, settled: impl Future<Output = ()>, offered: Offered) {
        if let Some(before) = &self.before {
            tokio::select! {
                () = settled => self.take_over(before).await,
                () = gone(before) => tracing::warn!("the gateway before ended early; serving with what there is"),
            }
            self.phase.send_replace(Phase::Serving);
            tracing::info!("serving in the place of the gateway before");
        }
        let sockets = Arc::clone(&self.sockets);
        tokio::join!(self.answer(&offered), async move {
            tokio::time::sleep(UNCLAIMED_AFTER).await;
            let unclaimed = sockets.forget_inherited();
            if unclaimed > 0 {
                tracing::info!(unclaimed, "sockets that nothing is served on any more were closed");
            }
        });
    }

    /// The phase, for whoever must wait for a successor that is about to take over.
    pub fn turn(&self) -> Turn {
        Turn::of(&self.phase)
    }

    /// Says hello and takes what is given. False: the one before ended meanwhile.
    async fn ask(&mut self, link: &Link) -> anyhow::Result<bool> {
        let hello = Message::Hello(self.hello.clone());
        if link.send(&hello, &[]).await.is_err() {
            return Ok(false);
        }
        let mut taken = 0;
        loop {
            match link.receive().await.context("the gateway that runs here cannot be understood")? {
                None => return Ok(false),
                Some((Message::Sockets(names), descriptors)) => taken += self.take(names, descriptors),
                Some((Message::Offered(offered), door)) => {
                    self.door = door.into_iter().next().map(Door::of).transpose()?;
                    tracing::info!(sockets = taken, "taken over from the gateway that runs here");
                    self.offered = Some(offered);
                    return Ok(true);
                }
                Some((Message::Refused(why), _)) => {
                    anyhow::bail!("the gateway that runs here refuses a successor: {why}")
                }
                Some(_) => {}
            }
        }
    }

    fn take(&self, names: Vec<Name>, descriptors: Vec<std::os::fd::OwnedFd>) -> usize {
        let mut taken = 0;
        for (name, descriptor) in names.into_iter().zip(descriptors) {
            match self.sockets.inherit(name, descriptor) {
                Ok(()) => taken += 1,
                Err(error) => tracing::warn!(%error, "a socket of the gateway before is not taken over"),
            }
        }
        taken
    }

    /// We can serve: the one before stops accepting, and what it opened meanwhile is ours too.
    async fn take_over(&self, before: &Link) {
        let agreed = async {
            before.send(&Message::Ready, &[]).await?;
            loop {
                match before.receive().await? {
                    Some((Message::Sockets(names), descriptors)) => drop(self.take(names, descriptors)),
                    Some((Message::Yielded, _)) | None => return io::Result::Ok(()),
                    Some(_) => {}
                }
            }
        };
        match timeout(ANSWER_TIMEOUT, agreed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the gateway before did not say that it stops"),
            Err(_) => tracing::warn!("the gateway before did not say that it stops"),
        }
    }

    async fn answer(&mut self, offered: &Offered) {
        let Some(door) = &self.door else { return };
        loop {
            match door.accept().await {
                Ok(link) => {
                    if let Err(error) = self.give(door, link, offered).await {
                        tracing::warn!(%error, "a successor was not answered");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "successors cannot be answered now");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Serves one successor until it is gone.
    async fn give(&self, door: &Door, link: Link, offered: &Offered) -> io::Result<()> {
        let mut giver = Giver::default();
        let mut sent = HashMap::new();
        loop {
            let received = async {
                match giver {
                    Giver::Alone => timeout(ANSWER_TIMEOUT, link.receive()).await.unwrap_or(Ok(None)),
                    _ => link.receive().await,
                }
            };
            let event = match received.await {
                Ok(Some((Message::Hello(hello), _))) => Event::Hello(self.hello.may_follow(&hello)),
                Ok(Some((Message::Ready, _))) => Event::Ready,
                Ok(Some((Message::Passed, _))) => Event::Passed,
                Ok(Some(_)) => continue,
                Ok(None) => Event::Gone,
                Err(error) => {
                    tracing::warn!(%error, "a successor cannot be understood");
                    Event::Gone
                }
            };
            let is_gone = event == Event::Gone;
            let before = giver;
            let (next, actions) = giver.handle(event, offered);
            giver = next;
            let mut failed = None;
            for action in actions {
                let done = match action {
                    Action::Phase(phase) => {
                        self.enter(phase);
                        Ok(())
                    }
                    Action::Sockets => self.send_sockets(&link, &mut sent).await,
                    Action::Send(Message::Offered(offered)) => {
                        link.send(&Message::Offered(offered), &[door.as_fd()]).await
                    }
                    Action::Send(message) => link.send(&message, &[]).await,
                    Action::Close => return Ok(()),
                };
                if let Err(error) = done {
                    failed = Some(error);
                    break;
                }
            }
            if let Some(error) = failed {
                let (_, actions) = giver.handle(Event::Gone, offered);
                for action in actions {
                    if let Action::Phase(phase) = action {
                        self.enter(phase);
                    }
                }
                return Err(error);
            }
            if giver == Giver::Yielded && before != Giver::Yielded {
                tracing::info!("a successor serves; what was begun here is ended here");
                if let Some(first) = &self.before {
                    // It may still be there, and must not begin again when we end.
                    let _ = first.send(&Message::Passed, &[]).await;
                }
            }
            if is_gone {
                if matches!(before, Giver::Offered | Giver::Yielded) {
                    tracing::warn!("the successor ended; this gateway serves on");
                }
                return Ok(());
            }
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// All that are open and were not sent yet.
    async fn send_sockets(&self, link: &Link, sent: &mut HashMap<Name, usize>) -> io::Result<()> {
        let mut seen: HashMap<Name, usize> = HashMap::new();
        let mut news = Vec::new();
        for socket in self.sockets.open() {
            let count = seen.entry(socket.name).or_default();
            *count += 1;
            if *count > sent.get(&socket.name).copied().unwrap_or(0) {
                news.push(socket);
            }
        }
        for sockets in news.chunks(DESCRIPTORS_MAX) {
            let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            let names = sockets.iter().map(|socket| socket.name).collect();
            link.send(&Message::Sockets(names), &descriptors).await?;
        }
        for socket in news {
            *sent.entry(socket.name).or_default() += 1;
        }
        Ok(())
    }
}

impl Hello {
    /// Where a gateway of these names answers its successors.
    fn door(&self) -> String {
        let plain = format!("archipelago-gateway/{}/{}@{}", self.cluster, self.gateway, self.http);
        if plain.len() <= DOOR_BYTES_MAX {
            return plain;
        }
        // Node names may be longer than the names of sockets.
        format!("archipelago-gateway/{:016x}", fnv1a(plain.as_bytes()))
    }

    fn may_follow(&self, newcomer: &Self) -> Result<(), String> {
        if self == newcomer {
            return Ok(());
        }
        Err(format!("it is {} and the newcomer is {}", self.full_name(), newcomer.full_name()))
    }

    fn full_name(&self) -> String {
        format!("{}/{} at {}", self.cluster, self.gateway, self.http)
    }
}

/// Resolves when the other end is gone.
async fn gone(link: &Link) {
    while let Ok(Some(_)) = link.receive().await {}
}

/// Handing over takes milliseconds; a process that is stopped takes for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The workers have asked for the sockets of their services long before.
const UNCLAIMED_AFTER: Duration = Duration::from_secs(30);
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// unix(7): 108 bytes, one of which marks the name as abstract.
const DOOR_BYTES_MAX: usize = 107;
