//! Watching a directory of service files.
