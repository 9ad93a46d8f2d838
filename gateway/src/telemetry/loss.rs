//! How many packets of the last minute were lost on the way to each gateway, out of totals that are looked at once a second.
//!
//! Totals are of connections that are open: where one of them ends, they fall, and what is compared begins anew.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use archipelago_proto::v1::TunnelStatus;

/// By peer, "cluster/gateway".
#[derive(Debug, Default)]
pub struct Losses(HashMap<String, VecDeque<Look>>);

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    sent: u64,
    lost: u64,
}

impl Losses {
    /// Says in each tunnel what it lost, as far as that is known; peers that are gone are forgotten.
    pub fn fill(&mut self, tunnels: &mut [TunnelStatus], now: Instant) {
        self.0.retain(|peer, _| tunnels.iter().any(|tunnel| tunnel.to == *peer));
        for tunnel in tunnels {
            let (Some(sent), Some(lost)) = (tunnel.sent_packets, tunnel.lost_packets) else {
                self.0.remove(&tunnel.to);
                continue;
            };
            let look = Look { at: now, sent, lost };
            let looks = self.0.entry(tunnel.to.clone()).or_default();
            if looks.back().is_some_and(|last| sent < last.sent || lost < last.lost) {
                looks.clear();
            }
            while looks.len() > 1 && looks.get(1).is_some_and(|next| now.saturating_duration_since(next.at) >= WINDOW) {
                looks.pop_front();
            }
            tunnel.lost_ppm = looks.front().and_then(|first| ppm(*first, look));
            if looks.back().is_none_or(|last| now.saturating_duration_since(last.at) >= STEP) {
                looks.push_back(look);
            }
        }
    }
}

fn ppm(from: Look, to: Look) -> Option<u32> {
    let sent = to.sent.checked_sub(from.sent).filter(|sent| *sent >= PACKETS_MIN)?;
    // What was sent before may be found lost now.
    let lost = to.lost.saturating_sub(from.lost).min(sent);
    u32::try_from(u128::from(lost) * 1_000_000 / u128::from(sent)).ok()
}

const WINDOW: Duration = Duration::from_secs(60);
/// 13 looks are kept of each peer.
const STEP: Duration = Duration::from_secs(5);
/// Of fewer, one more or less says nothing. An idle tunnel beats once a second on each of its connections.
const PACKETS_MIN: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(to: &str, sent: u64, lost: u64) -> TunnelStatus {
        TunnelStatus { to: to.into(), sent_packets: Some(sent), lost_packets: Some(lost), ..TunnelStatus::default() }
    }

    #[test]
    fn the_last_minute_counts_and_nothing_is_said_of_too_few() {
        let (mut losses, start) = (Losses::default(), Instant::now());
        let mut look = |second: u64, tunnel: TunnelStatus| {
            let mut tunnels = [tunnel];
            losses.fill(&mut tunnels, start + Duration::from_secs(second));
            (tunnels[0].lost_ppm, losses.0.get("tokyo/gw-1").map(VecDeque::len))
        };
        assert_eq!(look(0, tunnel("tokyo/gw-1", 1_000, 500)).0, None, "nothing to compare with");
        assert_eq!(look(1, tunnel("tokyo/gw-1", 1_019, 500)).0, None);
        assert_eq!(look(2, tunnel("tokyo/gw-1", 1_100, 501)).0, Some(10_000));
        // A minute of 100 packets a second, none of which is lost.
        for second in 3..=61 {
            look(second, tunnel("tokyo/gw-1", 1_100 + second * 100, 501));
        }
        let (ppm, looks) = look(70, tunnel("tokyo/gw-1", 8_100, 501));
        assert_eq!(ppm, Some(0), "what was lost before that is forgotten");
        assert!(looks.unwrap() <= 14, "{looks:?}");
        // Another connection: its totals are its own.
        assert_eq!(look(71, tunnel("tokyo/gw-1", 5, 0)).0, None);
        assert_eq!(look(72, tunnel("tokyo/gw-1", 105, 50)).0, Some(500_000));
        // More is found lost than was sent meanwhile.
        assert_eq!(look(73, tunnel("tokyo/gw-1", 125, 900)).0, Some(1_000_000));
        assert_eq!(look(74, TunnelStatus { to: "tokyo/gw-1".into(), ..TunnelStatus::default() }), (None, None));
        look(75, tunnel("tokyo/gw-1", 125, 900));
        assert_eq!(look(76, tunnel("tokyo/gw-2", 1, 0)).1, None, "who is gone is forgotten");
    }
}
