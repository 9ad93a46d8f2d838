//! Who listens while one process of a gateway follows another, without I/O.
//!
//! ```text
//! newcomer                         the one before
//!    ── Hello ───────────────────▶    is it me, only newer?
//!    ◀─ Sockets… (descriptors) ──
//!    ◀─ Offered ─────────────────    is not ready any more, begins no session with the control plane
//!    … joins, gets a configuration, opens its tunnels …
//!    ── Ready ───────────────────▶    stops accepting
//!    ◀─ Sockets… (opened since) ─
//!    ◀─ Yielded ─────────────────    goes on with what it has begun, until SIGTERM
//! ```
//!
//! Both are asked for their health at one address, and what is meant is the newcomer's: a supervisor that heard of a ready gateway
//! there would end the one before. So that one says from the offer on that it is not ready, though it serves.
//!
//! The connection stays open. When it ends before the one before has been told otherwise, the newcomer is dead, and the one before
//! goes on as if nothing had happened; what waits in the queues of the sockets is lost in neither case. Both ends are of
//! different versions by their nature: unknown fields and messages are passed over.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::sockets::Name;

/// Who may do what now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// There is another before us: everything is being prepared, nothing is taken from clients.
    Waiting,
    /// Nobody but us.
    Serving,
    /// A newcomer prepares itself.
    Offered,
    /// A newcomer serves; what was begun here is ended here.
    Yielded,
}

impl Phase {
    /// As operators read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Serving => "serving",
            Self::Offered => "offered",
            Self::Yielded => "yielded",
        }
    }

    /// Connections are accepted; health and metrics are told.
    pub fn accepts(self) -> bool {
        matches!(self, Self::Serving | Self::Offered)
    }

    /// Questions about names are answered. Two may do so at once; one that was taken out of the queue is never left.
    pub fn answers(self) -> bool {
        self != Self::Waiting
    }

    /// Why the gateway is not ready in this phase, if so.
    pub fn unready(self) -> Option<&'static str> {
        match self {
            Self::Serving => None,
            Self::Waiting => Some("the gateway before has not handed over yet"),
            Self::Offered => Some("a successor is preparing itself"),
            Self::Yielded => Some("a successor serves"),
        }
    }

    /// Sessions with the control plane are begun. One that is there ends when the newcomer's replaces it.
    pub fn begins_sessions(self) -> bool {
        matches!(self, Self::Waiting | Self::Serving)
    }
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    /// The newcomer's first word.
    Hello(Hello),
    /// The descriptors beside this message, in this order.
    Sockets(Vec<Name>),
    /// That was everything.
    Offered(Offered),
    /// The newcomer can serve.
    Ready,
    /// The newcomer is the one who serves.
    Yielded,
    /// The newcomer has been followed itself: its end is no reason to serve again.
    Passed,
    /// No.
    Refused(String),
    /// Something of a later version.
    #[serde(untagged)]
    Unknown(serde_json::Value),
}

/// Who the newcomer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Cluster.
    pub cluster: String,
    /// Gateway.
    pub gateway: String,
    /// Where it takes HTTP.
    pub http: SocketAddr,
}

/// What else the newcomer should know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offered {
    /// Number of the start of the one before: the newcomer's must be higher.
    pub boot: u64,
    /// UDP ports of its tunnels: QUIC connections cannot be handed over, so the newcomer needs others.
    pub tunnel_ports: Vec<u16>,
}

/// The one before, towards one newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Giver {
    /// Nobody has said hello.
    #[default]
    Alone,
    /// A newcomer has our sockets.
    Offered,
    /// A newcomer serves.
    Yielded,
    /// The newcomer has been followed by another.
    Passed,
}

/// What happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody says who it is; `Err`: that is not who may follow us, because.
    Hello(Result<(), String>),
    /// It can serve.
    Ready,
    /// It was followed itself.
    Passed,
    /// Its connection ended.
    Gone,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send all sockets that it does not have yet.
    Sockets,
    /// Send this.
    Send(Message),
    /// From now on this holds.
    Phase(Phase),
    /// End the connection.
    Close,
}

