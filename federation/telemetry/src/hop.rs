//! The parts of a request's time, and the places that each of them may be blamed on.

use archipelago_proto::v1::{SlowHops, SlowRequest};
use serde::Serialize;

/// One part, in the order in which a request meets them. The names are an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// In the gateway where they enter.
    Queue,
    /// In attempts that failed.
    Lost,
    /// For a tunnel.
    TunnelWait,
    /// Between the gateways.
    Tunnel,
    /// In the far gateway.
    FarQueue,
    /// In its attempts that failed.
    FarLost,
    /// For a stream to an endpoint.
    EndpointWait,
    /// For a connection to an endpoint.
    Connect,
    /// For the rest of the request.
    Upload,
    /// For the answer to begin.
    FirstByte,
    /// For the rest of the answer.
    Body,
    /// Beyond a tunnel, of which nothing is said.
    Beyond,
}

impl Hop {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Queue,
        Self::Lost,
        Self::TunnelWait,
        Self::Tunnel,
        Self::FarQueue,
        Self::FarLost,
        Self::EndpointWait,
        Self::Connect,
        Self::Upload,
        Self::FirstByte,
        Self::Body,
        Self::Beyond,
    ];

    /// What a request spent on it, in microseconds.
    #[must_use]
    pub fn of(self, hops: &SlowHops) -> u64 {
        match self {
            Self::Queue => hops.queue,
            Self::Lost => hops.lost,
            Self::TunnelWait => hops.tunnel_wait,
            Self::Tunnel => hops.tunnel,
            Self::FarQueue => hops.far_queue,
            Self::FarLost => hops.far_lost,
            Self::EndpointWait => hops.endpoint_wait,
            Self::Connect => hops.connect,
            Self::Upload => hops.upload,
            Self::FirstByte => hops.first_byte,
            Self::Body => hops.body,
            Self::Beyond => hops.beyond,
        }
    }

    /// A word for tables, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Lost => "lost",
            Self::TunnelWait => "tunnel-wait",
            Self::Tunnel => "tunnel",
            Self::FarQueue => "far-queue",
            Self::FarLost => "far-lost",
            Self::EndpointWait => "endpoint-wait",
            Self::Connect => "connect",
            Self::Upload => "upload",
            Self::FirstByte => "first-byte",
            Self::Body => "body",
            Self::Beyond => "beyond",
        }
    }

    /// What a request does meanwhile.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Queue => "in the gateway where they enter, before anybody is asked",
            Self::Lost => "in attempts that failed, and between attempts",
            Self::TunnelWait => "waiting for a tunnel, or for a stream through it",
            Self::Tunnel => "on the way between the gateways, there and back",
            Self::FarQueue => "in the far gateway, before an endpoint is asked",
            Self::FarLost => "in attempts at the far gateway that failed, and between them",
            Self::EndpointWait => "in the gateway's queue for a stream to the endpoint, which allows only so many",
            Self::Connect => "connecting to an endpoint",
            Self::Upload => "until the client has sent the request",
            Self::FirstByte => "until the endpoint begins to answer",
            Self::Body => "in the body of the response, sent by the endpoint and taken by the client",
            Self::Beyond => "beyond the tunnel, of which the far gateway says nothing",
        }
    }

    /// Where that is, closest first.
    ///
    /// `from`: "cluster/name" of the gateway at which the request entered.
    #[must_use]
    pub fn places(self, from: &str, request: &SlowRequest) -> Vec<Place> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let gateway = some(&request.gateway);
        let cluster = some(&request.cluster);
        let cluster_of = |gateway: &str| gateway.split('/').next().and_then(some);
        let own_cluster = cluster_of(from);
        let from = Some(from.to_owned());
        match self {
            Self::Queue | Self::Upload => {
                vec![
                    Place { gateway: from, cluster: own_cluster.clone(), ..Place::default() },
                    Place { cluster: own_cluster, ..Place::default() },
                ]
            }
            Self::Lost => {
                // A gateway is "cluster/name"; an endpoint's address has no such thing.
                let (lost_gateway, lost_endpoint) = match request.lost_at.contains('/') {
                    true => (some(&request.lost_at), None),
                    false => (None, some(&request.lost_at)),
                };
                let lost_cluster = lost_gateway.as_deref().map_or(own_cluster, cluster_of);
                vec![
                    Place { from: None, cluster: lost_cluster.clone(), gateway: lost_gateway, endpoint: lost_endpoint },
                    Place { cluster: lost_cluster, ..Place::default() },
                ]
            }
            Self::TunnelWait | Self::Tunnel | Self::Beyond => vec![
                Place { from, cluster: cluster.clone(), gateway: gateway.clone(), endpoint: None },
                Place { from: own_cluster, cluster: cluster.clone(), ..Place::default() },
                Place { cluster, ..Place::default() },
            ],
            Self::FarQueue => vec![
                Place { cluster: cluster.clone(), gateway, ..Place::default() },
                Place { cluster, ..Place::default() },
            ],
            Self::FarLost | Self::EndpointWait | Self::Connect | Self::FirstByte | Self::Body => {
                let lost = matches!(self, Self::FarLost | Self::Connect) && !request.lost_at.is_empty();
                let endpoint = some(if lost { &request.lost_at } else { &request.endpoint });
                vec![
                    Place {
                        from: None,
                        cluster: cluster.clone(),
                        gateway: gateway.clone(),
                        endpoint: endpoint.clone(),
                    },
                    Place { cluster: cluster.clone(), endpoint, ..Place::default() },
                    Place { cluster: cluster.clone(), gateway, ..Place::default() },
                    Place { cluster, ..Place::default() },
                ]
            }
        }
    }
}

/// Where requests spend time, as closely as most of them agree on.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// "cluster/name" of the gateway at which they entered, where that is part of it.
    pub from: Option<String>,
    /// The cluster.
    pub cluster: Option<String>,
    /// "cluster/name".
    pub gateway: Option<String>,
    /// Its address.
    pub endpoint: Option<String>,
}
