//! Where it is remembered that a member was started.
//!
//! Whoever lost its data directory and founded itself again would vote against what it had promised, so the marker is
//! kept outside of that directory. The Raft crate writes and reads it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The marker of the member with this data directory, unless another place is given.
pub(crate) fn marker(data_dir: &Path) -> PathBuf {
    // `.` and `/` have no name: there the marker goes where the directory really is, or into it.
    let real = data_dir.canonicalize();
    let named = [Some(data_dir), real.as_deref().ok()].into_iter().flatten().find(|path| path.file_name().is_some());
    let mut path = OsString::from(named.unwrap_or(data_dir));
    // `dir/` names the same directory as `dir`.
    while path.as_encoded_bytes().ends_with(b"/") {
        path = OsString::from(path.to_string_lossy().trim_end_matches('/'));
    }
    path.push(MARKER_SUFFIX);
    path.into()
}

/// Ends the name of a marker.
pub const MARKER_SUFFIX: &str = ".started";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_lies_beside_the_directory() {
        for dir in ["/var/lib/member-1", "/var/lib/member-1/", "/var/lib/member-1//"] {
            assert_eq!(marker(Path::new(dir)), Path::new("/var/lib/member-1.started"));
        }
        assert_eq!(marker(Path::new("member-1")), Path::new("member-1.started"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(marker(Path::new(".")).parent(), here.parent());
    }
}
