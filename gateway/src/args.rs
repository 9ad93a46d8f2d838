//! Command line of a gateway.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use archipelago_rpc::enrol::{JoinConfig, JoinToken, Joining, ServiceAccount};

use crate::callers::CaptureFrom;
use crate::gateway::Settings;
use crate::telemetry::Telemetry;
use crate::tls::Https;
use crate::visitors::{Network, Share};
use crate::worker::Limits;

/// Flags of `archipelago-gateway`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Cluster that this gateway serves.
    #[arg(long)]
    pub cluster: String,
    /// Name of this gateway within its cluster.
    #[arg(long)]
    pub name: String,
    /// Zone that this gateway is in: services that prefer the same zone are served by endpoints in it. On a Kubernetes node the
    /// cluster's agent knows it.
    #[arg(long, default_value = "")]
    pub zone: String,
    /// Where credential and last good configuration are kept.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Members of the control plane, host:port, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub control_plane: Vec<String>,
    /// File with a join token, for the first start.
    #[arg(long)]
    pub token_file: Option<PathBuf>,
    /// JSON file with what everybody may know of the federation: control plane, trust domain, cluster, hash of the root. In
    /// Kubernetes, key join.json of the ConfigMap archipelago.
    #[arg(long, requires = "service_account_token", conflicts_with = "token_file")]
    pub join_config: Option<PathBuf>,
    /// File with a token of the ServiceAccount that this gateway runs as, projected for the audience
    /// archipelago/TRUST-DOMAIN/CLUSTER; with --join-config, in the place of a join token.
    #[arg(long, requires = "join_config")]
    pub service_account_token: Option<PathBuf>,
    /// The cluster's agent, host:port.
    #[arg(long)]
    pub agent: Option<String>,
    /// Where clients send HTTP.
    #[arg(long, default_value = "0.0.0.0:15080")]
    pub http: SocketAddr,
    /// Where clients send HTTP in TLS: HTTP/2 or HTTP/1.1 by ALPN; without it, nowhere.
    #[arg(long, requires = "tls_certificates")]
    pub https: Option<SocketAddr>,
    /// Directory of the certificates that clients are shown, each NAME.crt with NAME.key, or NAME/tls.crt with NAME/tls.key, all of
    /// them PEM. They are chosen by the names that are in them; the one called "default" is for all other names. Renewed files are
    /// used within a second or two.
    #[arg(long, requires = "https")]
    pub tls_certificates: Option<PathBuf>,
    /// Where tunnels arrive; worker i uses this port + i.
    #[arg(long, default_value = "0.0.0.0:15443")]
    pub tunnel: SocketAddr,
    /// Where DNS is answered.
    #[arg(long, default_value = "0.0.0.0:15053")]
    pub dns: SocketAddr,
    /// Health checks.
    #[arg(long, default_value = "127.0.0.1:15021")]
    pub health: SocketAddr,
    /// Metrics.
    #[arg(long, default_value = "127.0.0.1:15090")]
    pub metrics: SocketAddr,
    /// First port of TCP services; a service listens on this + its slot.
    #[arg(long, default_value = "0.0.0.0:16000")]
    pub tcp_base: SocketAddr,
    /// How many ports from there on are for TCP services; a service beyond them is not served here.
    #[arg(long, default_value_t = u16::MAX)]
    pub tcp_ports: u16,
    /// FIRST-LAST: ports on which clients of an orchestrated cluster are taken, as its agent says; one outside of them is not
    /// opened.
    #[arg(long, default_value = "17000-24999", value_parser = ports)]
    pub capture_ports: RangeInclusive<u16>,
    /// Whose connections are taken there.
    #[arg(long, value_enum, default_value_t)]
    pub capture_from: CaptureFrom,
    /// Unix socket for `meshctl`; default: admin.sock in the state directory.
    #[arg(long)]
    pub admin_socket: Option<PathBuf>,
    /// Gateways of each other cluster to keep tunnels to; the rest is dialled when needed.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub peers_per_cluster: u16,
    /// Worker threads; 0 means one per core.
    #[arg(long, default_value_t = 0)]
    pub workers: usize,
    /// File for the access log, "-" for standard output, "off".
    #[arg(long, default_value = "off")]
    pub access_log: String,
    /// Of requests that were answered with less than 500, and whole, how many are in the access log, from 0 to 1; all others always are.
    #[arg(long, default_value_t = 1.0, value_parser = ratio)]
    pub access_log_sample: f64,
    /// How much is written down of each request.
    #[arg(long, value_enum, default_value_t)]
    pub telemetry: Telemetry,
    /// Services, namespace/name, separated by commas, whose clients are told where the time of their requests went: in the field
    /// Server-Timing of each response.
    #[arg(long, value_delimiter = ',', value_parser = service)]
    pub server_timing: Vec<String>,
    /// Milliseconds until a response must begin, counted from the last byte of the request.
    #[arg(long, default_value_t = 30_000)]
    pub request_timeout_ms: u64,
    /// Milliseconds until the head of a request must be there, from its first byte, and until a new connection must say anything.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=MILLIS_MAX))]
    pub head_timeout_ms: u64,
    /// Milliseconds that a client's connection is kept on which there is no request.
    #[arg(long, default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(1..=MILLIS_MAX))]
    pub idle_timeout_ms: u64,
    /// Connections that one client address (IPv6: one /64) may have at a time; default: half of what the gateway takes.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub client_connections_max: Option<u32>,
    /// Requests that one client address (IPv6: one /64) may have under way at a time; default: half of what the gateway carries.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub client_requests_max: Option<u32>,
    /// Networks to which these two do not apply, such as those of load balancers, behind whose addresses there are many clients;
    /// separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub unbounded_clients: Vec<Network>,
    /// Milliseconds that a drain waits for what is in flight.
    #[arg(long, default_value_t = 10_000)]
    pub drain_timeout_ms: u64,
}

