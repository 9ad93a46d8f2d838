//! What happened to peers since the worker asked last, by peer: so that following them costs what happened, not what there is.

use crate::config::PeerName;
use std::collections::{BTreeMap, BTreeSet};

/// What happened to a worker's tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct News {
    /// Other peers are chosen, or a peer is another one than before under its name.
    pub chosen: bool,
    /// By peer; those of whom there is nothing to say are not in it.
    pub peers: BTreeMap<PeerName, PeerNews>,
}

/// What happened to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerNews {
    /// Its state is another one, or was meanwhile.
    pub state: bool,
    /// It said something about services.
    pub health: HealthNews,
}

/// Of which services a peer said something.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HealthNews {
    /// Of none.
    #[default]
    Nothing,
    /// Of these.
    Services(BTreeSet<String>),
    /// Of all of them, those included that it does not name any more.
    Everything,
}

impl HealthNews {
    /// Adds what else there is to say.
    pub fn add(&mut self, other: Self) {
        *self = match (std::mem::take(self), other) {
            (Self::Everything, _) | (_, Self::Everything) => Self::Everything,
            (Self::Nothing, news) | (news, Self::Nothing) => news,
            (Self::Services(mut names), Self::Services(more)) => {
                names.extend(more);
                Self::Services(names).bounded()
            }
        }
    }

    /// Adds a service.
    pub(crate) fn name(&mut self, service: &str) {
        match self {
            Self::Everything => {}
            Self::Nothing => *self = Self::Services([service.to_owned()].into()),
            Self::Services(names) if names.contains(service) => {}
            Self::Services(names) => {
                names.insert(service.to_owned());
                *self = std::mem::take(self).bounded();
            }
        }
    }

    fn bounded(self) -> Self {
        match self {
            Self::Services(names) if names.len() > NAMES_MAX => Self::Everything,
            news => news,
        }
    }
}

/// Looking at everything is cheaper then than keeping more names.
const NAMES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_add_up_to_everything() {
        let mut news = HealthNews::default();
        news.add(HealthNews::Nothing);
        assert_eq!(news, HealthNews::Nothing);
        for name in ["a", "b", "a"] {
            news.name(name);
        }
        let other = HealthNews::Services(["b".to_owned(), "c".to_owned()].into());
        news.add(other.clone());
        assert_eq!(news, HealthNews::Services(["a", "b", "c"].map(str::to_owned).into()));
        (0..NAMES_MAX).for_each(|n| news.name(&n.to_string()));
        assert_eq!(news, HealthNews::Everything);
        news.add(other);
        news.name("a");
        assert_eq!(news, HealthNews::Everything);
    }
}
