//! What each command takes, by what it is for.

mod change;
mod federation;
mod look;
mod member;

pub(crate) use self::change::*;
pub(crate) use self::federation::*;
pub(crate) use self::look::*;
pub(crate) use self::member::*;
