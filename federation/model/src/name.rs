//! What may be a name.

/// RFC 1123 label: what Kubernetes allows as a name and DNS as a part of one.
pub(crate) fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// RFC 1123 subdomain: labels with dots between them, as Kubernetes names its nodes.
pub(crate) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// A version label of a service, a Kubernetes label value that is not empty.
pub(crate) fn is_version(version: &str) -> bool {
    (1..=63).contains(&version.len())
        && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
