//! What a federation agrees on, without I/O: everything may depend on this crate, and it depends on no runtime.
//!
//! Reading order: [`document`] (text with places) → [`resource`] (the kinds, [`schema`] for others' machines) → [`admit`] (may they enter?) →
//! [`compile`] (what each gateway runs). [`service`] says what a service speaks, [`service_file`] is a cluster's own
//! services as YAML; [`export`] is what a service is that several clusters export, [`selector`] which of these come first; [`version`] says which of two states is the newer; [`stream`] is how a gateway gets there, [`delta`]
//! how any reader's copy of a table does; [`event`] is how everybody says what happened.

pub mod admit;
pub mod compile;
pub mod delta;
pub mod document;
pub mod duration;
pub mod edit;
pub mod event;
pub mod export;
pub mod feature;
pub mod id;
mod name;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod service;
pub mod service_file;
pub mod stream;
pub mod version;
