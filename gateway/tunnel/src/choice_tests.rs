use super::*;
use archipelago_base::random::SplitMix64;
use std::collections::HashMap;

fn name(cluster: &str, gateway: usize) -> PeerName {
    PeerName { cluster: cluster.to_owned(), gateway: format!("gw-{gateway}") }
}

fn gateways(cluster: &str, count: usize) -> Vec<PeerName> {
    (0..count).map(|n| name(cluster, n)).collect()
}

fn short(wanted: &BTreeSet<PeerName>) -> Vec<&str> {
    wanted.iter().map(|peer| peer.gateway.as_str()).collect()
}

/// The ranking is part of how gateways of different versions share load: it may not change by accident.
#[test]
fn golden_rankings() {
    for (own, expected) in [(name("paris", 0), RANKING_OF_0), (name("paris", 1), RANKING_OF_1)] {
        let mut choice = Choice::new(own, 8);
        let members = gateways("tokyo", 8);
        choice.set_members(&members);
        let ranking: Vec<_> = choice.clusters["tokyo"].ranking.iter().map(|peer| peer.gateway.as_str()).collect();
        assert_eq!(ranking.join(" "), expected);
    }
}

const RANKING_OF_0: &str = "gw-7 gw-0 gw-1 gw-6 gw-2 gw-5 gw-3 gw-4";
const RANKING_OF_1: &str = "gw-6 gw-4 gw-2 gw-7 gw-3 gw-5 gw-0 gw-1";

#[test]
fn who_is_wanted() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let mut choice = Choice::new(name("paris", 0), 2);
    let mut members = gateways("tokyo", 12);
    choice.set_members(&members);
    let ranking: Vec<PeerName> = choice.clusters["tokyo"].ranking.clone();
    let first = |count: usize| -> BTreeSet<PeerName> { ranking[..count].iter().cloned().collect() };
    let all = |_: &PeerName| true;
    assert_eq!(choice.wanted(all, at(0)), first(2), "the homes");
    assert_eq!(choice.due(), None);
    assert_eq!(
        choice.wanted(|peer| *peer != ranking[0], at(1)),
        first(3),
        "one home is dead: one stands in, both are dialled"
    );
    let two_dead = |peer: &PeerName| *peer != ranking[0] && *peer != ranking[2];
    assert_eq!(choice.wanted(two_dead, at(2)), first(4), "the stand-in is dead too: the next");
    assert_eq!(choice.wanted(|_| false, at(3)), first(6), "the whole cluster is gone: not all of it is dialled");
    assert_eq!(choice.wanted(all, at(4)), first(6), "all is well: stand-ins linger");
    assert_eq!(choice.due(), Some(at(33)));
    assert_eq!(choice.wanted(all, at(33)), first(2), "and go");

    assert!(choice.demand("tokyo", at(40)));
    assert!(!choice.demand("tokyo", at(40)), "one at a time");
    assert_eq!(choice.wanted(all, at(40)), first(3), "on demand");
    assert!(choice.demand("tokyo", at(41)));
    assert!(!choice.demand("tokyo", at(50)), "as many as homes");
    assert_eq!(choice.wanted(all, at(50)), first(4));
    assert_eq!(choice.wanted(all, at(79)), first(4), "kept while somebody asked a moment ago");
    assert_eq!(choice.wanted(all, at(130)), first(2), "nobody asked for a while");
    assert!(!choice.demand("lyon", at(130)), "a cluster without gateways");

    members.retain(|peer| *peer != ranking[0]);
    choice.set_members(&members);
    let moved: BTreeSet<PeerName> = ranking[1..3].iter().cloned().collect();
    assert_eq!(
        choice.wanted(all, at(131)),
        moved,
        "a gateway that went is replaced by the next, and nothing else moves"
    );
    choice.set_members(&[]);
    assert!(choice.wanted(all, at(132)).is_empty());
}

#[test]
fn members_that_come_and_go_one_by_one_are_those_that_came_at_once() {
    let mut choice = Choice::new(name("paris", 0), 3);
    let mut members: Vec<PeerName> = ["tokyo", "lyon"].iter().flat_map(|cluster| gateways(cluster, 12)).collect();
    members.iter().for_each(|peer| choice.add(peer));
    let now = Instant::now();
    while let Some(last) = members.len().checked_sub(1) {
        let mut at_once = Choice::new(name("paris", 0), 3);
        at_once.set_members(&members);
        assert_eq!(choice.wanted(|_| true, now), at_once.wanted(|_| true, now));
        assert_eq!(choice.clusters.len(), at_once.clusters.len());
        let gone = members.swap_remove(last / 2);
        choice.remove(&gone);
        choice.add(&members.first().unwrap_or(&gone).clone());
        if members.is_empty() {
            choice.remove(&gone);
        }
    }
    assert!(choice.clusters.is_empty());
}

#[test]
fn few_gateways_are_all_chosen() {
    let mut choice = Choice::new(name("paris", 0), 4);
    choice.set_members(&gateways("tokyo", 3));
    assert_eq!(short(&choice.wanted(|_| true, Instant::now())), ["gw-0", "gw-1", "gw-2"]);
    assert_eq!(choice.wanted(|_| false, Instant::now()).len(), 3);
}

const CLUSTERS: usize = 100;
const GATEWAYS: usize = 50;
const PER_CLUSTER: usize = 4;

fn cluster(n: usize) -> String {
    format!("cluster-{n:02}")
}

fn federation() -> Vec<PeerName> {
    (0..CLUSTERS).flat_map(|n| gateways(&cluster(n), GATEWAYS)).collect()
}