impl Args {
    /// The settings they amount to.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let control_plane = match self.joining()? {
            Some(joining) if self.control_plane.is_empty() => match joining {
                Joining::Token(token) => token.control_plane,
                Joining::ServiceAccount(account) => account.config.control_plane,
            },
            _ => self.control_plane.clone(),
        };
        let workers = if self.workers == 0 { num_cpus::get() } else { self.workers };
        let limits = Limits {
            request_timeout: Duration::from_millis(self.request_timeout_ms),
            head_timeout: Duration::from_millis(self.head_timeout_ms),
            idle_timeout: Duration::from_millis(self.idle_timeout_ms),
            drain_timeout: Duration::from_millis(self.drain_timeout_ms),
            ..Limits::default()
        };
        let all_connections_max = connections_max(archipelago_base::open_files::limit());
        // So that two clients at the least must mean ill before a third is refused.
        let half = |given: Option<u32>, all: usize| {
            given.and_then(|given| usize::try_from(given).ok()).unwrap_or(all.div_ceil(2))
        };
        let served = limits.connections_max.saturating_mul(workers).min(all_connections_max);
        let share = Share {
            connections_max: half(self.client_connections_max, served),
            requests_max: half(self.client_requests_max, limits.requests_max.saturating_mul(workers)),
            all_connections_max,
        };
        let (mut otlp, warnings) = archipelago_otlp::Config::from_env();
        for (name, variable) in [("k8s.pod.name", "POD_NAME"), ("k8s.node.name", "NODE_NAME")] {
            if let (Some(otlp), Ok(value)) = (&mut otlp, std::env::var(variable)) {
                otlp.resource.push((name.to_owned(), value));
            }
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(Settings {
            cluster: self.cluster.clone(),
            name: self.name.clone(),
            zone: self.zone.clone(),
            state_dir: self.state_dir.clone(),
            control_plane,
            agent: self.agent.clone(),
            http: self.http,
            https: self
                .https
                .zip(self.tls_certificates.clone())
                .map(|(address, certificates)| Https { address, certificates }),
            tunnel: self.tunnel,
            dns: self.dns,
            health: self.health,
            metrics: self.metrics,
            tcp_base: self.tcp_base,
            tcp_ports: self.tcp_ports,
            capture_ports: self.capture_ports.clone(),
            capture_from: self.capture_from,
            admin_socket: self.admin_socket.clone().unwrap_or_else(|| self.state_dir.join("admin.sock")),
            peers_per_cluster: usize::from(self.peers_per_cluster),
            workers,
            access_log: self.access_log.clone(),
            access_log_sample: self.access_log_sample,
            telemetry: self.telemetry,
            server_timing: self.server_timing.clone(),
            otlp,
            limits,
            share,
            unbounded_clients: self.unbounded_clients.clone(),
        })
    }

    /// How it gets in without an identity, if something of the kind was given.
    ///
    /// # Errors
    /// A file cannot be used, or is for another cluster.
    pub fn joining(&self) -> anyhow::Result<Option<Joining>> {
        let (Some(path), Some(token_file)) = (&self.join_config, &self.service_account_token) else {
            return Ok(self.token()?.map(Joining::Token));
        };
        let config = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read --join-config {}: mount the ConfigMap there", path.display()))?;
        let config: JoinConfig = config.parse().with_context(|| path.display().to_string())?;
        anyhow::ensure!(
            config.cluster == self.cluster,
            "{} is for cluster {}, but --cluster says {}: one of the two is wrong",
            path.display(),
            config.cluster,
            self.cluster
        );
        let account = ServiceAccount { config, token_file: token_file.clone(), gateway: self.name.clone() };
        Ok(Some(Joining::ServiceAccount(account)))
    }

    /// The join token, if a file of it was named and is still there.
    fn token(&self) -> anyhow::Result<Option<JoinToken>> {
        let Some(path) = &self.token_file else { return Ok(None) };
        match std::fs::read_to_string(path) {
            // Used tokens are often deleted; the credential on disk is what counts then.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read the join token in {}", path.display())),
            Ok(text) => {
                Ok(Some(text.trim().parse().with_context(|| format!("{} holds no join token", path.display()))?))
            }
        }
    }
}

