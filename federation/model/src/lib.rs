//! What a federation agrees on, without I/O: everything may depend on this crate, and it depends on no runtime.
//!
//! Reading order: [`document`] (text with places) → [`resource`] (the kinds) → [`admit`] (may they enter?) →
//! [`compile`] (what each gateway runs). [`service_file`] is a cluster's own services as YAML;
//! [`version`] says which of two states is the newer.

pub mod admit;
pub mod compile;
pub mod document;
pub mod feature;
pub mod id;
pub mod resource;
pub mod service_file;
pub mod version;
