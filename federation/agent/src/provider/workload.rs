//! Who runs where, as a provider says it: a few words per workload, of which most are shared with whatever else the provider
//! knows. A large cluster has tens of thousands, and each gateway hears of those on its own node.

use std::{fmt, net::IpAddr, slice, sync::Arc};

use archipelago_proto::v1;
use imbl::OrdMap;

/// Node by name → who runs there.
pub type Nodes = OrdMap<Arc<str>, Arc<Workloads>>;

/// Who runs on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workloads {
    /// The provider knows that nothing has changed since.
    pub fresh: bool,
    /// In an order of the provider's that does not change by itself.
    pub workloads: Vec<Arc<Workload>>,
    /// Addresses at which nobody is known, though one of `workloads` has them: of several who say so, nobody knows which it is.
    pub disputed: Vec<IpAddr>,
    /// Addresses of the node itself.
    pub node_ips: Vec<IpAddr>,
    /// Zone of the node, if anybody said.
    pub zone: Option<Arc<str>>,
}

impl Workloads {
    /// Address by address, and who is there.
    pub fn known(&self) -> impl Iterator<Item = (IpAddr, &Workload)> {
        let each = self.workloads.iter().flat_map(|workload| workload.ips.iter().map(|ip| (*ip, &**workload)));
        each.filter(|(ip, _)| !self.disputed.contains(ip))
    }

    /// As a gateway is told.
    #[must_use]
    pub fn to_proto(&self) -> v1::Workloads {
        let workload = |(ip, workload): (IpAddr, &Workload)| v1::Workload {
            ip: ip.to_string(),
            namespace: workload.namespace.to_string(),
            service_account: workload.service_account.to_string(),
            pod_uid: workload.uid.to_string(),
        };
        v1::Workloads {
            fresh: self.fresh,
            workloads: self.known().map(workload).collect(),
            node_ips: self.node_ips.iter().map(ToString::to_string).collect(),
            zone: self.zone.as_deref().unwrap_or_default().to_owned(),
        }
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Whose rights it has there.
    pub service_account: Arc<str>,
    /// What tells it from all others, of earlier times too.
    pub uid: Uid,
    /// Where it is; may be empty.
    pub ips: Addresses,
}

/// What identifies an object over time. Nearly always a UUID, and then held as one.
#[derive(Clone, PartialEq, Eq)]
pub enum Uid {
    /// Written in lower case, with hyphens.
    Uuid([u8; 16]),
    /// Any other text.
    Text(Arc<str>),
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let digits: String = text.split('-').collect();
        let uuid = u128::from_str_radix(&digits, 16).ok().map(|number| Self::Uuid(number.to_be_bytes()));
        // Whatever it is, it must come out as it came in.
        uuid.filter(|uuid| text.len() == 36 && uuid.to_string() == text).unwrap_or_else(|| Self::Text(text.into()))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Uuid(bytes) => {
                for (at, byte) in bytes.iter().enumerate() {
                    if matches!(at, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Addresses of a workload: one, with few exceptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// The only one.
    One(IpAddr),
    /// None, or several.
    Many(Box<[IpAddr]>),
}

impl Addresses {
    /// One after the other, in the provider's order.
    pub fn iter(&self) -> slice::Iter<'_, IpAddr> {
        self.as_slice().iter()
    }

    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[IpAddr] {
        match self {
            Self::One(ip) => slice::from_ref(ip),
            Self::Many(ips) => ips,
        }
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self::Many(Box::default())
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(ips: I) -> Self {
        let ips: Vec<IpAddr> = ips.into_iter().collect();
        match ips[..] {
            [ip] => Self::One(ip),
            _ => Self::Many(ips.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_comes_out_as_it_came_in() {
        for (text, is_uuid) in [
            ("0f8fad5b-d9cb-469f-a165-70867728950e", true),
            ("00000000-0000-4000-8000-000000000001", true),
            ("0F8FAD5B-d9cb-469f-a165-70867728950e", false),
            ("0f8fad5bd9cb469fa16570867728950e", false),
            ("0f8f-ad5bd9cb-469f-a165-70867728950e", false),
            ("+f8fad5b-d9cb-469f-a165-70867728950e", false),
            ("uid-of-web", false),
            ("", false),
        ] {
            let uid = Uid::from(text);
            assert_eq!((uid.to_string().as_str(), matches!(uid, Uid::Uuid(_))), (text, is_uuid));
        }
    }

    #[test]
    fn gateways_hear_of_every_address_but_those_that_several_claim() {
        let ips = ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let workload = |ips: &[IpAddr]| {
            let ips = ips.iter().copied().collect();
            Arc::new(Workload { namespace: "shop".into(), service_account: "web".into(), uid: "u".into(), ips })
        };
        let list = Workloads {
            fresh: true,
            workloads: vec![workload(&ips[..2]), workload(&ips[2..]), workload(&[])],
            disputed: vec![ips[2]],
            node_ips: vec![ips[0]],
            zone: Some("z1".into()),
        };
        let said = list.to_proto();
        assert!(said.fresh && said.node_ips == ["10.0.0.1"] && said.zone == "z1");
        let who: Vec<_> = said
            .workloads
            .iter()
            .map(|it| format!("{} {}/{} {}", it.ip, it.namespace, it.service_account, it.pod_uid))
            .collect();
        assert_eq!(who, ["10.0.0.1 shop/web u", "fd00::1 shop/web u"]);
    }
}
