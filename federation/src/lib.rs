//! What a federation is: resources, validation, the policy compiler, discovery, and the agent of a cluster.
//!
//! Reading order: [`document`] (text with places) → [`resource`] (the kinds) → [`admit`] (may they enter?) →
//! [`compile`] (what each gateway runs) → [`provider`] and [`health`] (what a cluster has to offer) → [`agent`].

pub mod admit;
pub mod agent;
pub mod compile;
pub mod document;
pub mod health;
pub mod provider;
pub mod resource;
