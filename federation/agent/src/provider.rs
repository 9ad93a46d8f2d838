//! Where an agent learns what its cluster has to offer.

pub mod watch;
