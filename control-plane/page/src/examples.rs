//! A state of which everything is known, and one of which nothing is, for tests.

use crate::state::*;

/// Every list has an entry and every field a value. Names are hostile.
pub(crate) fn full() -> State {
    let name = "shop/<b>\u{202e}\"'&\u{1b}[2J".to_owned();
    let rate = Rate {
        requests_per_second: 120.5,
        success_percent: Some(99.9),
        p50_micros: Some(1_200),
        p99_micros: Some(40_000),
    };
    let backend = Backend { cluster: "paris".into(), version: Some("v2".into()), weight: 9, share_percent: 90.0 };
    let lagging = Lagging { gateway: "tokyo/gw-2".into(), why: "at revision 6".into() };
    let rejected =
        Rejected { gateway: "tokyo/gw-1".into(), resource: Some("service/shop/web".into()), why: "x".into() };
    State {
        taken_unix_ms: 1_700_000_000_000,
        federation: "mesh.example".into(),
        member: 1,
        revision: 7,
        members: vec![Member {
            id: 1,
            name: "cp-1".into(),
            role: "leader".into(),
            address: "127.0.0.1:7400".into(),
            term: Some(2),
            applied_index: Some(90),
            problem: Some("its disk is full".into()),
        }],
        clusters: vec![Cluster {
            name: "paris".into(),
            region: "eu-west".into(),
            state: "active".into(),
            agent: "connected".into(),
            gateways: vec![Gateway {
                name: "gw-1".into(),
                key: "paris/gw-1".into(),
                state: "synced".into(),
                revision: Some(7),
                last_seen_unix_ms: Some(1_700_000_000_000),
                software_version: Some("0.1.0".into()),
                workers: Some(2),
                error: Some("held back".into()),
                problems: vec![name.clone()],
            }],
            entering: Some(rate.clone()),
            serving: Some(rate.clone()),
            problems: vec![name.clone()],
        }],
        links: vec![Link {
            a: "paris".into(),
            b: "tokyo".into(),
            state: LinkState::Degraded,
            tunnels: 4,
            tunnels_up: 3,
            rtt_micros: Some(3_200),
            loss_percent: Some(0.1),
            transports: vec!["quic".into()],
            a_to_b: Some(rate.clone()),
            b_to_a: Some(rate.clone()),
            broken: vec!["paris/gw-1 to tokyo/gw-2 is dead".into()],
        }],
        services: vec![Service {
            name: name.clone(),
            hosts: vec!["checkout.shop.mesh".into()],
            ports: vec![Port { name: "web".into(), port: 80, protocol: "http".into(), clusters: vec!["paris".into()] }],
            headless: false,
            state: ServiceState::Degraded,
            clusters: vec![ServiceCluster {
                cluster: "paris".into(),
                state: "avoided".into(),
                ready: 1,
                total: 2,
                unknown: 0,
                versions: vec!["v1".into()],
                weight_percent: Some(90.0),
                last_failure: Some("connection refused".into()),
            }],
            rate: Some(rate.clone()),
            flows: Some(vec![Flow {
                from: "paris".into(),
                to: Some("tokyo".into()),
                rate: rate.clone(),
                share_percent: 100.0,
            }]),
            versions: Some(vec![VersionShare {
                cluster: "tokyo".into(),
                version: Some("v2".into()),
                rate,
                share_percent: 100.0,
            }]),
            split: Some(Split {
                name: "checkout".into(),
                revision: 5,
                origin: Some("tokyo".into()),
                sticky: Some("header x-user".into()),
                routes: vec![SplitRoute { matches: "path /beta".into(), backends: vec![backend.clone()] }],
                backends: vec![backend],
                can_undo: true,
            }),
            failover: Some(Failover {
                name: "checkout".into(),
                revision: 6,
                origin: Some("tokyo".into()),
                order: vec!["clusters @local".into()],
                avoid: vec!["paris".into()],
                residency: Some(vec!["region eu-west".into()]),
                failback: "manual",
            }),
            reasons: vec![Reason {
                since_unix_ms: Some(1_700_000_000_000),
                severity: Severity::Warning,
                reason: "Failover".into(),
                text: name.clone(),
            }],
        }],
        services_left_off: 3,
        rollout: Rollout {
            revision: 7,
            expected: 4,
            acknowledged: 2,
            lagging: vec![lagging],
            rejected: vec![rejected],
        },
        certificates: vec![Certificate { who: "paris/gw-1".into(), expires_unix_ms: 1_700_000_000_000 }],
        events: vec![Event {
            key: "paris/gw-1 3 7".into(),
            unix_ms: 1_700_000_001_500,
            first_unix_ms: 1_700_000_000_000,
            count: 4,
            severity: Severity::Error,
            kind: "failover".into(),
            reason: "Failover".into(),
            message: name.clone(),
            service: Some(name.clone()),
            cluster: Some("paris".into()),
            gateway: Some("paris/gw-1".into()),
            subject: Some("127.0.0.1:9000".into()),
            actor: Some("spiffe://mesh.example/operator/ann".into()),
            revision: Some(7),
            source: "paris/gw-1".into(),
        }],
        slowest: Some(vec![SlowRequest {
            service: name.clone(),
            total_micros: 400_000,
            ended_unix_ms: 1_700_000_000_000,
            status: Some(200),
            flags: "UT".into(),
            from: "paris/gw-1".into(),
            cluster: Some("tokyo".into()),
            endpoint: Some("127.0.0.1:9000".into()),
            method: "GET".into(),
            path: name.clone(),
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
            hops: Some(vec![Hop { hop: "first-byte".into(), at: Some("127.0.0.1:9000".into()), micros: 390_000 }]),
        }]),
        window_seconds: Some(2.0),
        missing: vec![Missing { about: About::Traffic, who: "tokyo/gw-1".into(), why: name }],
    }
}

