//! What this gateway tells others of its cluster's endpoints.

use std::time::Instant;

use archipelago_proto::v1::Readiness;
use archipelago_tunnel::ServiceHealth;

use super::view::{ServiceView, View};

impl View {
    /// How many endpoints of which port and version are ready here; those sitting out do not count.
    ///
    /// A port of several is told under its own key, and the first also under the service's: that is what a gateway asks
    /// for that does not know of the others.
    pub fn health(&self, now: Instant) -> Vec<ServiceHealth> {
        let mut health = Vec::new();
        for (config, live) in self.snapshot.services.iter().zip(&self.services) {
            if !config.may_reside_in(self.snapshot.own_cluster) {
                continue;
            }
            let first = health.len();
            live.health(&config.key, now, &mut health);
            if config.place == 0 && config.key != config.service {
                let own: Vec<ServiceHealth> = health.iter().skip(first).cloned().collect();
                health.extend(own.into_iter().map(|own| ServiceHealth { service: config.service.to_string(), ..own }));
            }
        }
        health
    }
}

impl ServiceView {
    fn health(&self, key: &str, now: Instant, out: &mut Vec<ServiceHealth>) {
        let first = out.len();
        let any_ready = self.endpoints.iter().any(|endpoint| endpoint.readiness == Readiness::Ready);
        for endpoint in &self.endpoints {
            let ready = u32::from(endpoint.offered(any_ready) && !endpoint.endpoint.ejected(now));
            match out.iter_mut().skip(first).find(|known| *known.version == *endpoint.version) {
                Some(known) => known.ready += ready,
                None => {
                    out.push(ServiceHealth { service: key.to_owned(), version: endpoint.version.to_string(), ready })
                }
            }
        }
    }
}
