//! The agent of a cluster.
