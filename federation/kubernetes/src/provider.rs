//! The provider: everything in this crate, connected with the rest of the agent.

use std::{
    env,
    ops::RangeInclusive,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use anyhow::Context;
use archipelago_agent::provider::{IdentityStore, Link, Provider};
use archipelago_base::shutdown::Shutdown;
use clap::Args;
use kube::{Client, Config};

use crate::{
    client,
    crd::{FailoverPolicy, ServiceExport, ServiceImport, TrafficSplit},
    follow, lease, mcs, policy, review,
    secret::IdentitySecret,
    types::{EndpointSlice, Kind, Namespace, Node, Pod, Service},
    watch::{self, Feed, Selection},
};

/// Flags of an agent of a Kubernetes cluster.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// Follow the Kubernetes cluster that this process runs in.
    #[arg(long, conflicts_with = "kubeconfig")]
    pub kubernetes: bool,
    /// Follow the Kubernetes cluster of this kubeconfig's current context, from outside of it.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace that agents and gateways are installed in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "archipelago-system")]
    pub namespace: String,
    /// Name of this replica, unlike that of every other; by default the host's name.
    #[arg(long, env = "POD_NAME")]
    pub pod: Option<String>,
    /// Ports that gateways may be told to listen on for the services of other clusters.
    #[arg(long, value_name = "FIRST-LAST", default_value = "17000-24999", value_parser = parse_ports)]
    pub capture_ports: RangeInclusive<u16>,
}

impl Flags {
    /// Whether it is a Kubernetes cluster at all.
    #[must_use]
    pub fn is_kubernetes(&self) -> bool {
        self.kubernetes || self.kubeconfig.is_some()
    }

    /// The provider that these flags describe.
    ///
    /// # Errors
    /// This is not a pod, or the kubeconfig cannot be used.
    pub fn provider(self) -> anyhow::Result<Kubernetes> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = runtime.block_on(async {
            let config = match &self.kubeconfig {
                Some(file) => client::kubeconfig(file).await,
                None => client::in_cluster(),
            }?;
            // What cannot be used is said here and now, and not when it is first needed.
            client::new(config.clone())?;
            anyhow::Ok(config)
        })?;
        let replica = match self.pod {
            Some(pod) => pod,
            None => host_name().context("this host has no name; say --pod, unlike that of every other replica")?,
        };
        Ok(Kubernetes::new(config, self.namespace, replica, self.capture_ports))
    }
}

/// A Kubernetes cluster as a source of services.
pub struct Kubernetes {
    config: Config,
    client: OnceLock<Client>,
    namespace: String,
    replica: String,
    capture_ports: RangeInclusive<u16>,
}

impl Kubernetes {
    /// The cluster of `config`, with the installation in `namespace`, followed by the replica of this name.
    #[must_use]
    pub fn new(config: Config, namespace: String, replica: String, capture_ports: RangeInclusive<u16>) -> Self {
        Self { config, client: OnceLock::new(), namespace, replica, capture_ports }
    }

    /// One client, and so one set of connections, for everything. Belongs to the runtime that asks first.
    fn client(&self) -> Option<Client> {
        if self.client.get().is_none() {
            match client::new(self.config.clone()) {
                Ok(client) => {
                    let _ = self.client.set(client);
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "there is no way to the API server"),
            }
        }
        self.client.get().cloned()
    }
}

impl Provider for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn is_replicated(&self) -> bool {
        true
    }

    fn identity_store(&self) -> Option<Arc<dyn IdentityStore>> {
        Some(Arc::new(IdentitySecret::new(self.client()?, self.namespace.clone())))
    }

    async fn follow(self, link: Link, shutdown: Shutdown) {
        let Some(client) = self.client() else { return };
        let Link { cluster, trust_domain, catalog, captures, workloads, policies, leading, imports, statuses, reviews } =
            link;
        let leads = leading.subscribe();
        let services: Feed<Service> = follow_all(&client, &shutdown);
        let slices: Feed<EndpointSlice> = follow_all(&client, &shutdown);
        let namespaces: Feed<Namespace> = follow_all(&client, &shutdown);
        let nodes: Feed<Node> = follow_all(&client, &shutdown);
        let exports: Feed<ServiceExport> = follow_all(&client, &shutdown);
        let service_imports: Feed<ServiceImport> = follow_all(&client, &shutdown);
        let splits: Feed<TrafficSplit> = follow_all(&client, &shutdown);
        let failovers: Feed<FailoverPolicy> = follow_all(&client, &shutdown);
        // What is over never lives again, and a cluster can keep thousands of finished jobs.
        let living = Selection { fields: "status.phase!=Succeeded,status.phase!=Failed", ..Selection::default() };
        let pods: Feed<Pod> = watch::follow(client.clone(), living, shutdown.clone());

        let offered = follow::Offered {
            services: services.clone(),
            slices: slices.clone(),
            pods: pods.clone(),
            exports: exports.clone(),
        };
        let feeds = mcs::Feeds {
            namespaces,
            nodes: nodes.clone(),
            pods: pods.clone(),
            services,
            slices,
            exports,
            service_imports,
        };
        let setup =
            mcs::Setup { cluster, trust_domain, namespace: self.namespace.clone(), capture_ports: self.capture_ports };
        let wires = mcs::Wires { imports, leading: leads.clone(), captures };
        let policy_wires = policy::Wires { policies, statuses, leading: leads };
        let policy_feeds = policy::Feeds { splits, failovers };
        let follow = async {
            tokio::join!(follow::catalog(offered, catalog), follow::workloads(pods.clone(), nodes, workloads));
        };
        let ends = shutdown.clone();
        tokio::join!(
            lease::run(client.clone(), &self.namespace, self.replica.clone(), leading, shutdown.clone()),
            review::run(client.clone(), self.namespace.clone(), pods.clone(), reviews, shutdown.clone()),
            mcs::run(client.clone(), feeds, setup, wires, shutdown.clone()),
            policy::run(client.clone(), policy_feeds, policy_wires, shutdown),
            async {
                tokio::select! {
                    () = follow => {}
                    () = ends.requested() => {}
                }
            },
        );
    }
}

fn follow_all<K: Kind>(client: &Client, shutdown: &Shutdown) -> Feed<K> {
    watch::follow(client.clone(), Selection::default(), shutdown.clone())
}

/// In a pod this is the pod's name.
fn host_name() -> Option<String> {
    let said = env::var("HOSTNAME").ok().or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())?;
    Some(said.trim().to_owned()).filter(|name| !name.is_empty())
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?));
    range.filter(|range| *range.start() > 0 && !range.is_empty()).ok_or_else(|| {
        format!("`{text}` is no range of ports; say FIRST-LAST, for example 17000-24999, as the gateways do")
    })
}
