//! The life of a tunnel to one peer, without I/O.
//!
//! [`Lifecycle`] takes [`Event`]s and says in an [`Output`] what is to be done about them; `peer.rs` does it. Events of connections are
//! those of the connection in use: a connection that was replaced has no say.

use crate::{detector::Verdict, peer::PeerState};

/// Where a tunnel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifecycle {
    state: State,
    need: Need,
    /// The peer said of the connection in use that it takes nothing new.
    is_going_away: bool,
    /// The last attempt to dial failed, and none has succeeded since.
    is_failing: bool,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A handshake succeeded; its connection is the one in use from now on.
    Connected,
    /// An attempt to dial failed.
    DialFailed,
    /// The detector of the connection in use changed its mind.
    Verdict(Verdict),
    /// The peer sent GOAWAY.
    GoingAway,
    /// The connection in use is closed.
    Closed,
    /// The connection in use is old.
    Aged,
    /// The peer is to be found elsewhere than where the connection in use leads.
    Moved,
    /// The tunnel is not wanted any more.
    Stopped,
}

/// What to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// The new state to tell everybody, if it changed.
    pub(crate) announce: Option<PeerState>,
    /// The peer died just now: whoever waits for it may start over elsewhere.
    pub(crate) died: bool,
    /// Dial until there is a connection, or stop dialling, if that changed.
    pub(crate) dial: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dialing,
    Up,
    Suspect,
    Dead,
    Draining,
    Stopped,
}

/// Why a new connection is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// The one in use is silent: not any more once it is heard again.
    Life,
    /// There is none, or it is closed, old, or on its way out.
    Replacement,
}

impl Lifecycle {
    /// A tunnel that has never been; it is to be dialled.
    pub(crate) fn new() -> Self {
        Self { state: State::Dialing, need: Need::Replacement, is_going_away: false, is_failing: false }
    }

    pub(crate) fn state(&self) -> PeerState {
        match self.state {
            State::Dialing => PeerState::Dialing,
            State::Up => PeerState::Up,
            State::Suspect => PeerState::Suspect,
            State::Dead | State::Stopped => PeerState::Dead,
            State::Draining => PeerState::Draining,
        }
    }

    pub(crate) fn wants_dialling(&self) -> bool {
        self.need != Need::Nothing
    }

    /// True while requests may go here, or nothing is known against it yet: another peer need not stand in.
    pub(crate) fn is_promising(&self) -> bool {
        match self.state {
            State::Up | State::Suspect => true,
            State::Dialing => !self.is_failing,
            State::Dead | State::Draining | State::Stopped => false,
        }
    }

    /// Takes one event.
    pub(crate) fn handle(&mut self, event: Event) -> Output {
        let before = *self;
        self.step(event);
        let announce = (before.state() != self.state()).then(|| self.state());
        Output {
            announce,
            // A tunnel that is not wanted any more still finishes what it carries.
            died: announce == Some(PeerState::Dead) && self.state != State::Stopped,
            dial: (before.wants_dialling() != self.wants_dialling()).then(|| self.wants_dialling()),
        }
    }