fn choice_of(own: &PeerName, members: &[PeerName]) -> Choice {
    let mut choice = Choice::new(own.clone(), PER_CLUSTER);
    choice.set_members(members.iter().filter(|peer| peer.cluster != own.cluster));
    choice
}

/// 100 clusters × 50 gateways: how many tunnels each gateway dials and is dialled by, and how many move when one goes.
///
/// Clusters do not influence each other's ranking, so what arrives at eight of them stands for the others.
#[test]
fn a_hundred_clusters_of_fifty_gateways() {
    let (members, now) = (federation(), Instant::now());
    let outbound = choice_of(&members[0], &members).wanted(|_| true, now).len();
    assert_eq!(outbound, (CLUSTERS - 1) * PER_CLUSTER);
    let targets: Vec<_> = (0..8).flat_map(|n| gateways(&cluster(n * 13), GATEWAYS)).collect();
    let gone = &targets[217];
    let left: Vec<_> = targets.iter().filter(|peer| *peer != gone).cloned().collect();
    let mut inbound: HashMap<PeerName, usize> = HashMap::new();
    let (mut moves, mut moves_of_others) = (0, 0);
    for own in &members {
        let mut choice = choice_of(own, &targets);
        let before = choice.wanted(|_| true, now);
        for peer in &before {
            *inbound.entry(peer.clone()).or_insert(0) += 1;
        }
        if own != gone {
            choice.set_members(left.iter().filter(|peer| peer.cluster != own.cluster));
            let new = choice.wanted(|_| true, now).difference(&before).count();
            moves += new;
            moves_of_others += if before.contains(gone) { 0 } else { new };
        }
    }
    let counts: Vec<usize> = targets.iter().map(|peer| inbound.get(peer).copied().unwrap_or(0)).collect();
    let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    let variance = counts.iter().map(|count| (*count as f64 - mean).powi(2)).sum::<f64>() / counts.len() as f64;
    let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    println!(
        "outbound {outbound} each; inbound mean {mean:.1}, deviation {:.1}, min {min}, max {max} (a full mesh: 4,950 each way); \
         one gateway goes: {moves} of {} tunnels move, {moves_of_others} of gateways that had none to it",
        variance.sqrt(),
        members.len() * outbound,
    );
    assert!((mean - 396.0).abs() < 0.01);
    assert!(*max < 480 && *min > 315, "binomial: mean 396, deviation 19");
    assert_eq!(moves, inbound[gone], "each tunnel to it moves once");
    assert_eq!(moves_of_others, 0);
}

/// A rack of a cluster dies: how long until each of the others has its four tunnels again, by the simulated clock.
///
/// A handshake takes 1 to 3 round trips of 80 ms, and one to a dead gateway 1.5 s until it is given up (`dial_timeout`). Deaths are known
/// at time 0: finding them out is the detector's part.
#[test]
fn time_to_a_replacement() {
    let members = federation();
    let start = Instant::now();
    let mut times = Vec::new();
    let mut dialled = 0;
    for seed in 0..200 {
        let mut random = SplitMix64::new(seed);
        let mut below = |bound: usize| (random.next_u64() % bound as u64) as usize;
        let own = &members[below(GATEWAYS)]; // of the first cluster
        let target = cluster(1 + below(CLUSTERS - 1));
        let dead: BTreeSet<usize> = (0..GATEWAYS / 5).map(|_| below(GATEWAYS)).collect();
        let is_dead = |peer: &PeerName| dead.iter().any(|n| *peer == name(&target, *n));
        let mut choice = choice_of(own, &members);
        let first = choice.wanted(|_| true, start);
        let hurt = first.iter().filter(|peer| is_dead(peer)).count();
        if hurt == 0 {
            continue;
        }
        // What is known: dead, tried in vain, or connected; and the dials under way with their outcome.
        let mut failed: BTreeSet<PeerName> = first.iter().filter(|peer| is_dead(peer)).cloned().collect();
        let mut up: BTreeSet<PeerName> = first.iter().filter(|peer| !is_dead(peer)).cloned().collect();
        let mut dials: BTreeMap<(Duration, PeerName), bool> = BTreeMap::new();
        let mut now = Duration::ZERO;
        let time = loop {
            let wanted = choice.wanted(|peer| !failed.contains(peer), start + now);
            for peer in &wanted {
                let known =
                    up.contains(peer) || failed.contains(peer) || dials.keys().any(|(_, dialled)| dialled == peer);
                if !known {
                    dialled += 1;
                    let takes = if is_dead(peer) { 1500 } else { 80 + below(161) as u64 };
                    dials.insert((now + Duration::from_millis(takes), peer.clone()), !is_dead(peer));
                }
            }
            if up.iter().filter(|peer| peer.cluster == target).count() >= PER_CLUSTER {
                break Some(now);
            }
            let Some(((at, peer), lives)) = dials.pop_first() else { break None };
            now = at;
            if lives {
                up.insert(peer)
            } else {
                failed.insert(peer)
            };
        };
        times.push(time.expect("a fifth of a cluster is dead, not all of it"));
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{} gateways lost tunnels to a rack: replaced after {:?} (median), {:?} (p90), {:?} (worst); {:.1} dials each",
        times.len(),
        at(0.5),
        at(0.9),
        at(1.0),
        f64::from(dialled) / times.len() as f64
    );
    assert!(times.len() > 80, "{}", times.len());
    // The other homes carry on meanwhile; only a row of dead stand-ins, each tried in vain, takes seconds.
    assert!(at(0.5) <= Duration::from_millis(250) && at(0.9) < Duration::from_millis(2 * 1500));
    assert!(at(1.0) <= Duration::from_millis(4 * 1500 + 250));
}
