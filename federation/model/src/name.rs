//! What may be a name.

/// RFC 1123 label: what Kubernetes allows as a name and DNS as a part of one.
pub(crate) fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A version label of a service, a Kubernetes label value that is not empty.
pub(crate) fn is_version(version: &str) -> bool {
    (1..=63).contains(&version.len())
        && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
