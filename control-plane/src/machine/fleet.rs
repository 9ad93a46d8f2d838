//! What clusters say of themselves: reports of agents, registrations of gateways; and what a deleted cluster leaves behind.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message;

use super::{
    apply::Refusal,
    command::{Answer, Done, Protocol, RefusalCode, RegisterGateway, ReportExports, ReportedService},
    format, image, slots,
    state::{DeletedCluster, Gateway, State, Stored},
};

impl State {
    /// Whether the state as it is now would refuse this report or registration, so that it need not be proposed at all.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn check_report(&self, report: &ReportExports) -> Result<(), Refusal> {
        self.refuse_deleted(&report.cluster)?;
        if report.services.len() > SERVICES_PER_CLUSTER_MAX {
            return Err(Refusal::full(RefusalCode::ServicesFull, SERVICES_PER_CLUSTER_MAX).about(&report.cluster));
        }
        if report.encoded_len() > REPORT_BYTES_MAX {
            return Err(Refusal::full(RefusalCode::ReportTooLarge, REPORT_BYTES_MAX).about(&report.cluster));
        }
        Ok(())
    }

    /// As [`Self::check_report`], for a registration.
    pub(super) fn check_registration(&self, register: &RegisterGateway) -> Result<(), Refusal> {
        self.refuse_deleted(&register.cluster)?;
        let gateway = format!("{}/{}", register.cluster, register.name);
        if register.encoded_len() > REGISTRATION_BYTES_MAX {
            return Err(Refusal::full(RefusalCode::RegistrationTooLarge, REGISTRATION_BYTES_MAX).about(&gateway));
        }
        if self.gateways.contains_key(&(register.cluster.clone(), register.name.clone())) {
            return Ok(());
        }
        if self.gateways.len() >= GATEWAYS_MAX {
            return Err(Refusal::full(RefusalCode::GatewaysFull, GATEWAYS_MAX));
        }
        if self.gateways_of(&register.cluster).count() >= GATEWAYS_PER_CLUSTER_MAX {
            return Err(Refusal::full(RefusalCode::GatewaysFull, GATEWAYS_PER_CLUSTER_MAX).about(&register.cluster));
        }
        Ok(())
    }

    pub(super) fn report_exports(&mut self, report: ReportExports, now_unix_ms: i64) -> Result<Answer, Refusal> {
        self.check_report(&report)?;
        let ReportExports { cluster, mut services } = report;
        let before = self.reports.get(&cluster).cloned();
        let unchanged = before.as_deref().map_or(services.is_empty(), |before| same_report(before, &services));
        if unchanged {
            return Ok(Answer::Done(Done {}));
        }
        let known = before.as_deref().map(Vec::as_slice).unwrap_or_default();
        stamp(&mut services, known, self.fleet + 1);
        let format = self.format_version;
        let tcp_before = before.as_deref().map(|services| tcp_ports(services, format)).unwrap_or_default();
        self.slots.report(&cluster, &tcp_before, &tcp_ports(&services, format), now_unix_ms);
        self.reports.insert(cluster, Arc::new(services));
        self.fleet_moved();
        Ok(Answer::Done(Done {}))
    }

    pub(super) fn register_gateway(&mut self, register: RegisterGateway) -> Result<Answer, Refusal> {
        self.check_registration(&register)?;
        let RegisterGateway { cluster, name, spiffe_id, addresses, workers } = register;
        let gateway = Gateway { spiffe_id, addresses: addresses.unwrap_or_default(), workers };
        let key = (cluster, name);
        if self.gateways.get(&key).map(|known| &**known) == Some(&gateway) {
            return Ok(Answer::Done(Done {}));
        }
        self.gateways.insert(key, Arc::new(gateway));
        self.fleet_moved();
        Ok(Answer::Done(Done {}))
    }

    /// Takes a deleted cluster out of the registry, so that nobody waits for its gateways, sends it traffic, or joins it.
    pub(super) fn forget_cluster(&mut self, cluster: &str, now_unix_ms: i64) {
        let gateways: Vec<_> = self.gateways_of(cluster).map(|(key, _)| key.clone()).collect();
        for key in gateways {
            self.gateways.remove(&key);
        }
        if let Some(services) = self.reports.remove(cluster) {
            let before = tcp_ports(&services, self.format_version);
            self.slots.report(cluster, &before, &BTreeMap::new(), now_unix_ms);
        }
        self.disown_policies(cluster);
        self.forget_unspent_tokens(cluster);
        let horizon = now_unix_ms.saturating_sub(DELETION_RETENTION_MS);
        self.deleted_clusters = self
            .deleted_clusters
            .iter()
            .filter(|(_, deleted)| deleted.deleted_unix_ms > horizon)
            .map(|(cluster, deleted)| (cluster.clone(), *deleted))
            .collect();
        let deleted = DeletedCluster { deleted_unix_ms: now_unix_ms, recreated: false };
        self.deleted_clusters.insert(cluster.to_owned(), deleted);
    }

    /// Nobody is left who could take back what the users of a deleted cluster wrote: it becomes the operators'.
    fn disown_policies(&mut self, cluster: &str) {
        let owned: Vec<_> = self
            .resources
            .iter()
            .filter(|(_, stored)| stored.origin == cluster)
            .map(|(key, stored)| (key.clone(), Stored { origin: String::new(), ..Stored::clone(stored) }))
            .collect();
        for (key, stored) in owned {
            self.resources.insert(key, Arc::new(stored));
        }
    }

    /// From format 4 on a slot is for a port and not for a service. Those of before are for the port that their services
    /// have now.
    pub(super) fn begin_ports(&mut self, now_unix_ms: i64) {
        let held: Vec<_> = self.slots.held().map(|(name, slot)| (name.clone(), slot.clone())).collect();
        let numbered = held.into_iter().map(|((namespace, name, port), slot)| {
            let number = self.oldest_tcp_port(&namespace, &name);
            ((namespace, name, number.unwrap_or(port)), slot)
        });
        self.slots = image::slots(numbered.collect::<Vec<_>>(), self);
        self.slots.settle(now_unix_ms);
    }

    /// The port of a service that has one, as the cluster says that has reported it longest.
    fn oldest_tcp_port(&self, namespace: &str, name: &str) -> Option<u32> {
        let of = |services: &Arc<Vec<ReportedService>>| {
            let found = services.iter().find(|service| (&*service.namespace, &*service.name) == (namespace, name));
            found.filter(|service| service.protocol() == Protocol::Tcp).map(|service| (service.since, service.port))
        };
        self.reports.values().filter_map(of).min_by_key(|(since, _)| *since).map(|(_, port)| port)
    }

    /// A Cluster resource of this name exists from now on.
    pub(super) fn cluster_declared(&mut self, cluster: &str) {
        if let Some(deleted) = self.deleted_clusters.get_mut(cluster) {
            deleted.recreated = true;
        }
    }

    pub(super) fn refuse_deleted(&self, cluster: &str) -> Result<(), Refusal> {
        match self.deleted_clusters.get(cluster) {
            Some(deleted) if !deleted.recreated => {
                Err(Refusal::of(RefusalCode::ClusterDeleted).about(cluster).at(deleted.deleted_unix_ms))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn gateways_of(&self, cluster: &str) -> impl Iterator<Item = (&(String, String), &Arc<Gateway>)> {
        self.gateways.range((cluster.to_owned(), String::new())..).take_while(move |((of, _), _)| of == cluster)
    }

    fn fleet_moved(&mut self) {
        self.fleet += 1;
    }
}

/// Whether two reports, sorted by name, say the same; since when is not said but written down here.
#[must_use]
pub fn same_report(one: &[ReportedService], other: &[ReportedService]) -> bool {
    fn says(service: &ReportedService) -> impl PartialEq + '_ {
        let ReportedService {
            namespace,
            name,
            protocol,
            port,
            exported,
            versions,
            port_name,
            app_protocol,
            more_ports,
            export,
            since: _,
        } = service;
        let first = (protocol, port, port_name, app_protocol);
        (namespace, name, first, exported, versions, more_ports, export)
    }
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| says(one) == says(other))
}

