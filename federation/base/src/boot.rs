//! A number that rises with every start of a process, so that sessions of two starts can be told apart by age.

use std::{fs, io, path::Path, time::SystemTime};

use crate::durable;

/// The number of this start, kept in `dir/boot`: above all that were handed out from there before, and at least the time of
/// day in Unix milliseconds, so that a directory that was lost or put back from a copy still gives a higher one. Neither
/// alone would do: clocks are set back, disks are wiped.
///
/// # Errors
/// The file cannot be written; the number is then not used up.
pub fn next(dir: &Path) -> io::Result<u64> {
    let path = dir.join("boot");
    let last = match fs::read(&path) {
        // A damaged file says nothing; the clock remains.
        Ok(bytes) => std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0_u64),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let next = last.saturating_add(1).max(u64::try_from(now.as_millis()).unwrap_or(0));
    durable::write(&path, format!("{next}\n").as_bytes(), 0o600)?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_whatever_the_clock_and_the_disk_do() {
        let dir = tempfile::tempdir().unwrap();
        let first = next(dir.path()).unwrap();
        assert!(next(dir.path()).unwrap() > first);
        // A clock that was far ahead.
        fs::write(dir.path().join("boot"), format!("{}", u64::MAX - 2)).unwrap();
        assert_eq!(next(dir.path()).unwrap(), u64::MAX - 1);
        for damage in [&b"?"[..], b"", b"\0garbage\xff"] {
            fs::write(dir.path().join("boot"), damage).unwrap();
            assert!(next(dir.path()).unwrap() > first, "{damage:?}");
        }
        fs::remove_file(dir.path().join("boot")).unwrap();
        assert!(next(dir.path()).unwrap() > first, "a lost one");
    }
}
