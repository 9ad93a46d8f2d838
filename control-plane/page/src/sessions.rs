//! Who may look: links that are good once and for a minute, and the sessions that they become. Pure: time and randomness are passed in.
//!
//! Secrets are kept as hashes only, so that nothing that reads this memory, or compares slowly, can sign in by it.

use std::{collections::HashMap, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;

/// Links and sessions. `W` is what the control plane knows of whoever signs in; it is given back when a session ends. Time is that since
/// the process began.
#[derive(Debug)]
pub struct Sessions<W> {
    links: HashMap<Hash, Link<W>>,
    sessions: HashMap<Hash, Session<W>>,
    /// Order of arrival.
    next: u64,
}

/// What a browser shows at every request. Random, and made of characters that cookies and addresses may have.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a link does not let in. They look alike from outside: who guesses learns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoEntry {
    /// Never made, used before, displaced by newer ones, or too old.
    #[error("this link was used already, or its minute is over")]
    Unknown,
    /// Others have all places.
    #[error("{SESSIONS_MAX} sessions are open at this member")]
    Full,
}

impl<W> Sessions<W> {
    /// A link for `who`, named `name` for the bounds, whose session will last for `life` from now at most.
    ///
    /// One of the same name that is too many displaces its oldest.
    pub fn invite(&mut self, name: &str, who: W, life: Duration, random: [u8; 32], now: Duration) -> Secret {
        self.links.retain(|_, link| now < link.until);
        let secret = Secret::of(random);
        let own = self.links.iter().filter(|(_, link)| link.name == name);
        let mut own: Vec<(u64, Hash)> = own.map(|(hash, link)| (link.place, *hash)).collect();
        if own.len() >= LINKS_PER_NAME_MAX {
            own.sort_unstable();
            if let Some((_, oldest)) = own.first() {
                self.links.remove(oldest);
            }
        } else if self.links.len() >= LINKS_MAX
            && let Some(oldest) = self.links.iter().min_by_key(|(_, link)| link.place).map(|(hash, _)| *hash)
        {
            self.links.remove(&oldest);
        }
        let link = Link {
            name: name.to_owned(),
            who,
            until: now.saturating_add(LINK_LIFE.min(life)),
            ends: now.saturating_add(life.min(SESSION_LIFE)),
            place: self.place(),
        };
        self.links.insert(secret.hash(), link);
        secret
    }

    /// Turns a link into a session, once. Gives the secret of the session, and who had to leave for it: the oldest session of that name.
    ///
    /// # Errors
    /// The link is not good, or there is no place.
    pub fn sign_in(&mut self, link: &str, random: [u8; 32], now: Duration) -> Result<(Secret, Option<W>), NoEntry> {
        self.sessions.retain(|_, session| now < session.ends);
        let link = self.links.remove(&hash(link)).filter(|link| now < link.until).ok_or(NoEntry::Unknown)?;
        let own = self.sessions.iter().filter(|(_, session)| session.name == link.name);
        let mut own: Vec<(u64, Hash)> = own.map(|(hash, session)| (session.place, *hash)).collect();
        let mut left = None;
        if own.len() >= SESSIONS_PER_NAME_MAX {
            own.sort_unstable();
            left = own.first().and_then(|(_, oldest)| self.sessions.remove(oldest)).map(|session| session.who);
        } else if self.sessions.len() >= SESSIONS_MAX {
            return Err(NoEntry::Full);
        }
        let secret = Secret::of(random);
        let place = self.place();
        let session = Session { name: link.name, who: link.who, ends: link.ends, place };
        self.sessions.insert(secret.hash(), session);
        Ok((secret, left))
    }

    /// Whose session it is, and when it ends.
    #[must_use]
    pub fn who(&self, secret: &str, now: Duration) -> Option<(&W, Duration)> {
        let session = self.sessions.get(&hash(secret)).filter(|session| now < session.ends)?;
        Some((&session.who, session.ends))
    }

    /// Ends a session.
    pub fn sign_out(&mut self, secret: &str) -> Option<W> {
        self.sessions.remove(&hash(secret)).map(|session| session.who)
    }

    /// Ends the sessions and links of whoever `is_refused`, and those whose time is over.
    pub fn sweep(&mut self, now: Duration, is_refused: impl Fn(&W) -> bool) {
        self.links.retain(|_, link| now < link.until && !is_refused(&link.who));
        self.sessions.retain(|_, session| now < session.ends && !is_refused(&session.who));
    }

