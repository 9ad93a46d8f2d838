//! The page that operators look at, without the control plane behind it.
//!
//! - [`state`], [`action`]: what goes over the wire, as `assets/js/contract.d.ts` says it; a test holds the two together.
//! - [`wish`]: what a page may want changed, as the edits that `meshctl` makes.
//! - [`sessions`]: links to sign in by, and sessions. Pure: time and randomness are passed in.
//! - [`guard`]: which requests are a browser's that shows our page, and what browsers are told to forbid.
//! - [`assets`]: the files of the page, out of the binary.
//! - [`json`]: JSON that is harmless wherever it ends up.

pub mod action;
pub mod assets;
pub mod guard;
pub mod json;
pub mod sessions;
pub mod state;
pub mod wish;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod examples;
