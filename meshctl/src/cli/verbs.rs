//! What each command takes, by what it is for.

mod change;
mod federation;
mod look;

pub(crate) use self::change::*;
pub(crate) use self::federation::*;
pub(crate) use self::look::*;
