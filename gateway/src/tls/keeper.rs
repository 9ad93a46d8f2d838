//! Reads the directory of certificates, at the start and once a second from then on.
//!
//! Looked at, not watched: what writes there differs (an `mv`, cert-manager through a kubelet that exchanges a symbolic link, an
//! editor), and a few small files are read in less than a millisecond, whoever wrote them and on whatever file system.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::Live;
use super::certificates::{Change, Files, Listing, Shelf};
use super::metrics::TlsMetrics;

/// Keeps what clients are shown as it is on disk.
#[derive(Debug)]
pub struct Keeper {
    folder: PathBuf,
    shelf: Shelf,
    live: Arc<Live>,
    metrics: TlsMetrics,
    /// The directory cannot be read, which has been said.
    is_unreadable: bool,
}

impl Keeper {
    /// Reads `folder` for the first time.
    ///
    /// # Errors
    /// There is no such directory, or it may not be read. One that is empty, or whose pairs cannot be used, is no error: they may come.
    pub fn start(folder: PathBuf, live: Arc<Live>, metrics: TlsMetrics) -> io::Result<Self> {
        let mut keeper = Self { folder, shelf: Shelf::default(), live, metrics, is_unreadable: false };
        let listing = read(&keeper.folder)?;
        keeper.take(listing);
        if keeper.shelf.count()[0] == 0 {
            tracing::warn!(
                directory = %keeper.folder.display(),
                "there is no certificate that could be used: clients are refused until there is NAME.crt with NAME.key, or NAME/tls.crt with NAME/tls.key"
            );
        }
        Ok(keeper)
    }

    /// Reads on, for ever.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let folder = self.folder.clone();
            let Ok(listing) = tokio::task::spawn_blocking(move || read(&folder)).await else { return };
            match listing {
                Ok(listing) => {
                    self.is_unreadable = false;
                    self.take(listing);
                }
                Err(error) if !self.is_unreadable => {
                    self.is_unreadable = true;
                    tracing::warn!(directory = %self.folder.display(), %error, "certificates cannot be read; those in use stay");
                }
                Err(_) => {}
            }
        }
    }

    fn take(&mut self, listing: Listing) {
        let changes = self.shelf.take(listing);
        if changes.is_empty() {
            return;
        }
        self.live.replace(self.shelf.certificates());
        self.metrics.certificates(self.shelf.count(), self.shelf.expires());
        for change in changes {
            match change {
                Change::Used { pair, names } => tracing::info!(pair, ?names, "a certificate is used"),
                Change::Unusable { pair, why, keeps: true } => {
                    tracing::warn!(pair, error = why, "a certificate cannot be used; the one before it stays in use");
                }
                Change::Unusable { pair, why, keeps: false } => {
                    tracing::warn!(pair, error = why, "a certificate cannot be used; its names are refused");
                }
                Change::Gone { pair } => tracing::info!(pair, "a certificate is gone"),
            }
        }
    }
}

/// All pairs in `folder`: `NAME.crt` with `NAME.key`, and `NAME/tls.crt` with `NAME/tls.key`, as a Secret of type kubernetes.io/tls is
/// mounted.
fn read(folder: &Path) -> io::Result<Listing> {
    let mut pairs: BTreeMap<String, [PathBuf; 2]> = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        // Kubernetes keeps what it mounts in hidden folders beside its links.
        let Some(file) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let files = if path.is_dir() {
            let files = [path.join("tls.crt"), path.join("tls.key")];
            files.iter().any(|file| file.exists()).then(|| (file.to_owned(), files))
        } else {
            let name = file.strip_suffix(".crt").or_else(|| file.strip_suffix(".key"));
            name.map(|name| (name.to_owned(), ["crt", "key"].map(|end| folder.join(format!("{name}.{end}")))))
        };
        pairs.extend(files);
    }
    if pairs.len() > PAIRS_MAX {
        let message = format!("there are {} pairs, and at most {PAIRS_MAX} are kept", pairs.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(pairs.into_iter().map(|(name, files)| (name, pair(&files))).collect())
}

fn pair([chain, key]: &[PathBuf; 2]) -> Result<Files, String> {
    let read = |path: &Path| file(path).map_err(|error| format!("cannot read {}: {error}", path.display()));
    Ok(Files { chain: read(chain)?.to_vec(), key: read(key)? })
}

fn file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // All the room at once: what grows leaves copies behind, which nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
    File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_BYTES_MAX {
        let message = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// Sooner than anybody looks whether a renewed certificate is used.
const INTERVAL: Duration = Duration::from_secs(1);
/// As many services as a federation of medium size has.
const PAIRS_MAX: usize = 1_000;
/// Ten times the longest chain in use.
const FILE_BYTES_MAX: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_lie_side_by_side_or_as_kubernetes_mounts_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("a.crt", "chain a"), ("a.key", "key a"), ("half.crt", "chain"), ("README", "x")] {
            std::fs::write(path(name), text).unwrap();
        }
        // A link to a folder that is exchanged, beside the hidden one that holds it.
        std::fs::create_dir_all(path("web/..2026")).unwrap();
        std::fs::write(path("web/..2026/tls.crt"), "chain web").unwrap();
        std::fs::write(path("web/..2026/tls.key"), "key web").unwrap();
        std::os::unix::fs::symlink("..2026", path("web/..data")).unwrap();
        for file in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(format!("..data/{file}"), path("web").join(file)).unwrap();
        }
        std::fs::create_dir(path("other")).unwrap();
        std::fs::create_dir(path(".hidden")).unwrap();
        std::fs::write(path("big.crt"), vec![b'x'; FILE_BYTES_MAX + 1]).unwrap();
        std::fs::write(path("big.key"), "key").unwrap();

        let listing = read(folder.path()).unwrap();
        let files = |chain: &str, key: &str| Files { chain: chain.into(), key: Zeroizing::new(key.into()) };
        assert_eq!(listing.keys().collect::<Vec<_>>(), ["a", "big", "half", "web"]);
        assert_eq!(listing["a"], Ok(files("chain a", "key a")));
        assert_eq!(listing["web"], Ok(files("chain web", "key web")));
        assert!(listing["half"].as_ref().unwrap_err().contains("half.key"), "{listing:?}");
        assert!(listing["big"].as_ref().unwrap_err().contains("longer than"), "{listing:?}");
        assert!(read(&path("nowhere")).is_err());
    }
}
