//! Names that come from outside: clusters, gateways, agents, services.

/// Whether `name` is a DNS label (RFC 1123 §2.1): 1 to 63 of `a-z`, `0-9`, `-`, beginning and ending alphanumeric.
#[must_use]
pub fn is_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

/// What is wrong with `name` as the name of a `what`, if anything.
#[must_use]
pub fn label_problem(what: &str, name: &str) -> Option<String> {
    (!is_label(name)).then(|| {
        let shown: String = name.chars().take(80).collect();
        format!("{what} name {shown:?} is not a DNS label (1 to 63 of a-z, 0-9 and -, not at either end)")
    })
}

/// Whether `name` may be a gateway's: one label, or several with dots between them (RFC 1123 §2.1), as nodes are named.
#[must_use]
fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// What is wrong with `name` as a gateway's, if anything.
#[must_use]
pub fn gateway_problem(name: &str) -> Option<String> {
    (!is_subdomain(name)).then(|| {
        let shown: String = name.chars().take(80).collect();
        format!(
            "gateway name {shown:?} is not a DNS name (at most 253 of a-z, 0-9, - and ., letters or digits at the ends)"
        )
    })
}
