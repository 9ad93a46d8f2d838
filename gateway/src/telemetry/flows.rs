//! TCP connections as they are counted: when somebody has taken one, when nobody has, what it carries while it lives, when it is over.
//!
//! A worker counts in cells of its own, those of one series shared by its connections, and hands over what is new as it does with
//! [latencies](super::latency): a connection of days is seen while it lives, not when it ends.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use archipelago_telemetry::{Flow, FlowKey, Reporter as Told, Tally};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::exchange::books::Reporter;
use crate::telemetry::Name;

/// Whose connection it is, as a worker knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Between {
    /// [`Service::key`](crate::config::Service::key).
    pub service: Name,
    /// Of the endpoint here that took it.
    pub version: Option<Name>,
    /// Cluster at which it entered.
    pub source: Name,
    /// Cluster that took it; `None`: nobody did.
    pub destination: Option<Name>,
    /// Which side reports.
    pub reporter: Reporter,
}

/// One worker's counts.
#[derive(Debug, Default)]
pub struct WorkerFlows {
    series: RefCell<HashMap<Between, Rc<Counted>, foldhash::fast::RandomState>>,
    /// Those for which there is no room, by who reports.
    rest: [Rc<Counted>; 2],
}

/// Those of one series that were not handed over yet.
#[derive(Debug, Default)]
struct Counted {
    connected: RefCell<Tally>,
    failed: Cell<u64>,
    ended: Cell<u64>,
    sent: Cell<u64>,
    received: Cell<u64>,
}

/// A connection that somebody has taken, until dropped.
#[derive(Debug)]
pub struct Carried(Rc<Counted>);

/// What goes to one end of a connection.
#[derive(Debug)]
pub struct Metered<'a> {
    stream: &'a mut TcpStream,
    written: &'a Cell<u64>,
}

impl WorkerFlows {
    /// Somebody has taken a connection, after so long.
    pub fn connected(&self, between: Between, took: Duration) -> Carried {
        let counted = self.find(between);
        counted.connected.borrow_mut().record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        Carried(counted)
    }

    /// Nobody took a connection.
    pub fn failed(&self, between: Between) {
        let counted = self.find(between);
        counted.failed.set(counted.failed.get() + 1);
    }

    fn find(&self, between: Between) -> Rc<Counted> {
        let mut series = self.series.borrow_mut();
        if series.len() >= SERIES_MAX && !series.contains_key(&between) {
            let [source, destination] = &self.rest;
            return Rc::clone(if between.reporter == Reporter::Source { source } else { destination });
        }
        Rc::clone(series.entry(between).or_default())
    }

    /// What is new, and bytes both ways of it.
    pub fn take(&self) -> (Vec<(FlowKey, Flow)>, [u64; 2]) {
        let (mut new, mut bytes) = (Vec::new(), [0, 0]);
        let mut take = |key: &dyn Fn() -> FlowKey, counted: &Counted| {
            let flow = counted.take();
            bytes = [bytes[0] + flow.sent_bytes, bytes[1] + flow.received_bytes];
            if !flow.is_empty() {
                new.push((key(), flow));
            }
        };
        for (reporter, counted) in [Told::Source, Told::Destination].into_iter().zip(&self.rest) {
            take(&|| rest(reporter), counted);
        }
        // Series without a connection are kept by whoever they are handed to: here are only those of connections that there are.
        self.series.borrow_mut().retain(|between, counted| {
            take(&|| between.told(), counted);
            Rc::strong_count(counted) > 1
        });
        (new, bytes)
    }

    /// Whether there is anything to hand over, or may be.
    pub fn is_empty(&self) -> bool {
        self.series.borrow().is_empty()
    }
}

impl Counted {
    fn take(&self) -> Flow {
        Flow {
            connected: self.connected.take().counted(),
            failed: self.failed.take(),
            ended: self.ended.take(),
            sent_bytes: self.sent.take(),
            received_bytes: self.received.take(),
        }
    }
}

impl Between {
    /// As text, equal for all workers.
    fn told(&self) -> FlowKey {
        let text = |name: &Option<Name>| name.as_deref().unwrap_or_default().into();
        FlowKey {
            service: (*self.service).into(),
            version: text(&self.version),
            source: (*self.source).into(),
            destination: text(&self.destination),
            reporter: match self.reporter {
                Reporter::Source => Told::Source,
                Reporter::Destination => Told::Destination,
            },
            overflow: false,
        }
    }
}

fn rest(reporter: Told) -> FlowKey {
    let none = || "".into();
    FlowKey { service: none(), version: none(), source: none(), destination: none(), reporter, overflow: true }
}

impl Carried {
    /// It carried so much towards the service.
    pub fn sent(&self, bytes: usize) {
        add(&self.0.sent, bytes);
    }

    /// It carried so much towards the client.
    pub fn received(&self, bytes: usize) {
        add(&self.0.received, bytes);
    }

    /// The end at which the service is.
    pub fn upstream<'a>(&'a self, stream: &'a mut TcpStream) -> Metered<'a> {
        Metered { stream, written: &self.0.sent }
    }

    /// The end at which the client is.
    pub fn downstream<'a>(&'a self, stream: &'a mut TcpStream) -> Metered<'a> {
        Metered { stream, written: &self.0.received }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        add(&self.0.ended, 1);
    }
}

fn add(cell: &Cell<u64>, by: usize) {
    cell.set(cell.get() + by as u64);
}

impl AsyncRead for Metered<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Metered<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut *this.stream).poll_write(cx, bytes));
        add(this.written, *written.as_ref().unwrap_or(&0));
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Of one worker.
const SERIES_MAX: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_what_is_new() {
        let (flows, names) = (WorkerFlows::default(), crate::telemetry::Names::default());
        let between = |destination: Option<&str>| Between {
            service: names.of("shop/ledger"),
            version: None,
            source: names.of("paris"),
            destination: destination.map(|name| names.of(name)),
            reporter: Reporter::Source,
        };
        assert!(flows.is_empty());
        let one = flows.connected(between(Some("tokyo")), Duration::from_micros(700));
        let other = flows.connected(between(Some("tokyo")), Duration::from_micros(900));
        flows.failed(between(None));
        one.sent(5);
        other.sent(6);
        other.received(7);
        drop(other);
        let (mut taken, bytes) = flows.take();
        taken.sort_by(|(a, _), (b, _)| a.cmp(b));
        let told: Vec<_> = taken
            .iter()
            .map(|(key, f)| (&*key.destination, f.connected.total(), f.failed, f.ended, f.sent_bytes, f.received_bytes))
            .collect();
        assert_eq!(told, [("", 0, 1, 0, 0, 0), ("tokyo", 2, 0, 1, 11, 7)]);
        assert_eq!(bytes, [11, 7]);
        assert_eq!(flows.take(), (vec![], [0, 0]));
        one.received(3);
        drop(one);
        let (taken, _) = flows.take();
        assert_eq!((taken[0].1.ended, taken[0].1.received_bytes), (1, 3), "what ended since is told");
        assert!(flows.is_empty(), "and nothing is kept of what is over");
    }
}
