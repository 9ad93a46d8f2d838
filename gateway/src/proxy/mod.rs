//! The HTTP path.
pub mod guard;
