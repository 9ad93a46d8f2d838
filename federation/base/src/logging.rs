//! Logs: `tracing` to stderr, one line per event, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging for this process. A second call changes nothing.
///
/// `ARCHIPELAGO_LOG` is an `EnvFilter` directive list (default: `info`, quieter for the DNS library); `ARCHIPELAGO_LOG_FORMAT=json` writes one JSON
/// object per line. `process` is a field of the first line, so that merged logs stay attributable.
pub fn init(process: &str) {
    let filter = std::env::var(FILTER_VARIABLE)
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(FILTER_DEFAULT));
    let json = std::env::var(FORMAT_VARIABLE).is_ok_and(|format| format == "json");
    let registry = tracing_subscriber::registry().with(filter);
    // An already set subscriber is a test or an embedding process; its choice stands.
    let _already_set = if json {
        registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()
    } else {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        registry.with(fmt::layer().with_ansi(colour).with_writer(std::io::stderr)).try_init()
    };
    tracing::info!(process, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "starting");
}

const FILTER_VARIABLE: &str = "ARCHIPELAGO_LOG";
const FORMAT_VARIABLE: &str = "ARCHIPELAGO_LOG_FORMAT";
/// hickory logs every query at `info`, and the raft crate (target `slog`) every step of an election: the one would fill the disk
/// of a busy resolver, the other says in ten lines what our own log says in one.
const FILTER_DEFAULT: &str = "info,hickory_server=warn,slog=warn";
