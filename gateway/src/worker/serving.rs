//! Where each service could be served from now; nothing of it is asked for on a request's way.

use std::collections::BTreeMap;
use std::time::Instant;

use super::view::{PeerFacts, Tried, View};
use crate::balance::cluster::Availability;
use crate::telemetry::Serving;
use archipelago_tunnel::PeerState;

impl<P: PeerFacts> View<P> {
    /// Every service, in the order of its index.
    pub fn serving(&self, now: Instant) -> Vec<Serving> {
        self.snapshot.services().filter_map(|(index, _)| self.serving_of(index, now)).collect()
    }

    fn serving_of(&self, index: usize, now: Instant) -> Option<Serving> {
        let (config, live) = (self.snapshot.service(index)?, self.service(index)?);
        let mut ready: BTreeMap<usize, u64> = config.exporters.iter().map(|cluster| (*cluster, 0)).collect();
        for (cluster, peers) in live.clusters().iter().enumerate() {
            // Each gateway of a cluster sees all of its endpoints.
            let reachable = peers.iter().filter(|peer| {
                matches!(peer.remote.handle.state(), PeerState::Up | PeerState::Suspect | PeerState::Draining)
            });
            let counts = reachable.map(|peer| peer.ready.iter().map(|(_, count)| u64::from(*count)).sum());
            if let Some(count) = counts.max() {
                ready.insert(cluster, count);
            }
        }
        if let Some(own) = self.snapshot.own_cluster.filter(|_| !live.endpoints().is_empty()) {
            let here = live.health(now).iter().map(|(_, count)| u64::from(*count)).sum();
            ready.insert(own, here);
        }
        // The last rule matches everything.
        let first_choice = config.rules.as_slice().last().map(|rule| match rule.tiers.first() {
            Some(tier) if rule.backends.is_empty() => tier.as_slice(),
            _ => rule.backends.as_slice(),
        });
        let tried = Tried::default();
        let failed_over = first_choice.is_some_and(|backends| {
            !backends.is_empty()
                && !backends.iter().filter(|backend| backend.weight > 0).any(|backend| {
                    matches!(self.availability(config, live, backend, &tried, now), Availability::Serving { .. })
                })
        });
        Some(Serving {
            service: config.key.to_string(),
            ready: ready
                .into_iter()
                .map(|(cluster, count)| (self.snapshot.cluster_name(cluster).to_owned(), count))
                .collect(),
            failed_over,
        })
    }
}
