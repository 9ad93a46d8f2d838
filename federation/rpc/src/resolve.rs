//! Host names to addresses, by `/etc/hosts` and the name servers of `/etc/resolv.conf`.
//!
//! Not by the C library: a static binary cannot load what that resolves names with, and an image that holds one file has
//! nothing to load. Search domains and `ndots` count as everywhere, so that a pod finds `agent.namespace.svc`. Nothing is
//! kept between two calls: a name is asked for when a connection is made, and whoever moved is found at the next one.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use archipelago_base::error::chain;
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
    system_conf::read_system_conf,
};
use tokio::time::timeout;

/// The socket addresses behind `address`, host:port, at most [`ADDRESSES_MAX`] of them, in the order of the answers.
///
/// # Errors
/// It is not host:port, or the name has no address, or no name server answered in time; the message says which.
pub async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (host, port) = split(address)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} is not host:port")))?;
    let (config, options) = system();
    let found = lookup(config, options, host).await?;
    Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    // A colon that is left belongs to an IPv6 address without its brackets.
    let named = !host.is_empty() && !host.contains(':');
    Some((host, port.parse().ok()?)).filter(|_| named)
}

async fn lookup(config: ResolverConfig, options: ResolverOpts, host: &str) -> io::Result<Vec<IpAddr>> {
    let failed =
        |why: String| io::Error::new(io::ErrorKind::NotFound, format!("the name {host} has no address: {why}"));
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    let resolver: TokioResolver = builder.build().map_err(|error| failed(chain(&error)))?;
    let answer = timeout(RESOLVE_TIMEOUT, resolver.lookup_ip(host)).await;
    let answer =
        answer.map_err(|_| failed(format!("no name server answered within {} s", RESOLVE_TIMEOUT.as_secs())))?;
    let answer = answer.map_err(|error| failed(chain(&error)))?;
    let addresses: Vec<IpAddr> = answer.iter().take(ADDRESSES_MAX).collect();
    if addresses.is_empty() { Err(failed("the answer is empty".to_owned())) } else { Ok(addresses) }
}

/// As the machine is configured; without a usable `resolv.conf` the name server of this machine is asked, as resolv.conf(5) says.
fn system() -> (ResolverConfig, ResolverOpts) {
    let local = || {
        let server = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
        (ResolverConfig::from_parts(None, Vec::new(), vec![server]), ResolverOpts::default())
    };
    let (config, options) = read_system_conf().unwrap_or_else(|error| {
        tracing::debug!(error = %chain(&error), "resolv.conf cannot be used");
        local()
    });
    let (domain, search, servers) = config.into_parts();
    // A search list takes the place of the machine's own domain.
    let domain = domain.filter(|_| search.is_empty());
    (ResolverConfig::from_parts(domain, search, servers), bounded(options))
}

fn bounded(mut options: ResolverOpts) -> ResolverOpts {
    options.cache_size = 0;
    // The usual 5 s would be more than a connection has; a lost datagram is asked for again instead.
    options.timeout = options.timeout.min(ATTEMPT_TIMEOUT);
    options.attempts = options.attempts.clamp(1, ATTEMPTS_MAX);
    options
}

/// A name with more addresses than this is no control plane.
pub const ADDRESSES_MAX: usize = 16;
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(4);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use hickory_resolver::{
        config::ConnectionConfig,
        proto::{
            op::{Message, MessageType, ResponseCode},
            rr::{Name, RData, Record, RecordType, rdata::A},
        },
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// A name server that knows one name and counts what it was asked.
    async fn server(known: &'static str, drop_first: bool) -> (ResolverConfig, Arc<Mutex<Vec<String>>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut udp = ConnectionConfig::udp();
        udp.port = socket.local_addr().unwrap().port();
        let server = NameServerConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST), true, vec![udp]);
        let search = vec!["system.svc.cluster.test.".parse().unwrap(), "svc.cluster.test.".parse().unwrap()];
        let asked = Arc::new(Mutex::new(Vec::new()));
        let names = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 1232];
            let mut dropped = !drop_first;
            loop {
                let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
                if !std::mem::replace(&mut dropped, true) {
                    continue;
                }
                let mut message = Message::from_vec(&buffer[..n]).unwrap();
                let query = message.queries.first().unwrap().clone();
                names.lock().unwrap().push(query.name().to_string());
                message.metadata.message_type = MessageType::Response;
                let is_known = *query.name() == known.parse::<Name>().unwrap();
                if !is_known {
                    message.metadata.response_code = ResponseCode::NXDomain;
                } else if query.query_type() == RecordType::A {
                    for last in [7, 8] {
                        let address = RData::A(A::new(10, 0, 0, last));
                        message.answers.push(Record::from_rdata(query.name().clone(), 5, address));
                    }
                }
                socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
            }
        });
        (ResolverConfig::from_parts(None, search, vec![server]), asked)
    }

    fn pod_options() -> ResolverOpts {
        let mut options = ResolverOpts::default();
        options.ndots = 5;
        bounded(options)
    }

    #[tokio::test]
    async fn a_short_name_is_found_through_the_search_domains() {
        let (config, asked) = server("agent.system.svc.cluster.test.", false).await;
        let found = lookup(config, pod_options(), "agent.system").await.unwrap();
        assert_eq!(found, [IpAddr::from([10, 0, 0, 7]), IpAddr::from([10, 0, 0, 8])]);
        let asked = asked.lock().unwrap().clone();
        assert_eq!(asked.first().unwrap(), "agent.system.system.svc.cluster.test.", "the first search domain first");
        assert_eq!(asked.last().unwrap(), "agent.system.svc.cluster.test.");
    }

    #[tokio::test]
    async fn a_full_name_is_found_and_a_lost_question_is_asked_again() {
        let (config, _) = server("agent.system.svc.cluster.test.", true).await;
        let found = lookup(config.clone(), pod_options(), "agent.system.svc.cluster.test").await.unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(lookup(config, pod_options(), "agent.system.svc.cluster.test.").await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_resolved_is_named() {
        let (config, _) = server("agent.system.svc.cluster.test.", false).await;
        let error = lookup(config, pod_options(), "nobody.example").await.unwrap_err().to_string();
        assert!(error.contains("nobody.example has no address"), "{error}");
        for address in ["no-port", ":1", "::1:7400", "host:99999", ""] {
            let error = resolve(address).await.unwrap_err().to_string();
            assert!(error.contains("is not host:port"), "{error}");
        }
    }

    #[tokio::test]
    async fn addresses_and_localhost_need_no_server() {
        assert_eq!(resolve("[::1]:7400").await.unwrap(), ["[::1]:7400".parse().unwrap()]);
        let local = resolve("localhost:7400").await.unwrap();
        assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 7400), "{local:?}");
    }
}
