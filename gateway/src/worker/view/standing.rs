//! Who serves a service now, as far as policy and health go: what [`View::decide`] would choose among, for nobody in particular.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Instant;

use super::peer::SUSPECT;
use super::{AVOIDED, DRAINED, PeerFacts, Tried, View};
use crate::balance::cluster::Availability;
use crate::config::{Backend, Rule};
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
        Some(standing)
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