    fn step(&mut self, event: Event) {
        match (self.state, event) {
            (State::Stopped, _) => {}
            (_, Event::Stopped) => (self.state, self.need) = (State::Stopped, Need::Nothing),
            (_, Event::Connected) => {
                *self = Self { state: State::Up, need: Need::Nothing, is_going_away: false, is_failing: false };
            }
            (_, Event::DialFailed) => self.is_failing = true,
            // Without a connection there is nothing that the others could be about.
            (State::Dialing, Event::Verdict(_) | Event::GoingAway | Event::Closed | Event::Aged | Event::Moved) => {}
            (_, Event::Closed) => (self.state, self.need) = (State::Dead, Need::Replacement),
            (_, Event::Verdict(Verdict::Dead)) => {
                self.state = State::Dead;
                if self.need == Need::Nothing {
                    self.need = Need::Life;
                }
            }
            (_, Event::Verdict(verdict)) => {
                self.state = match verdict {
                    _ if self.is_going_away => State::Draining,
                    Verdict::Suspect => State::Suspect,
                    Verdict::Up | Verdict::Dead => State::Up,
                };
                if self.need == Need::Life && verdict == Verdict::Up {
                    self.need = Need::Nothing;
                }
            }
            (_, Event::GoingAway) => {
                (self.is_going_away, self.need) = (true, Need::Replacement);
                if self.state != State::Dead {
                    self.state = State::Draining;
                }
            }
            (_, Event::Aged | Event::Moved) => self.need = Need::Replacement,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const EVENTS: [(&str, Event); 10] = [
        ("connected", Event::Connected),
        ("dial failed", Event::DialFailed),
        ("heard", Event::Verdict(Verdict::Up)),
        ("suspected", Event::Verdict(Verdict::Suspect)),
        ("silent", Event::Verdict(Verdict::Dead)),
        ("going away", Event::GoingAway),
        ("closed", Event::Closed),
        ("aged", Event::Aged),
        ("moved", Event::Moved),
        ("stopped", Event::Stopped),
    ];

    /// A state by the events that lead there.
    fn after(events: &[Event]) -> Lifecycle {
        let mut lifecycle = Lifecycle::new();
        for event in events {
            lifecycle.handle(*event);
        }
        lifecycle
    }

    fn states() -> Vec<(&'static str, Lifecycle)> {
        use Event::{Aged, Closed, Connected, GoingAway, Stopped, Verdict as Judged};
        vec![
            ("dialing", after(&[])),
            ("up", after(&[Connected])),
            ("up, renewing", after(&[Connected, Aged])),
            ("suspect", after(&[Connected, Judged(Verdict::Suspect)])),
            ("dead, silent", after(&[Connected, Judged(Verdict::Dead)])),
            ("dead, closed", after(&[Connected, Closed])),
            ("draining", after(&[Connected, GoingAway])),
            ("stopped", after(&[Stopped])),
        ]
    }

    /// Every state with every event: the state that follows, `!` for a death, `+` and `-` for the beginning and the end of dialling.
    #[test]
    fn golden_table() {
        let mut table = String::new();
        for (name, state) in states() {
            for (event_name, event) in EVENTS {
                let mut next = state;
                let output = next.handle(event);
                let died = if output.died { "!" } else { "" };
                let dial = match output.dial {
                    Some(true) => "+",
                    Some(false) => "-",
                    None => "",
                };
                assert_eq!(output.announce.is_some(), state.state() != next.state());
                let _ = writeln!(table, "{name} | {event_name} | {:?}{died}{dial}", next.state);
            }
        }
        assert_eq!(table, GOLDEN);
    }

    #[test]
    fn a_stand_in_is_wanted_exactly_while_nothing_can_go_here() {
        let promising: Vec<_> = states().iter().map(|(_, state)| state.is_promising()).collect();
        assert_eq!(promising, [true, true, true, true, false, false, false, false]);
        assert!(!after(&[Event::DialFailed]).is_promising());
        assert!(after(&[Event::DialFailed, Event::Connected]).is_promising());
        // The old connection still carries requests.
        assert!(after(&[Event::Connected, Event::Aged, Event::DialFailed]).is_promising());
    }

    #[test]
    fn a_peer_that_was_silent_while_it_left_comes_back_as_leaving() {
        use Event::{Connected, GoingAway, Verdict as Judged};
        let mut lifecycle = after(&[Connected, Judged(Verdict::Dead), GoingAway]);
        assert_eq!(lifecycle.state(), PeerState::Dead);
        lifecycle.handle(Judged(Verdict::Up));
        assert_eq!(lifecycle.state(), PeerState::Draining);
        assert!(lifecycle.wants_dialling());
    }

    const GOLDEN: &str = "\
dialing | connected | Up-
dialing | dial failed | Dialing
dialing | heard | Dialing
dialing | suspected | Dialing
dialing | silent | Dialing
dialing | going away | Dialing
dialing | closed | Dialing
dialing | aged | Dialing
dialing | moved | Dialing
dialing | stopped | Stopped-
up | connected | Up
up | dial failed | Up
up | heard | Up
up | suspected | Suspect
up | silent | Dead!+
up | going away | Draining+
up | closed | Dead!+
up | aged | Up+
up | moved | Up+
up | stopped | Stopped
up, renewing | connected | Up-
up, renewing | dial failed | Up
up, renewing | heard | Up
up, renewing | suspected | Suspect
up, renewing | silent | Dead!
up, renewing | going away | Draining
up, renewing | closed | Dead!
up, renewing | aged | Up
up, renewing | moved | Up
up, renewing | stopped | Stopped-
suspect | connected | Up
suspect | dial failed | Suspect
suspect | heard | Up
suspect | suspected | Suspect
suspect | silent | Dead!+
suspect | going away | Draining+
suspect | closed | Dead!+
suspect | aged | Suspect+
suspect | moved | Suspect+
suspect | stopped | Stopped
dead, silent | connected | Up-
dead, silent | dial failed | Dead
dead, silent | heard | Up-
dead, silent | suspected | Suspect
dead, silent | silent | Dead
dead, silent | going away | Dead
dead, silent | closed | Dead
dead, silent | aged | Dead
dead, silent | moved | Dead
dead, silent | stopped | Stopped-
dead, closed | connected | Up-
dead, closed | dial failed | Dead
dead, closed | heard | Up
dead, closed | suspected | Suspect
dead, closed | silent | Dead
dead, closed | going away | Dead
dead, closed | closed | Dead
dead, closed | aged | Dead
dead, closed | moved | Dead
dead, closed | stopped | Stopped-
draining | connected | Up-
draining | dial failed | Draining
draining | heard | Draining
draining | suspected | Draining
draining | silent | Dead!
draining | going away | Draining
draining | closed | Dead!
draining | aged | Draining
draining | moved | Draining
draining | stopped | Stopped-
stopped | connected | Stopped
stopped | dial failed | Stopped
stopped | heard | Stopped
stopped | suspected | Stopped
stopped | silent | Stopped
stopped | going away | Stopped
stopped | closed | Stopped
stopped | aged | Stopped
stopped | moved | Stopped
stopped | stopped | Stopped
";
}
