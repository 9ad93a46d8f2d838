//! Sealing: AES-256-GCM with associated data that says what is inside and for whom.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use archipelago_proto::log::v1::Sealed;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// A 256-bit key that seals others. Kept by one member in a file, or in memory as the data key.
pub struct SealKey {
    key: LessSafeKey,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl SealKey {
    /// A new random key.
    ///
    /// # Errors
    /// The system's random source failed.
    pub fn generate() -> Result<Self, SealError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        aws_lc_rs::rand::fill(bytes.as_mut()).map_err(|_| SealError::Random)?;
        Self::from_bytes(bytes)
    }

    /// Reads a member's key: 32 raw bytes, in a file that nobody else may read.
    ///
    /// # Errors
    /// The file is missing, has another length, or is open to group or others.
    pub fn load(path: &Path) -> Result<Self, SealError> {
        let failed = |source| SealError::Read { path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SealError::Mode { path: path.to_owned(), mode });
        }
        let content = Zeroizing::new(fs::read(path).map_err(failed)?);
        let bytes: [u8; KEY_BYTES] = content
            .as_slice()
            .try_into()
            .map_err(|_| SealError::Length { path: path.to_owned(), bytes: content.len() })?;
        Self::from_bytes(Zeroizing::new(bytes))
    }

    /// Writes the key to a new file with mode 0600.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        archipelago_base::durable::write(path, self.bytes.as_ref(), 0o600)
    }

    /// The key in the clear, for whoever it is for.
    pub(crate) fn to_bytes(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        self.bytes.clone()
    }

    pub(super) fn from_bytes(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_ref()).map_err(|_| SealError::Random)?;
        Ok(Self { key: LessSafeKey::new(key), bytes })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Encrypts `plaintext`; opening it needs the same `context`.
    pub(super) fn seal(&self, context: &str, plaintext: &[u8]) -> Result<Sealed, SealError> {
        let mut nonce = [0; NONCE_LEN];
        // Random nonces: a key here seals a handful of messages in its life, far from the 2^32 of NIST SP 800-38D.
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut buffer = Zeroizing::new(Vec::with_capacity(plaintext.len() + AES_256_GCM.tag_len()));
        buffer.extend_from_slice(plaintext);
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context.as_bytes()), &mut *buffer)
            .map_err(|_| SealError::Random)?;
        Ok(Sealed { nonce: nonce.to_vec(), ciphertext: buffer.to_vec() })
    }

    /// The inverse of [`Self::seal`].
    pub(super) fn open(&self, context: &str, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let nonce = Nonce::try_assume_unique_for_key(&sealed.nonce).map_err(|_| SealError::Open)?;
        let mut buffer = Zeroizing::new(sealed.ciphertext.clone());
        let length = self
            .key
            .open_in_place(nonce, Aad::from(context.as_bytes()), &mut buffer)
            .map_err(|_| SealError::Open)?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("SealKey(..)")
    }
}

/// Why a key cannot be read, or a secret not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The seal key file cannot be read.
    #[error("cannot read the seal key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file has another length.
    #[error("the seal key {} has {bytes} bytes, expected {KEY_BYTES}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The file is readable by others.
    #[error("the seal key {} has mode {mode:03o}: nobody but its owner may read it (chmod 600)", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The system's random source failed.
    #[error("the system's random source failed")]
    Random,
    /// Wrong key, or damaged ciphertext.
    #[error("the sealed key cannot be opened: it was sealed for another key, or is damaged")]
    Open,
}

pub(super) const KEY_BYTES: usize = 32;