/// The same entries, of which nothing is known.
pub(crate) fn unknown() -> State {
    let mut state = full();
    for member in &mut state.members {
        (member.term, member.applied_index, member.problem) = (None, None, None);
    }
    for cluster in &mut state.clusters {
        (cluster.entering, cluster.serving) = (None, None);
        for gateway in &mut cluster.gateways {
            (gateway.revision, gateway.last_seen_unix_ms, gateway.software_version) = (None, None, None);
            (gateway.workers, gateway.error) = (None, None);
        }
    }
    for link in &mut state.links {
        (link.state, link.rtt_micros, link.loss_percent) = (LinkState::NotReported, None, None);
        (link.a_to_b, link.b_to_a) = (None, None);
    }
    for service in &mut state.services {
        (service.state, service.rate, service.versions) = (ServiceState::Unknown, None, None);
        for flow in service.flows.iter_mut().flatten() {
            flow.to = None;
            (flow.rate.success_percent, flow.rate.p50_micros, flow.rate.p99_micros) = (None, None, None);
        }
        for cluster in &mut service.clusters {
            (cluster.weight_percent, cluster.last_failure) = (None, None);
        }
        if let Some(split) = &mut service.split {
            (split.origin, split.sticky) = (None, None);
            split.backends.iter_mut().for_each(|backend| backend.version = None);
        }
        if let Some(failover) = &mut service.failover {
            (failover.origin, failover.residency, failover.failback) = (None, None, "auto");
        }
        service.reasons.iter_mut().for_each(|reason| reason.since_unix_ms = None);
    }
    state.rollout.rejected.iter_mut().for_each(|rejected| rejected.resource = None);
    for event in &mut state.events {
        (event.service, event.cluster, event.gateway, event.subject) = (None, None, None, None);
        (event.actor, event.revision) = (None, None);
    }
    for request in state.slowest.iter_mut().flatten() {
        (request.status, request.cluster, request.endpoint) = (None, None, None);
        (request.trace_id, request.hops) = (None, None);
    }
    state.window_seconds = None;
    state
}
