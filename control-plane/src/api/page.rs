//! Pages of a listing: bounded in number and in bytes, continued by where the last one ended.

use tonic::Status;

/// One page on its way.
pub(super) struct Page {
    left: usize,
    bytes_left: usize,
    full: bool,
}

impl Page {
    /// `size` as the client asked; 0 means as many as fit.
    pub(super) fn new(size: u32) -> Self {
        let asked = usize::try_from(size).unwrap_or(usize::MAX);
        let left = if asked == 0 { SIZE_MAX } else { asked.min(SIZE_MAX) };
        Self { left, bytes_left: BYTES_MAX, full: false }
    }

    /// Whether an entry of so many bytes still goes on this page; at least one always does. After the first that does not,
    /// none does.
    pub(super) fn takes(&mut self, bytes: usize) -> bool {
        let first = self.bytes_left == BYTES_MAX;
        if self.full || self.left == 0 || (bytes > self.bytes_left && !first) {
            self.full = true;
            return false;
        }
        self.left -= 1;
        self.bytes_left = self.bytes_left.saturating_sub(bytes.max(1));
        true
    }

    /// Whether something was left for the next page.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }
}

/// The parts of a page token, which are names.
///
/// # Errors
/// It is no token of this listing.
pub(super) fn parse<const PARTS: usize>(token: &str) -> Result<Option<[String; PARTS]>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let parts: Vec<String> = token.split('/').map(str::to_owned).collect();
    let wrong = |_| Status::invalid_argument("the page token is not one of this listing");
    <[String; PARTS]>::try_from(parts).map(Some).map_err(wrong)
}

/// Of a listing's entries on one page.
const SIZE_MAX: usize = 1_000;
/// Half of what clients of gRPC take by default.
const BYTES_MAX: usize = 2 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(size: u32, entries: usize, bytes: usize) -> (usize, bool) {
        let mut page = Page::new(size);
        let taken = (0..entries).filter(|_| page.takes(bytes)).count();
        (taken, page.is_full())
    }

    #[test]
    fn a_page_is_bounded_in_number_and_bytes_and_never_empty() {
        assert_eq!(taken(3, 3, 10), (3, false));
        assert_eq!(taken(3, 4, 10), (3, true));
        assert_eq!(taken(0, 1_001, 10), (1_000, true));
        assert_eq!(taken(u32::MAX, 5_000, 0), (1_000, true));
        assert_eq!(taken(0, 5, 1024 * 1024), (2, true));
        assert_eq!(taken(0, 2, 5 * 1024 * 1024), (1, true));
    }

    #[test]
    fn tokens_of_other_listings_are_refused() {
        assert_eq!(parse::<2>("").unwrap(), None);
        assert_eq!(parse::<2>("a/b").unwrap(), Some(["a".to_owned(), "b".to_owned()]));
        assert!(parse::<2>("a/b/c").is_err());
    }
}
