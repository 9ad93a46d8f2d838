//! Demo backends that `meshctl up` starts behind every cluster.
//!
//! One process is one endpoint of one service. It speaks HTTP/1.1, HTTP/2 by prior knowledge, or a
//! small TCP protocol, and says in every answer who it is, so that a split, a switch or a failover
//! can be seen from outside. Paths and bodies: [`http`]; the TCP protocol: [`tcp`].
//!
//! [`run`] is the process; [`serve`] is the same backend inside another program, such as a test.

mod body;
pub mod http;
mod serve;
pub mod tcp;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use archipelago_base::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use body::{PATTERN_PERIOD, pattern_byte};
pub use serve::serve;

/// Command line of `archipelago-demo` and of `meshctl`'s hidden role of the same name.
#[derive(Debug, Clone, clap::Args)]
// `--version` names the version of the service, not of this program.
#[command(disable_version_flag = true)]
pub struct Args {
    /// Service that this process is an endpoint of, as namespace/name
    #[arg(long, value_name = "NS/NAME", value_parser = service_name)]
    pub service: String,
    /// Cluster that this endpoint belongs to
    #[arg(long)]
    pub cluster: String,
    /// Version of the service that this endpoint runs
    #[arg(long, default_value = "v1")]
    pub version: String,
    /// Name of this endpoint within its service; by default service name and process id
    #[arg(long)]
    pub instance: Option<String>,
    /// Protocol to speak
    #[arg(long, value_enum, default_value_t = Protocol::Http)]
    pub protocol: Protocol,
    /// Address to listen on
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,
}

/// What a backend speaks on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1 only
    Http,
    /// HTTP/2 by prior knowledge only, as gRPC servers without TLS do
    H2c,
    /// Reads to end of stream, then answers one JSON line
    Tcp,
}

/// Who a backend says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `namespace/name` of the service.
    pub service: String,
    /// Cluster that the endpoint belongs to.
    pub cluster: String,
    /// Version of the service, such as `v2`.
    pub version: String,
    /// Name of this endpoint, unique within its service.
    pub instance: String,
}

/// Runs one backend until SIGTERM or SIGINT, then lets open requests finish for up to ten seconds.
///
/// Builds its own single-threaded runtime: a demo backend must leave the machine to the mesh.
///
/// # Errors
/// The address cannot be bound, or the runtime or the signal handlers cannot be set up.
pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("building the runtime")?;
    runtime.block_on(async {
        let shutdown = Shutdown::install().context("installing signal handlers")?;
        let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listening on {}", args.listen))?;
        let address = listener.local_addr().context("reading the bound address")?;
        let identity = args.identity();
        info!(
            service = %identity.service,
            cluster = %identity.cluster,
            version = %identity.version,
            instance = %identity.instance,
            protocol = ?args.protocol,
            %address,
            "listening"
        );
        let stop = CancellationToken::new();
        let stop_on_signal = async {
            shutdown.requested().await;
            info!("stopping");
            stop.cancel();
        };
        let serving = serve(listener, Arc::new(identity), args.protocol, stop.clone());
        tokio::join!(serving, stop_on_signal);
        Ok(())
    })
}

impl Args {
    fn identity(&self) -> Identity {
        let name = self.service.rsplit('/').next().unwrap_or_default();
        Identity {
            service: self.service.clone(),
            cluster: self.cluster.clone(),
            version: self.version.clone(),
            instance: self.instance.clone().unwrap_or_else(|| format!("{name}-{}", std::process::id())),
        }
    }
}

fn service_name(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    match text.split_once('/') {
        Some((namespace, name)) if is_label(namespace) && is_label(name) => Ok(text.to_owned()),
        _ => Err("expected namespace/name, such as shop/checkout".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_is_namespace_and_name() {
        assert_eq!(service_name("shop/checkout").unwrap(), "shop/checkout");
        for wrong in ["checkout", "shop/", "/checkout", "shop/Check", "a/b/c", ""] {
            assert!(service_name(wrong).is_err(), "{wrong:?}");
        }
    }
}
