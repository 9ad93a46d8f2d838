//! Names as they are written on the command line.

use std::str::FromStr;

use archipelago_model::edit::names::label;
pub(crate) use archipelago_model::edit::{ServiceName, Share, Target};

/// Where a request starts: `paris`, or one gateway of it, `paris/gw-1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Cluster.
    pub(crate) cluster: String,
    /// Gateway; absent: any that is connected.
    pub(crate) gateway: Option<String>,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (cluster, gateway) = match text.split_once('/') {
            Some((cluster, gateway)) => (cluster, Some(gateway)),
            None => (text, None),
        };
        // A gateway may be named after its node, which may have dots.
        for part in std::iter::once(cluster).chain(gateway.into_iter().flat_map(|name| name.split('.'))) {
            label(part).map_err(|why| format!("`{part}` {why}; write paris, or paris/gw-1 for one gateway"))?;
        }
        Ok(Self { cluster: cluster.to_owned(), gateway: gateway.map(ToOwned::to_owned) })
    }
}

/// `key=value`, as `--header` and `--cookie` take it.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not key=value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_keep_equal_signs_in_the_value() {
        assert_eq!(pair("x-a=b=c"), Ok(("x-a".to_owned(), "b=c".to_owned())));
        assert!(pair("=x").is_err() && pair("x").is_err());
    }

    #[test]
    fn a_source_is_a_cluster_or_one_gateway() {
        assert_eq!("paris/gw-1".parse::<Source>().unwrap().gateway.as_deref(), Some("gw-1"));
        assert_eq!("paris/node-1.example".parse::<Source>().unwrap().gateway.as_deref(), Some("node-1.example"));
        assert_eq!("paris".parse::<Source>().unwrap().gateway, None);
        assert!("paris/".parse::<Source>().is_err() && "paris/a..b".parse::<Source>().is_err());
    }
}