/// Writes down since when each service is reported as it is: from `now` on, unless it was so before. Age decides which of
/// clusters that disagree on a protocol is believed.
fn stamp(services: &mut [ReportedService], before: &[ReportedService], now: u64) {
    let before: BTreeMap<(&str, &str), &ReportedService> =
        before.iter().map(|known| ((known.namespace.as_str(), known.name.as_str()), known)).collect();
    for service in services {
        let known = before.get(&(service.namespace.as_str(), service.name.as_str()));
        let known = known.filter(|known| {
            (known.protocol, known.port) == (service.protocol, service.port)
                && known.more_ports.iter().all(|port| {
                    // One that came or went contradicts nobody.
                    let now = service.more_ports.iter().find(|now| now.port == port.port);
                    now.is_none_or(|now| now.protocol == port.protocol)
                })
        });
        service.since = known.map_or(now, |known| known.since);
    }
}

/// TCP port → whether its cluster exports the service, by what this format of the log tells apart.
pub(super) fn tcp_ports(services: &[ReportedService], format: u32) -> BTreeMap<slots::Name, bool> {
    let first = |service: &ReportedService| {
        let number = if format < format::PORTS { slots::ANY_PORT } else { service.port };
        (service.protocol() == Protocol::Tcp).then_some(number)
    };
    let mut ports = BTreeMap::new();
    for service in services {
        let more = service.more_ports.iter().filter(|port| port.protocol() == Protocol::Tcp).map(|port| port.port);
        for port in first(service).into_iter().chain(more) {
            ports.insert((service.namespace.clone(), service.name.clone(), port), service.exported);
        }
    }
    ports
}

const SERVICES_PER_CLUSTER_MAX: usize = 10_000;
/// 10,000 services with names of 60 bytes and a few versions each, twice over.
const REPORT_BYTES_MAX: usize = 4 * 1024 * 1024;
const GATEWAYS_MAX: usize = 100_000;
/// One per node of the largest Kubernetes cluster that its own project supports.
const GATEWAYS_PER_CLUSTER_MAX: usize = 5_000;
/// Addresses of 256 workers, ten times over.
const REGISTRATION_BYTES_MAX: usize = 64 * 1024;
/// Longer than any certificate of a gateway or an agent may live (90 days).
const DELETION_RETENTION_MS: i64 = 100 * 24 * 3_600 * 1_000;
