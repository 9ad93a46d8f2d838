//! Where clients of this cluster find the federation's services: ports of this gateway, each for one port of one service.
//!
//! In an orchestrated cluster clients use a name and an address of their own cluster; what they send arrives at such a port.
//! The port alone says which service is meant, whatever the request itself names.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use archipelago_proto::v1 as proto;

use super::Protocol;

/// All of this cluster's.
#[derive(Debug, Default)]
pub struct Captures {
    by_listen: HashMap<u16, Arc<Capture>, foldhash::fast::RandomState>,
    /// By "namespace/name", as the agent orders them.
    by_service: HashMap<Arc<str>, Vec<Arc<Capture>>, foldhash::fast::RandomState>,
    problems: Vec<String>,
    source: Arc<proto::Captures>,
}

/// One port of one service, and where clients find it.
#[derive(Debug, PartialEq, Eq)]
pub struct Capture {
    /// "namespace/name" of the service.
    pub service: Arc<str>,
    /// "namespace/name:port".
    pub key: Arc<str>,
    /// Its number.
    pub port: u16,
    /// Its name; may be empty.
    pub port_name: String,
    /// What clients speak, as far as the cluster knows.
    pub protocol: Protocol,
    /// Where every gateway of the cluster listens for it.
    pub listen: u16,
    /// Under which clients know the service.
    pub cluster_ips: Vec<IpAddr>,
}

impl Captures {
    /// What the agent says; what cannot be used is named in [`Captures::problems`] and left out alone.
    pub fn read(source: &Arc<proto::Captures>) -> Self {
        let mut this = Self { source: Arc::clone(source), ..Self::default() };
        for config in &source.captures {
            match read(config) {
                Ok(capture) => this.take(capture),
                Err(reason) => this.problems.push(format!("{}/{}: {reason}", config.namespace, config.name)),
            }
        }
        this
    }

    /// True when these were read from `source` itself.
    pub fn are_of(&self, source: &Arc<proto::Captures>) -> bool {
        Arc::ptr_eq(&self.source, source)
    }

    /// What a connection to this port is for.
    pub fn at(&self, listen: u16) -> Option<&Arc<Capture>> {
        self.by_listen.get(&listen)
    }

    /// Every port of this gateway that is for a service.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.by_listen.keys().copied()
    }

    /// All of them, by port.
    pub fn list(&self) -> Vec<&Arc<Capture>> {
        let mut list: Vec<_> = self.by_listen.values().collect();
        list.sort_by_key(|capture| capture.listen);
        list
    }

    /// The ports of the service "namespace/name"; empty: clients of this cluster know no such service.
    pub fn of(&self, service: &str) -> &[Arc<Capture>] {
        self.by_service.get(service).map_or(&[], Vec::as_slice)
    }

    /// True when clients of this cluster know a service of this namespace.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.by_service.keys().any(|service| service.split_once('/').is_some_and(|(of, _)| of == namespace))
    }

    /// One sentence for each that cannot be used.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    fn take(&mut self, capture: Capture) {
        if let Some(other) = self.by_listen.get(&capture.listen) {
            self.problems.push(format!("{}: port {} is already for {}", capture.key, capture.listen, other.key));
            return;
        }
        let capture = Arc::new(capture);
        self.by_listen.insert(capture.listen, Arc::clone(&capture));
        self.by_service.entry(Arc::clone(&capture.service)).or_default().push(capture);
    }
}

fn read(config: &proto::Capture) -> Result<Capture, String> {
    let number = |number: u32| {
        u16::try_from(number).ok().filter(|number| *number > 0).ok_or_else(|| format!("{number} is no port"))
    };
    let port = number(config.port)?;
    let service: Arc<str> = format!("{}/{}", config.namespace, config.name).into();
    Ok(Capture {
        key: format!("{service}:{port}").into(),
        service,
        port,
        port_name: config.port_name.clone(),
        protocol: Protocol::from_proto(config.protocol).ok_or("a protocol that this gateway does not know")?,
        listen: number(config.listen)?,
        cluster_ips: config.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(name: &str, port: u32, listen: u32) -> proto::Capture {
        proto::Capture {
            namespace: "shop".into(),
            name: name.into(),
            port,
            port_name: format!("p{port}"),
            protocol: proto::Protocol::Http1.into(),
            listen,
            cluster_ips: vec!["10.96.0.9".into(), "nonsense".into()],
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_and_left_out_alone() {
        let odd = proto::Capture { protocol: 99, ..capture("odd", 80, 17_004) };
        let source = Arc::new(proto::Captures {
            captures: vec![
                capture("web", 80, 17_000),
                capture("web", 443, 17_001),
                capture("late", 80, 17_000),
                capture("far", 70_000, 17_002),
                capture("none", 80, 0),
                odd,
            ],
        });
        let captures = Captures::read(&source);
        assert_eq!(
            captures.list().iter().map(|capture| (capture.listen, &*capture.key)).collect::<Vec<_>>(),
            [(17_000, "shop/web:80"), (17_001, "shop/web:443")]
        );
        assert_eq!(captures.of("shop/web").iter().map(|capture| capture.port).collect::<Vec<_>>(), [80, 443]);
        assert_eq!(captures.at(17_001).unwrap().cluster_ips, ["10.96.0.9".parse::<IpAddr>().unwrap()]);
        assert!(captures.at(17_002).is_none() && captures.of("shop/late").is_empty());
        assert!(captures.has_namespace("shop") && !captures.has_namespace("sho"));
        assert_eq!(
            captures.problems(),
            [
                "shop/late:80: port 17000 is already for shop/web:80",
                "shop/far: 70000 is no port",
                "shop/none: 0 is no port",
                "shop/odd: a protocol that this gateway does not know",
            ]
        );
        assert!(captures.are_of(&source) && !captures.are_of(&Arc::new(proto::Captures::clone(&source))));
    }
}
