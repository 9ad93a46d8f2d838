//! Tunnels as metrics: each peer's state and round trip, and what went between two clusters.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use archipelago_proto::v1::TunnelStatus;
use archipelago_tunnel::{Traffic, TunnelStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::loss::Losses;

/// The tunnels as last collected.
#[derive(Debug, Default)]
pub struct Tunnels(Mutex<(Vec<TunnelStatus>, Losses)>);

impl Tunnels {
    /// Replaces them, and works out what they lost lately.
    pub fn set(&self, mut tunnels: Vec<TunnelStatus>, now: Instant) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1.fill(&mut tunnels, now);
        inner.0 = tunnels;
    }

    /// A copy.
    pub fn get(&self) -> Vec<TunnelStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

impl Collector for Tunnels {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let tunnels = self.get();
        let labels = |tunnel: &TunnelStatus| {
            vec![
                ("source_cluster", tunnel.from_cluster.clone()),
                ("destination_cluster", tunnel.to_cluster.clone()),
                ("peer", tunnel.to.clone()),
            ]
        };
        let help = "1 for the state that a tunnel is in, 0 for the others; the worst of all workers";
        let mut states = encoder.encode_descriptor("mesh_tunnel_state", help, None, MetricType::Gauge)?;
        for tunnel in &tunnels {
            for state in STATES {
                let mut with_state = labels(tunnel);
                with_state.push(("state", state.to_owned()));
                ConstGauge::new(i64::from(state == tunnel.state)).encode(states.encode_family(&with_state)?)?;
            }
        }
        let help = "Smoothed round trip of a tunnel";
        let mut rtt = encoder.encode_descriptor("mesh_tunnel_rtt_seconds", help, None, MetricType::Gauge)?;
        for tunnel in tunnels.iter().filter(|tunnel| tunnel.rtt_micros > 0) {
            #[allow(clippy::cast_precision_loss, reason = "microseconds of a round trip fit 52 bits")]
            ConstGauge::new(tunnel.rtt_micros as f64 / 1e6).encode(rtt.encode_family(&labels(tunnel))?)?;
        }
        let help =
            "Share of the packets sent to a gateway in the last minute that were lost; missing where too few were sent";
        let mut loss = encoder.encode_descriptor("mesh_tunnel_loss_ratio", help, None, MetricType::Gauge)?;
        for tunnel in &tunnels {
            let Some(ppm) = tunnel.lost_ppm else { continue };
            ConstGauge::new(f64::from(ppm) / 1e6).encode(loss.encode_family(&labels(tunnel))?)?;
        }
        for (name, help, value) in PATHS {
            let mut gauges = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for tunnel in &tunnels {
                let Some(value) = value(tunnel) else { continue };
                ConstGauge::new(value).encode(gauges.encode_family(&labels(tunnel))?)?;
            }
        }
        Ok(())
    }
}

/// What all workers' tunnels have carried, by the cluster at the other end.
#[derive(Debug, Default)]
pub struct TrafficShown {
    /// Ours, once it is known.
    cluster: OnceLock<String>,
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    beats_sent: u64,
    beats_received: u64,
    by_cluster: BTreeMap<String, Traffic>,
}

impl TrafficShown {
    /// Says whose traffic it is.
    pub fn set_cluster(&self, cluster: &str) {
        // Said once, at start.
        let _ = self.cluster.set(cluster.to_owned());
    }

    /// Adds what one worker's tunnels did between two looks at them.
    pub fn add(&self, before: &TunnelStats, now: &TunnelStats) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.beats_sent += now.beats_sent.saturating_sub(before.beats_sent);
        sums.beats_received += now.beats_received.saturating_sub(before.beats_received);
        for (cluster, now) in &now.traffic {
            let before = before.traffic.get(cluster).copied().unwrap_or_default();
            let sum = sums.by_cluster.entry(cluster.clone()).or_default();
            sum.sent_bytes += now.sent_bytes.saturating_sub(before.sent_bytes);
            sum.received_bytes += now.received_bytes.saturating_sub(before.received_bytes);
            sum.sent_packets += now.sent_packets.saturating_sub(before.sent_packets);
            sum.lost_packets += now.lost_packets.saturating_sub(before.lost_packets);
        }
    }
}