/// Connections of clients that a process may have with so many descriptors: each takes two, its own and one to an endpoint, and what
/// is short for the second must not be given to the first.
fn connections_max(descriptors: u64) -> usize {
    usize::try_from(descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 2).unwrap_or(usize::MAX).max(1)
}

/// Seven days: whatever is longer was meant otherwise.
const MILLIS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;
/// For listeners, tunnels, files, and everything else that a gateway has open beside the connections of clients.
const DESCRIPTORS_RESERVED: u64 = 128;

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "expected a number from 0 to 1, such as 0.1".to_owned())
}

fn service(text: &str) -> Result<String, String> {
    let is_one = text.split_once('/').is_some_and(|(namespace, name)| {
        [namespace, name].iter().all(|part| {
            let is_fit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            (1..=63).contains(&part.len()) && part.bytes().all(is_fit)
        })
    });
    if is_one { Ok(text.to_owned()) } else { Err("expected namespace/name, such as shop/checkout".to_owned()) }
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    let range = range.filter(|range: &RangeInclusive<u16>| !range.is_empty() && *range.start() > 0);
    range.ok_or_else(|| "expected FIRST-LAST, two port numbers".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(more: &[&str]) -> Result<Args, String> {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let line = ["gateway", "--cluster", "paris", "--name", "node-1", "--state-dir", "/state"];
        let cli = <Cli as clap::Parser>::try_parse_from(line.iter().chain(more));
        cli.map(|cli| cli.args).map_err(|error| error.to_string())
    }

    #[test]
    fn a_service_account_is_a_way_in_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("join.json");
        let config = path.to_str().unwrap();
        let args = parsed(&["--join-config", config, "--service-account-token", "/token"]).unwrap();
        assert!(args.settings().unwrap_err().to_string().contains("mount the ConfigMap there"));
        let write = |cluster: &str| {
            let ca = "A".repeat(43);
            let members = r#"["cp-0.example:7400","cp-1.example:7400"]"#;
            let text = format!(
                r#"{{"controlPlane":{members},"trustDomain":"mesh.test","cluster":"{cluster}","caSha256":"{ca}"}}"#
            );
            std::fs::write(&path, text).unwrap();
        };
        write("tokyo");
        assert!(args.settings().unwrap_err().to_string().contains("is for cluster tokyo, but --cluster says paris"));
        write("paris");
        assert_eq!(args.settings().unwrap().control_plane, ["cp-0.example:7400", "cp-1.example:7400"]);
        let Some(Joining::ServiceAccount(account)) = args.joining().unwrap() else { panic!("not by ServiceAccount") };
        assert_eq!((account.gateway.as_str(), account.token_file.to_str()), ("node-1", Some("/token")));
        let own = ["--join-config", config, "--service-account-token", "/token", "--control-plane", "10.0.0.1:7400"];
        assert_eq!(parsed(&own).unwrap().settings().unwrap().control_plane, ["10.0.0.1:7400"], "what is said counts");
        for half in [&["--join-config", config][..], &["--service-account-token", "/token"]] {
            assert!(parsed(half).unwrap_err().contains("required"), "{half:?}");
        }
        let both = ["--join-config", config, "--service-account-token", "/token", "--token-file", "/other"];
        assert!(parsed(&both).unwrap_err().contains("cannot be used with"));
    }

    #[test]
    fn what_is_not_for_pods_is_not_offered_to_them() {
        let args = parsed(&[]).unwrap();
        assert!(args.health.ip().is_loopback() && args.metrics.ip().is_loopback());
        assert_eq!(args.capture_from, CaptureFrom::OwnNode);
    }

    #[test]
    fn tls_has_an_address_and_certificates_or_there_is_none() {
        assert!(parsed(&[]).unwrap().settings().unwrap().https.is_none());
        let both = ["--https", "127.0.0.1:8443", "--tls-certificates", "/certificates"];
        let https = parsed(&both).unwrap().settings().unwrap().https.unwrap();
        assert_eq!((https.address.port(), https.certificates.to_str()), (8443, Some("/certificates")));
        for half in [&both[..2], &both[2..]] {
            assert!(parsed(half).unwrap_err().contains("required"), "{half:?}");
        }
    }

    #[test]
    fn one_client_gets_half_of_what_the_descriptors_allow() {
        for (descriptors, connections) in [(1_024, 448), (20_000, 9_936), (0, 1), (128, 1)] {
            assert_eq!(connections_max(descriptors), connections, "{descriptors}");
        }
        let share = |more: &[&str]| parsed(&[&["--workers", "2"], more].concat()).unwrap().settings().unwrap().share;
        let default = share(&[]);
        assert_eq!(default.requests_max, 8_192);
        assert_eq!(default.connections_max, default.all_connections_max.min(16_384).div_ceil(2));
        let given = share(&["--client-connections-max", "7", "--client-requests-max", "9"]);
        assert_eq!(given, Share { connections_max: 7, requests_max: 9, ..default });
        let networks = parsed(&["--unbounded-clients", "10.0.0.0/8,fd00::/8"]).unwrap().unbounded_clients;
        assert_eq!(networks.len(), 2);
        assert!(parsed(&["--unbounded-clients", "shop"]).unwrap_err().contains("such as 10.0.0.0/8"));
        assert!(parsed(&["--client-connections-max", "0"]).is_err());
    }

    #[test]
    fn a_sample_is_a_part_of_all() {
        assert_eq!(parsed(&[]).unwrap().access_log_sample, 1.0);
        assert_eq!(parsed(&["--access-log-sample", "0.1"]).unwrap().access_log_sample, 0.1);
        for bad in ["2", "NaN", "some"] {
            assert!(parsed(&["--access-log-sample", bad]).unwrap_err().contains("from 0 to 1"), "{bad}");
        }
    }

    #[test]
    fn services_whose_clients_see_times_are_named_one_by_one() {
        assert!(parsed(&[]).unwrap().server_timing.is_empty());
        let named = parsed(&["--server-timing", "shop/checkout,shop/web"]).unwrap().server_timing;
        assert_eq!(named, ["shop/checkout", "shop/web"]);
        for bad in ["checkout", "shop/", "shop/*", "*", "shop/check out", "shop/a/b"] {
            assert!(parsed(&["--server-timing", bad]).unwrap_err().contains("such as shop/checkout"), "{bad}");
        }
    }

    #[test]
    fn a_range_of_ports_is_two_numbers_in_order() {
        assert_eq!(ports("17000-24999"), Ok(17_000..=24_999));
        assert_eq!(ports("5-5"), Ok(5..=5));
        for bad in ["", "-", "17000", "17000-", "2-1", "0-9", "1-65536", "a-b", "1-2-3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
