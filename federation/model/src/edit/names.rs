//! Services and clusters as people write them.

use std::fmt;
use std::str::FromStr;

/// A service: `shop/checkout`, also accepted as `checkout.shop`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name inside the namespace.
    pub name: String,
}

impl ServiceName {
    /// The short host name that gateways route by.
    #[must_use]
    pub fn host(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match (text.split_once('/'), text.split_once('.')) {
            (Some(parts), _) => parts,
            (None, Some((name, namespace))) => (namespace, name),
            (None, None) => return Err(format!("`{text}` has no namespace; write for example shop/{text}")),
        };
        for (what, part) in [("namespace", namespace), ("name", name)] {
            label(part).map_err(|why| format!("{what} `{part}` {why}; a service is written like shop/checkout"))?;
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// A cluster, with one version of the service or any: `tokyo`, `tokyo:v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Cluster.
    pub cluster: String,
    /// Version of the service; absent: any.
    pub version: Option<String>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (cluster, version) = match text.split_once(':') {
            Some((cluster, version)) => (cluster, Some(version)),
            None => (text, None),
        };
        label(cluster).map_err(|why| format!("cluster `{cluster}` {why}; write tokyo, or tokyo:v2 for one version"))?;
        if version.is_some_and(str::is_empty) {
            return Err("the version after `:` is empty; write tokyo, or tokyo:v2 for one version".to_owned());
        }
        Ok(Self { cluster: cluster.to_owned(), version: version.map(ToOwned::to_owned) })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}:{version}", self.cluster),
            None => f.write_str(&self.cluster),
        }
    }
}

/// One share of a split: `paris=90`, `tokyo:v2=10`. Weights are relative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Where it goes.
    pub target: Target,
    /// Relative weight.
    pub weight: u32,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((target, weight)) = text.split_once('=') else {
            return Err(format!("`{text}` has no weight; write for example {text}=10"));
        };
        let weight =
            weight.parse().map_err(|_| format!("weight `{weight}` is not a whole number from 0 to {}", u32::MAX))?;
        Ok(Self { target: target.parse()?, weight })
    }
}

/// The rules of an RFC 1123 label, as Kubernetes names follow them.
///
/// # Errors
/// Which of them `text` breaks.
pub fn label(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > 63 {
        return Err("is longer than 63 characters");
    }
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.bytes().all(inside) || text.starts_with('-') || text.ends_with('-') {
        return Err("is not made of lower-case letters, digits and inner `-`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_two_spellings() {
        let service: ServiceName = "shop/checkout".parse().unwrap();
        assert_eq!("checkout.shop".parse(), Ok(service.clone()));
        assert_eq!((service.to_string().as_str(), service.host().as_str()), ("shop/checkout", "checkout.shop"));
        for wrong in ["checkout", "shop/", "/checkout", "Shop/checkout", "a/b/c", ""] {
            assert!(wrong.parse::<ServiceName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_name_cluster_version_and_weight() {
        let share: Share = "tokyo:v2=10".parse().unwrap();
        assert_eq!((share.target.to_string().as_str(), share.weight), ("tokyo:v2", 10));
        assert_eq!("paris=90".parse::<Share>().unwrap().target.version, None);
        for wrong in ["paris", "paris=", "paris=-1", "=1", "paris:=1", "paris=1.5", "paris=4294967296"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