impl Giver {
    /// Takes one event.
    pub fn handle(self, event: Event, offered: &Offered) -> (Self, Vec<Action>) {
        use Action::{Close, Phase as Enter, Send, Sockets};
        match (self, event) {
            (Self::Alone, Event::Hello(Ok(()))) => {
                (Self::Offered, vec![Sockets, Enter(Phase::Offered), Send(Message::Offered(offered.clone()))])
            }
            (Self::Alone, Event::Hello(Err(why))) => (Self::Alone, vec![Send(Message::Refused(why)), Close]),
            (Self::Offered, Event::Ready) => {
                (Self::Yielded, vec![Enter(Phase::Yielded), Sockets, Send(Message::Yielded)])
            }
            (Self::Yielded, Event::Passed) => (Self::Passed, vec![]),
            (Self::Alone, Event::Gone) => (Self::Alone, vec![]),
            (Self::Offered | Self::Yielded, Event::Gone) => (Self::Alone, vec![Enter(Phase::Serving)]),
            (Self::Passed, _) => (Self::Passed, vec![]),
            // It does not keep to the protocol: whatever it is, it does not serve.
            (Self::Offered | Self::Yielded, _) => (Self::Alone, vec![Close, Enter(Phase::Serving)]),
            (Self::Alone, Event::Ready | Event::Passed) => (Self::Alone, vec![Close]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered() -> Offered {
        Offered { boot: 7, tunnel_ports: vec![15443, 15444] }
    }

    /// Every state with every event.
    #[test]
    fn golden_table() {
        let states = [Giver::Alone, Giver::Offered, Giver::Yielded, Giver::Passed];
        let events = [Event::Hello(Ok(())), Event::Hello(Err("no".into())), Event::Ready, Event::Passed, Event::Gone];
        let mut table = String::new();
        for state in states {
            for event in &events {
                let (next, actions) = state.handle(event.clone(), &offered());
                let actions: Vec<String> = actions
                    .iter()
                    .map(|action| match action {
                        Action::Send(Message::Offered(_)) => "Offered".to_owned(),
                        Action::Send(message) => format!("{message:?}"),
                        other => format!("{other:?}"),
                    })
                    .collect();
                let row = format!("{state:?} | {event:?} | {next:?} | {}", actions.join(", "));
                table.push_str(&format!("{}\n", row.trim_end()));
            }
        }
        assert_eq!(table, GOLDEN);
    }

    /// Whatever a newcomer does or does not do, somebody accepts: the newcomer once it was told so, else we.
    #[test]
    fn clients_are_never_without_somebody_who_accepts() {
        let events = [Event::Hello(Ok(())), Event::Ready, Event::Passed, Event::Gone];
        let mut paths = vec![(Giver::Alone, Phase::Serving, false)];
        for _ in 0..5 {
            let step = |(state, phase, newcomer): &(Giver, Phase, bool)| {
                let (state, phase, newcomer) = (*state, *phase, *newcomer);
                events
                    .iter()
                    .map(|event| {
                        let (next, actions) = state.handle(event.clone(), &offered());
                        let mut after = (next, phase, newcomer && *event != Event::Gone);
                        for action in actions {
                            match action {
                                Action::Phase(phase) => after.1 = phase,
                                Action::Send(Message::Yielded) => after.2 = true,
                                Action::Close => after.2 = false,
                                _ => {}
                            }
                        }
                        // Another than this newcomer serves from here on.
                        after.2 |= next == Giver::Passed;
                        assert!(after.1.accepts() || after.2, "{state:?} {event:?}: {after:?}");
                        after
                    })
                    .collect::<Vec<_>>()
            };
            paths = paths.iter().flat_map(step).collect();
        }
    }

    #[test]
    fn phases_say_who_does_what() {
        use Phase::{Offered, Serving, Waiting, Yielded};
        let all = [Waiting, Serving, Offered, Yielded];
        assert_eq!(all.map(Phase::accepts), [false, true, true, false]);
        assert_eq!(all.map(Phase::answers), [false, true, true, true]);
        assert_eq!(all.map(|phase| phase.unready().is_none()), [false, true, false, false]);
        assert_eq!(all.map(Phase::begins_sessions), [true, true, false, false]);
        // A newcomer and the one before it, at each step: exactly one accepts, and says whether the newcomer serves.
        for (newcomer, before) in [(Waiting, Offered), (Serving, Yielded)] {
            assert!(newcomer.accepts() ^ before.accepts());
            let told = if newcomer.accepts() { newcomer } else { before };
            assert_eq!(told.unready().is_none(), newcomer == Serving);
        }
    }

    #[test]
    fn what_a_later_version_says_is_passed_over() {
        let known = serde_json::to_string(&Message::Offered(offered())).unwrap();
        assert_eq!(known, r#"{"offered":{"boot":7,"tunnelPorts":[15443,15444]}}"#);
        let later: Message = serde_json::from_str(r#"{"offered":{"boot":7,"tunnelPorts":[],"more":1}}"#).unwrap();
        assert_eq!(later, Message::Offered(Offered { boot: 7, tunnel_ports: vec![] }));
        assert!(matches!(serde_json::from_str(r#"{"weather":"fine"}"#).unwrap(), Message::Unknown(_)));
        assert_eq!(serde_json::from_str::<Message>(r#""ready""#).unwrap(), Message::Ready);
    }

    const GOLDEN: &str = "\
Alone | Hello(Ok(())) | Offered | Sockets, Phase(Offered), Offered
Alone | Hello(Err(\"no\")) | Alone | Refused(\"no\"), Close
Alone | Ready | Alone | Close
Alone | Passed | Alone | Close
Alone | Gone | Alone |
Offered | Hello(Ok(())) | Alone | Close, Phase(Serving)
Offered | Hello(Err(\"no\")) | Alone | Close, Phase(Serving)
Offered | Ready | Yielded | Phase(Yielded), Sockets, Yielded
Offered | Passed | Alone | Close, Phase(Serving)
Offered | Gone | Alone | Phase(Serving)
Yielded | Hello(Ok(())) | Alone | Close, Phase(Serving)
Yielded | Hello(Err(\"no\")) | Alone | Close, Phase(Serving)
Yielded | Ready | Alone | Close, Phase(Serving)
Yielded | Passed | Passed |
Yielded | Gone | Alone | Phase(Serving)
Passed | Hello(Ok(())) | Passed |
Passed | Hello(Err(\"no\")) | Passed |
Passed | Ready | Passed |
Passed | Passed | Passed |
Passed | Gone | Passed |
";
}
