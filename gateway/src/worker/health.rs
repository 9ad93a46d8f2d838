//! What this gateway tells others of its cluster's endpoints.

use std::sync::Arc;
use std::time::Instant;

use archipelago_proto::v1::Readiness;

use super::view::{ServiceView, View};
use crate::config::Service;

/// The names under which a port is told.
///
/// A port of several is told under its own key, and the first also under the service's: that is what a gateway asks for that does not
/// know of the others.
pub fn names(config: &Service) -> impl Iterator<Item = &Arc<str>> {
    let as_first = config.place == 0 && config.key != config.service;
    std::iter::once(&config.key).chain(as_first.then_some(&config.service))
}

impl<P> View<P> {
    /// How many endpoints of each version of a port are ready here, by the names under which that is told; those sitting out do not
    /// count.
    pub fn health(&self, index: usize, now: Instant) -> Vec<(String, Vec<(String, u32)>)> {
        let (Some(config), Some(live)) = (self.snapshot.service(index), self.service(index)) else { return Vec::new() };
        let is_here = config.may_reside_in(self.snapshot.own_cluster);
        let versions = if is_here { live.health(now) } else { Vec::new() };
        names(config).map(|name| (name.to_string(), versions.clone())).collect()
    }
}

impl<P> ServiceView<P> {
    pub(super) fn health(&self, now: Instant) -> Vec<(String, u32)> {
        let mut versions: Vec<(String, u32)> = Vec::new();
        let endpoints = self.endpoints();
        let any_ready = endpoints.iter().any(|endpoint| endpoint.readiness == Readiness::Ready);
        for endpoint in endpoints {
            let ready = u32::from(endpoint.offered(any_ready) && !endpoint.endpoint.sits_out(now));
            match versions.iter_mut().find(|(version, _)| **version == *endpoint.version) {
                Some((_, known)) => *known += ready,
                None => versions.push((endpoint.version.to_string(), ready)),
            }
        }
        versions
    }
}