impl Collector for TrafficShown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Beats of failure detectors on tunnels";
        let mut beats = encoder.encode_descriptor("mesh_gateway_tunnel_beats", help, None, MetricType::Counter)?;
        for (direction, count) in [("sent", sums.beats_sent), ("received", sums.beats_received)] {
            ConstCounter::new(count).encode(beats.encode_family(&[("direction", direction)])?)?;
        }
        for (name, help, value) in TRAFFIC {
            let mut totals = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (cluster, traffic) in &sums.by_cluster {
                let own = self.cluster.get().map_or("", String::as_str);
                let labels = [("source_cluster", own), ("destination_cluster", cluster.as_str())];
                ConstCounter::new(value(traffic)).encode(totals.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

type ReadPath = fn(&TunnelStatus) -> Option<u64>;
const PATHS: [(&str, &str, ReadPath); 2] = [
    (
        "mesh_tunnel_congestion_window_bytes",
        "The smallest congestion window of the connections with a gateway",
        |tunnel| tunnel.congestion_window_bytes,
    ),
    (
        "mesh_tunnel_path_black_holes",
        "How often the connections that are open with a gateway found that large packets vanish",
        |tunnel| tunnel.black_holes,
    ),
];
type Read = fn(&Traffic) -> u64;
const TRAFFIC: [(&str, &str, Read); 4] = [
    ("mesh_tunnel_sent_bytes", "UDP payload sent to gateways of a cluster", |traffic| traffic.sent_bytes),
    ("mesh_tunnel_received_bytes", "UDP payload received from gateways of a cluster", |traffic| traffic.received_bytes),
    ("mesh_tunnel_sent_packets", "QUIC packets sent to gateways of a cluster", |traffic| traffic.sent_packets),
    ("mesh_tunnel_lost_packets", "QUIC packets sent to gateways of a cluster that were lost", |traffic| {
        traffic.lost_packets
    }),
];
/// As `command::state_name` says them.
const STATES: [&str; 5] = ["up", "draining", "dialing", "suspect", "dead"];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use archipelago_tunnel::PeerState;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::worker::command::state_name;

    #[test]
    fn a_tunnel_is_in_one_state_of_all() {
        let tunnels = Arc::new(Tunnels::default());
        let told = |sent_packets| TunnelStatus {
            from_cluster: "paris".into(),
            to: "tokyo/gw-1".into(),
            to_cluster: "tokyo".into(),
            state: "suspect".into(),
            rtt_micros: 1500,
            sent_packets: Some(sent_packets),
            lost_packets: Some(sent_packets / 4),
            congestion_window_bytes: Some(12_000),
            ..Default::default()
        };
        let silent = TunnelStatus { to: "oslo/gw-1".into(), to_cluster: "oslo".into(), ..Default::default() };
        for (sent, second) in [(100, 0), (500, 1)] {
            let now = Instant::now() + std::time::Duration::from_secs(second);
            tunnels.set(vec![told(sent), silent.clone()], now);
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&tunnels)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let labels = r#"source_cluster="paris",destination_cluster="tokyo",peer="tokyo/gw-1""#;
        for state in [PeerState::Up, PeerState::Draining, PeerState::Dialing, PeerState::Suspect, PeerState::Dead] {
            let line = format!(
                "mesh_tunnel_state{{{labels},state=\"{}\"}} {}",
                state_name(state),
                i32::from(state == PeerState::Suspect)
            );
            assert!(text.lines().any(|other| other == line), "{line} missing in:\n{text}");
        }
        assert!(text.contains(&format!("mesh_tunnel_rtt_seconds{{{labels}}} 0.0015\n")), "{text}");
        assert!(text.contains(&format!("mesh_tunnel_loss_ratio{{{labels}}} 0.25\n")), "{text}");
        assert!(text.contains(&format!("mesh_tunnel_congestion_window_bytes{{{labels}}} 12000\n")), "{text}");
        let of_oslo = text.lines().filter(|line| line.contains("oslo") && !line.starts_with("mesh_tunnel_state"));
        assert_eq!(of_oslo.count(), 0, "what is not known is not zero:\n{text}");
    }

    #[test]
    fn what_workers_carried_is_added_up() {
        let shown = Arc::new(TrafficShown::default());
        shown.set_cluster("paris");
        let stats = |bytes, beats| TunnelStats {
            beats_sent: beats,
            traffic: [("tokyo".to_owned(), Traffic { sent_bytes: bytes, ..Default::default() })].into(),
            ..Default::default()
        };
        shown.add(&TunnelStats::default(), &stats(10, 1));
        shown.add(&stats(10, 1), &stats(15, 2));
        shown.add(&TunnelStats::default(), &stats(100, 0));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&shown)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"mesh_tunnel_sent_bytes_total{source_cluster="paris",destination_cluster="tokyo"} 115"#,
            r#"mesh_gateway_tunnel_beats_total{direction="sent"} 2"#,
        ] {
            assert!(text.lines().any(|other| other == line), "{line} missing in:\n{text}");
        }
    }
}
