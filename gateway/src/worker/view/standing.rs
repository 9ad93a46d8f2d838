//! Who serves a service now, as far as policy and health go: what [`View::decide`] would choose among, for nobody in particular.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Instant;

use super::peer::SUSPECT;
use super::{AVOIDED, DRAINED, PeerFacts, ServiceView, Tried, View};
use archipelago_tunnel::PeerState;

use crate::balance::cluster::Availability;
use crate::config::{Backend, Rule, Service};
use crate::journal::{Cause, Out, Standing};

impl<P: PeerFacts> View<P> {
    /// By the rule that takes what no other does: the clusters among which it chooses now, and why it chooses among no others.
    pub fn standing(&self, service: usize, now: Instant) -> Option<Standing> {
        let (config, live) = (self.snapshot.service(service)?, self.service(service)?);
        let rule = config.rules.as_slice().last()?;
        let name =
            |backend: &Backend| self.snapshot.clusters.get(backend.cluster).map(|cluster| Arc::clone(&cluster.name));
        let tried = Tried::default();
        let mut standing = Standing {
            service: Arc::clone(&config.service),
            policy: self.policy_of(rule),
            revision: self.snapshot.revision,
            ..Standing::default()
        };
        // Of the first group that has any.
        let mut reserve: Vec<Arc<str>> = Vec::new();
        let weights = (!rule.backends.is_empty()).then_some((false, rule.backends.as_slice()));
        for (is_tier, backends) in weights.into_iter().chain(rule.tiers.iter().map(|tier| (true, tier.as_slice()))) {
            let (mut share, has_reserve) = (0.0_f64, !reserve.is_empty());
            for backend in backends.iter().filter(|backend| backend.weight > 0) {
                let Some(cluster) = name(backend) else { continue };
                let (why, holds) = match self.availability(config, live, backend, &tried, now) {
                    Availability::Serving { factor } => {
                        share = share.max(factor);
                        standing.serving.insert(cluster);
                        continue;
                    }
                    // A matter of milliseconds; then it is heard again, or given up for a better reason.
                    Availability::Reserve(SUSPECT) => {
                        share = 1.0;
                        standing.serving.insert(cluster);
                        continue;
                    }
                    Availability::Reserve(why) => (why, true),
                    Availability::Out(why) => (why, false),
                };
                if holds && !has_reserve {
                    reserve.push(Arc::clone(&cluster));
                }
                let is_wanted = why == DRAINED || why == AVOIDED;
                standing.out.entry(cluster).or_insert(Cause { why, is_wanted });
            }
            // A tier that is only on its way back leaves the rest to the next one.
            if share >= 1.0 || (!is_tier && share > 0.0) {
                break;
            }
        }
        if standing.serving.is_empty() {
            standing.serving.extend(reserve);
        }
        let Standing { serving, out, .. } = &mut standing;
        out.retain(|cluster, _| !serving.contains(cluster));
        standing.ready = self.ready(config, live, now);
        let first_choice = match rule.tiers.first() {
            Some(tier) if rule.backends.is_empty() => tier.as_slice(),
            _ => rule.backends.as_slice(),
        };
        let mut asked = first_choice.iter().filter(|backend| backend.weight > 0);
        standing.failed_over = !first_choice.is_empty()
            && !asked.any(|backend| {
                matches!(self.availability(config, live, backend, &tried, now), Availability::Serving { .. })
            });
        Some(standing)
    }

    /// Endpoints that could serve, by cluster.
    fn ready(&self, config: &Service, live: &ServiceView<P>, now: Instant) -> BTreeMap<Arc<str>, u64> {
        let name = |cluster: usize| self.snapshot.clusters.get(cluster).map(|cluster| Arc::clone(&cluster.name));
        let mut ready: BTreeMap<Arc<str>, u64> =
            config.exporters.iter().filter_map(|cluster| Some((name(*cluster)?, 0))).collect();
        for (cluster, peers) in live.clusters().iter().enumerate() {
            // Each gateway of a cluster sees all of its endpoints.
            let reachable = peers.iter().filter(|peer| {
                matches!(peer.remote.handle.state(), PeerState::Up | PeerState::Suspect | PeerState::Draining)
            });
            let counts = reachable.map(|peer| peer.ready.iter().map(|(_, count)| u64::from(*count)).sum());
            if let Some((name, count)) = name(cluster).zip(counts.max()) {
                ready.insert(name, count);
            }
        }
        if let Some(own) = self.snapshot.own_cluster.filter(|_| !live.endpoints().is_empty()).and_then(name) {
            let here = live.health(now).iter().map(|(_, count)| u64::from(*count)).sum();
            ready.insert(own, here);
        }
        ready
    }

    /// Which endpoints of a service here sit out, by their names.
    pub fn outs(&self, service: usize, now: Instant) -> BTreeMap<Arc<str>, Out> {
        let endpoints = self.service(service).map(|live| live.endpoints()).unwrap_or_default();
        let out = |view: &super::EndpointView| {
            let name = match view.instance.is_empty() {
                true => view.endpoint.address().to_string().into(),
                false => Arc::clone(&view.instance),
            };
            Some((name, view.endpoint.out(now)?))
        };
        endpoints.iter().filter_map(out).collect()
    }

    /// Names what a rule asks for.
    fn policy_of(&self, rule: &Rule) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        for backends in std::iter::once(rule.backends.as_slice()).chain(rule.tiers.iter().map(Vec::as_slice)) {
            backends.len().hash(&mut hasher);
            for backend in backends {
                (self.snapshot.cluster_name(backend.cluster), &backend.version, backend.weight).hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}
