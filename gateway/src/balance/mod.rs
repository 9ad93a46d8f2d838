//! Who serves a request: cluster, then gateway, then endpoint. No I/O, no clock, no randomness of its own.
//!
//! 1. [`cluster`]: weights, then tiers, over what can serve now ([`hash`] holds the two ways to draw).
//! 2. [`failback`]: how a cluster that was away comes back.
//! 3. [`load`]: power of two choices over Peak-EWMA, for gateways and endpoints.
//! 4. [`topology`]: endpoints of the own node or zone come first, where the cluster says so.
//! 5. [`outlier`]: endpoints that fail in a row, or hang ([`patience`]), sit out for a while and come back slowly.
//! 6. [`reach`]: endpoints to which no connection comes about are given nothing until one does.
//! 7. [`budget`]: how many attempts beyond the first a worker may spend.

pub mod budget;
pub mod cluster;
pub mod failback;
pub mod hash;
pub mod load;
pub mod outlier;
pub mod patience;
pub mod reach;
pub mod topology;