    /// Open sessions.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sessions.len()
    }

    fn place(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl<W> Default for Sessions<W> {
    fn default() -> Self {
        Self { links: HashMap::new(), sessions: HashMap::new(), next: 0 }
    }
}

impl Secret {
    fn of(random: [u8; 32]) -> Self {
        Self(BASE64URL_NOPAD.encode(&random))
    }

    /// For a link or a cookie, and for nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn hash(&self) -> Hash {
        hash(&self.0)
    }
}

/// Never in a log.
impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Secret(…)")
    }
}

#[derive(Debug)]
struct Link<W> {
    name: String,
    who: W,
    until: Duration,
    /// Of the session that it becomes.
    ends: Duration,
    place: u64,
}

#[derive(Debug)]
struct Session<W> {
    name: String,
    who: W,
    ends: Duration,
    place: u64,
}

type Hash = [u8; 32];

/// What is looked up is a hash: how long that takes says nothing about any secret.
fn hash(secret: &str) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    hash
}

/// From the terminal to the browser, and a password manager that asks in between.
pub const LINK_LIFE: Duration = Duration::from_secs(60);
/// A working day; a new link is one command.
pub const SESSION_LIFE: Duration = Duration::from_secs(8 * 3_600);
/// A person with several browsers, who tried a few times.
pub const LINKS_PER_NAME_MAX: usize = 4;
const LINKS_MAX: usize = 64;
/// Browsers and screens on walls of one operator.
pub const SESSIONS_PER_NAME_MAX: usize = 16;
/// Of all operators, at one member.
pub const SESSIONS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// 32 bytes that are not those of any other number.
    fn random(number: u8) -> [u8; 32] {
        [number; 32]
    }

    fn signed_in(sessions: &mut Sessions<&'static str>, name: &'static str, number: u8, now: Duration) -> Secret {
        let link = sessions.invite(name, name, SESSION_LIFE, random(number), now);
        sessions.sign_in(link.expose(), random(number ^ 0xff), now).unwrap().0
    }

    /// What a link is worth, by what was done before and when.
    #[test]
    fn a_link_is_good_once_and_for_a_minute() {
        for (used_before, after, expected) in [
            (false, 0, Ok(())),
            (false, 59, Ok(())),
            (false, 60, Err(NoEntry::Unknown)),
            (false, 3_600, Err(NoEntry::Unknown)),
            (true, 0, Err(NoEntry::Unknown)),
            (true, 59, Err(NoEntry::Unknown)),
        ] {
            let mut sessions = Sessions::default();
            let link = sessions.invite("ann", "ann", SESSION_LIFE, random(1), at(100));
            if used_before {
                sessions.sign_in(link.expose(), random(2), at(100)).unwrap();
            }
            let entered = sessions.sign_in(link.expose(), random(3), at(100 + after)).map(|_| ());
            assert_eq!(entered, expected, "used before: {used_before}, after {after} s");
            let again = sessions.sign_in(link.expose(), random(4), at(100 + after)).map(|_| ());
            assert_eq!(again, Err(NoEntry::Unknown), "it failed or was used: it is gone");
        }
    }

    #[test]
    fn what_is_no_secret_of_ours_opens_nothing() {
        let mut sessions = Sessions::default();
        let link = sessions.invite("ann", "ann", SESSION_LIFE, random(1), at(0));
        let session = signed_in(&mut sessions, "bob", 2, at(0));
        for wrong in ["", "x", session.expose(), &link.expose()[1..], &format!("{}=", link.expose())] {
            assert_eq!(sessions.sign_in(wrong, random(9), at(0)).map(|_| ()), Err(NoEntry::Unknown), "{wrong:?}");
        }
        for wrong in ["", link.expose(), &session.expose().to_uppercase(), &format!("{} ", session.expose())] {
            assert_eq!(sessions.who(wrong, at(0)), None, "{wrong:?}");
        }
        assert_eq!(sessions.who(session.expose(), at(0)), Some((&"bob", SESSION_LIFE)));
        assert_eq!(format!("{session:?} {link:?}"), "Secret(…) Secret(…)");
    }

    #[test]
    fn a_session_ends_by_time_by_wish_and_with_what_it_stands_on() {
        let mut sessions = Sessions::default();
        let session = signed_in(&mut sessions, "ann", 1, at(0));
        let last = SESSION_LIFE - Duration::from_nanos(1);
        assert!(sessions.who(session.expose(), last).is_some());
        assert_eq!(sessions.who(session.expose(), SESSION_LIFE), None);
        sessions.sweep(SESSION_LIFE, |_| false);
        assert_eq!(sessions.count(), 0);

        let session = signed_in(&mut sessions, "ann", 2, at(0));
        assert_eq!(sessions.sign_out(session.expose()), Some("ann"));
        assert_eq!(sessions.who(session.expose(), at(0)), None);
        assert_eq!(sessions.sign_out(session.expose()), None);

        // A certificate that runs out sooner.
        let link = sessions.invite("ann", "ann", at(30), random(3), at(0));
        let (session, _) = sessions.sign_in(link.expose(), random(4), at(10)).unwrap();
        assert_eq!(
            sessions.who(session.expose(), at(29)),
            Some((&"ann", at(30))),
            "from the link on, not from the sign-in"
        );
        assert_eq!(sessions.who(session.expose(), at(30)), None);
        let link = sessions.invite("ann", "ann", at(30), random(5), at(0));
        assert_eq!(sessions.sign_in(link.expose(), random(6), at(31)).map(|_| ()), Err(NoEntry::Unknown));

        let (ann, bob) = (signed_in(&mut sessions, "ann", 7, at(0)), signed_in(&mut sessions, "bob", 8, at(0)));
        let link = sessions.invite("ann", "ann", SESSION_LIFE, random(9), at(0));
        sessions.sweep(at(1), |who| *who == "ann");
        assert!(sessions.who(ann.expose(), at(1)).is_none() && sessions.who(bob.expose(), at(1)).is_some());
        assert_eq!(sessions.sign_in(link.expose(), random(10), at(1)).map(|_| ()), Err(NoEntry::Unknown));
    }

    #[test]
    fn links_and_sessions_are_bounded_and_nobody_pays_for_another() {
        let mut sessions = Sessions::default();
        let bobs = sessions.invite("bob", "bob", SESSION_LIFE, random(200), at(0));
        let links: Vec<Secret> =
            (0..5).map(|number| sessions.invite("ann", "ann", SESSION_LIFE, random(number), at(0))).collect();
        assert_eq!(sessions.sign_in(links[0].expose(), random(90), at(1)).map(|_| ()), Err(NoEntry::Unknown));
        assert!(sessions.sign_in(links[4].expose(), random(91), at(1)).is_ok());
        assert!(sessions.sign_in(bobs.expose(), random(92), at(1)).is_ok(), "bob's is his own");

        let mut sessions = Sessions::default();
        let first = signed_in(&mut sessions, "ann", 0, at(0));
        let rest: Vec<Secret> = (1..16).map(|number| signed_in(&mut sessions, "ann", number, at(0))).collect();
        let link = sessions.invite("ann", "ann", SESSION_LIFE, random(100), at(0));
        let (_, left) = sessions.sign_in(link.expose(), random(101), at(0)).unwrap();
        assert_eq!(left, Some("ann"));
        assert!(sessions.who(first.expose(), at(0)).is_none() && sessions.who(rest[0].expose(), at(0)).is_some());

        let mut sessions = Sessions::default();
        for number in 0..SESSIONS_MAX {
            let mut secret = [0; 32];
            secret[..8].copy_from_slice(&number.to_be_bytes());
            let link = sessions.invite(&format!("op-{number}"), "one", SESSION_LIFE, secret, at(0));
            secret[31] = 1;
            sessions.sign_in(link.expose(), secret, at(0)).unwrap();
        }
        let link = sessions.invite("ann", "ann", SESSION_LIFE, random(1), at(0));
        assert_eq!(sessions.sign_in(link.expose(), random(2), at(0)).map(|_| ()), Err(NoEntry::Full));
        assert_eq!(sessions.count(), SESSIONS_MAX);
        let link = sessions.invite("ann", "ann", SESSION_LIFE, random(3), SESSION_LIFE);
        assert!(sessions.sign_in(link.expose(), random(4), SESSION_LIFE).is_ok(), "the others' time is over");
    }
}
