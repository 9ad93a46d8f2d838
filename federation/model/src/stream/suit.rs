//! Configuration suited to what a gateway can do: what it lacks a feature for is replaced or left out, the rest is untouched.

use std::collections::BTreeSet;

use archipelago_proto::v1::config_resource::Body;

use super::{Compiled, Resource};
use crate::{compile, id::ServiceKey};

/// A resource that a gateway cannot run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// Its name.
    pub resource: String,
    /// What it needs and the gateway has not, sorted.
    pub missing_features: Vec<String>,
}

/// The configuration for gateways with these features, and what they lack. Shares everything that they can run.
///
/// A service becomes [`compile::unsupported`] under its name: the gateway answers its hosts closed, instead of as unknown or,
/// worse, by half of its rules. Revocations stay, for a gateway that cannot read them must know that there are some. Anything
/// else is left out.
#[must_use]
pub fn suit(compiled: &Compiled, features: &BTreeSet<String>) -> (Compiled, Vec<Lack>) {
    let mut suited = compiled.clone();
    let mut lacks = Vec::new();
    for resource in compiled.resources.iter() {
        let missing: Vec<String> =
            resource.required_features.iter().filter(|feature| !features.contains(*feature)).cloned().collect();
        if missing.is_empty() {
            continue;
        }
        match &resource.body {
            Some(Body::Service(service)) => {
                let key = ServiceKey::new(service.namespace.as_str(), service.name.as_str());
                let replacement = compile::unsupported(&key, service.hosts.clone(), missing.clone());
                suited.resources.put(Resource::from(replacement));
            }
            Some(Body::Revocations(_)) => {}
            _ => suited.resources.remove(&resource.name),
        }
        lacks.push(Lack { resource: resource.name.clone(), missing_features: missing });
    }
    (suited, lacks)
}

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::{ConfigResource, PeerConfig, Revocations, ServiceConfig};

    use super::*;
    use crate::version::Version;

    #[test]
    fn what_a_gateway_lacks_is_closed_or_left_out_and_named() {
        let resource = |needs: &[&str], body: Body| {
            let required_features = needs.iter().map(ToString::to_string).collect();
            Resource::from(ConfigResource { required_features, ..compile::resource(body) })
        };
        let web = ServiceConfig {
            namespace: "shop".into(),
            name: "web".into(),
            hosts: vec!["web.shop".into()],
            ..ServiceConfig::default()
        };
        let peer = PeerConfig { cluster: "paris".into(), gateway: "gw-1".into(), ..PeerConfig::default() };
        let compiled = Compiled {
            version: Version::default(),
            resources: [
                resource(&[], Body::Service(ServiceConfig { name: "plain".into(), ..web.clone() })),
                resource(&["milk", "tea"], Body::Service(web)),
                resource(&["revocations"], Body::Revocations(Revocations::default())),
                resource(&["tea"], Body::Peer(peer)),
            ]
            .into_iter()
            .collect(),
        };
        let all = ["milk", "revocations", "tea"].map(str::to_owned).into();
        assert_eq!(suit(&compiled, &all), (compiled.clone(), vec![]));
        let (suited, lacks) = suit(&compiled, &["milk".to_owned()].into());
        assert_eq!(suited.resources.get("revocations"), compiled.resources.get("revocations"), "to fail closed by");
        assert!(suited.resources.get("peer/paris/gw-1").is_none());
        let Some(Body::UnsupportedService(closed)) = &suited.resources.get("service/shop/web").unwrap().body else {
            panic!("{suited:?}")
        };
        assert_eq!((&closed.hosts, &closed.missing_features), (&vec!["web.shop".to_owned()], &vec!["tea".to_owned()]));
        let named: Vec<_> = lacks.iter().map(|lack| lack.resource.as_str()).collect();
        assert_eq!(named, ["peer/paris/gw-1", "revocations", "service/shop/web"]);
        assert_eq!(suited.resources.get("service/shop/plain"), compiled.resources.get("service/shop/plain"));
    }
}
