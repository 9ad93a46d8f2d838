//! Keys and certificates as text (RFC 7468). Reading it is `rustls`'s.

use zeroize::Zeroizing;

/// `der` in base64, in lines of 64 characters between the two markers; forgotten when dropped, for it may be a key.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(data_encoding::BASE64.encode(der));
    // All of it at once: a text that grows leaves copies behind.
    let markers = 2 * (label.len() + 32);
    let mut pem = Zeroizing::new(String::with_capacity(base64.len() + base64.len() / LINE + markers));
    pem.push_str("-----BEGIN ");
    pem.push_str(label);
    pem.push_str("-----\n");
    for (column, character) in base64.chars().enumerate() {
        if column > 0 && column % LINE == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push_str("\n-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};

    #[test]
    fn what_is_written_is_read_in_lines_of_64() {
        for length in [0_u8, 1, 47, 48, 49, 200] {
            let der: Vec<u8> = (0..length).collect();
            let text = super::encode("PRIVATE KEY", &der);
            assert!(text.lines().all(|line| line.len() <= 64), "{length}");
            assert_eq!(
                PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).unwrap().secret_pkcs8_der(),
                der,
                "{length}"
            );
        }
    }
}
