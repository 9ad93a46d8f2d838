//! How much a gateway writes down of each request.

/// What of requests is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Telemetry {
    /// Requests are counted, by label set and by bucket of their duration, and where the time of the slowest went is kept.
    #[default]
    Full,
    /// Neither: no mesh_requests_total and no durations, and the gateway has no part in `meshctl top` and `slow`, which name it. What it
    /// counts beside requests (failures, tunnels, connections), the access log, traces and `meshctl tap` are as ever.
    Minimal,
}

impl Telemetry {
    /// Whether requests are counted, and the slowest kept.
    pub fn counts_requests(self) -> bool {
        self == Self::Full
    }
}

/// Why there is nothing to tell.
pub const NOT_COUNTED: &str = "counts no requests: it runs with --telemetry minimal";
