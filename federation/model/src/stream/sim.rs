//! Seeded simulation of the configuration stream: both ends as they are, everything between them made up.
//!
//! A federation of members that each have applied a part of one history, and gateways with a disk each. Members stop, come
//! back, lag and are cut off; histories are cut back to a backup, with and without a raised restore epoch; gateways restart
//! from older disks with other features; connections break with updates in flight, before and behind the swap. After every
//! step the invariants are checked; then everything is healed and has to converge.
//!
//! `SIM_SEED=n` runs one seed, `SIM_SEEDS=n` that many.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use archipelago_base::random::SplitMix64;
use archipelago_proto::v1::{ConfigResource, ConfigUpdate, ServiceConfig, UpdateRefusal, config_resource::Body};

use super::{Compiled, Held, Next, Offer, Refusal, Resource, suit};
use crate::{compile, version::Version};

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    Nothing,
    /// A member offers what it has without asking a majority.
    OfferWithoutBarrier,
    /// A gateway takes what is older than what it runs.
    TakeRegressions,
    /// A gateway acknowledges an update when it arrives.
    AckBeforeSwap,
    /// A gateway does not look at what a difference was made against, or led to.
    WrongBase,
}

/// What happened, so that a run in which nothing happens is noticed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Stats {
    commits: u64,
    acks: u64,
    refusals: u64,
    fulls: u64,
    deltas: u64,
    asked: u64,
    breaks: u64,
    restores: u64,
    behind: u64,
    closed: u64,
}

struct World {
    random: Random,
    plant: Plant,
    /// The committed history since the last restore; the newest is the federation's state.
    history: Vec<Arc<Compiled>>,
    /// Every configuration that was ever committed, by version and digest of what a gateway with some features gets of it.
    ever: BTreeSet<(Version, Vec<u8>)>,
    members: Vec<Member>,
    gateways: Vec<Gateway>,
    stats: Stats,
}

struct Member {
    up: bool,
    /// Reaches a majority.
    connected: bool,
    /// Index into the history.
    applied: usize,
}

struct Gateway {
    features: BTreeSet<String>,
    /// What the control thread holds.
    held: Held,
    /// What the workers serve with.
    running: Held,
    /// Versions as they were written; a restart takes any of the last few.
    disk: VecDeque<Held>,
    /// An update that was taken and is not swapped in yet.
    swapping: Option<(Held, Version)>,
    /// The session that brought it is still there.
    owes_ack: bool,
    session: Option<Session>,
}

struct Session {
    member: usize,
    offer: Offer,
    is_confirmed: bool,
    /// Newest committed version when it began.
    begun_at: Version,
    to_gateway: VecDeque<Down>,
    to_member: VecDeque<Up>,
}

enum Down {
    Update(ConfigUpdate),
    SendHeld,
}

enum Up {
    Ack(Version),
    Refused(Version, UpdateRefusal),
    Held(Vec<(String, Vec<u8>)>),
}

const FEATURES: [&str; 2] = ["milk", "tea"];
const NAMES: [&str; 5] = ["cluster/a", "service//a", "service//b", "service//c", "peer/b/gw-1"];

impl World {
    fn new(seed: u64, plant: Plant) -> Self {
        let mut random = Random(SplitMix64::new(seed));
        let first = Arc::new(Compiled { version: version(0, 1, 0), resources: super::Resources::default() });
        let members = (0..3).map(|_| Member { up: true, connected: true, applied: 0 }).collect();
        let gateways = (0..3)
            .map(|_| Gateway {
                features: features(&mut random),
                held: Held::default(),
                running: Held::default(),
                disk: VecDeque::from([Held::default()]),
                swapping: None,
                owes_ack: false,
                session: None,
            })
            .collect();
        let mut world = Self {
            random,
            plant,
            history: Vec::new(),
            ever: BTreeSet::new(),
            members,
            gateways,
            stats: Stats::default(),
        };
        world.record(first);
        world
    }

    fn record(&mut self, compiled: Arc<Compiled>) {
        for features in all_features() {
            let (suited, _) = suit(&compiled, &features);
            self.ever.insert((compiled.version, suited.resources.digest().to_bytes()));
        }
        self.history.push(compiled);
    }

    fn newest(&self) -> &Arc<Compiled> {
        self.history.last().expect("it begins with one version and is never cut to none")
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..8 => self.commit(),
            8 if self.random.below(2) == 0 => {
                let member = self.random.below(self.members.len());
                self.members[member].up ^= true;
                self.end_sessions_of(member);
            }
            9 => {
                let member = self.random.below(self.members.len());
                self.members[member].connected ^= true;
            }
            10 if self.random.below(6) == 0 => self.restore(),
            11 if self.random.below(3) == 0 => self.restart_gateway(),
            12 => {
                let gateway = self.random.below(self.gateways.len());
                self.break_session(gateway);
            }
            13..25 => self.apply_some(),
            _ => {
                let gateway = self.random.below(self.gateways.len());
                self.move_gateway(gateway)?;
            }
        }
        self.check()
    }

    /// A write or a report, by whoever leads.
    fn commit(&mut self) {
        if self.members.iter().filter(|member| member.up && member.connected).count() < 2 {
            return;
        }
        let mut next = Compiled::clone(self.newest());
        if self.random.below(3) == 0 {
            next.version.fleet += 1;
        } else {
            next.version.revision += 1;
        }
        for _ in 0..self.random.below(3) {
            let name = NAMES[self.random.below(NAMES.len())];
            if self.random.below(3) == 0 {
                next.resources.remove(name);
            } else {
                let resource = resource(name, &mut self.random);
                next.resources.put(resource);
            }
        }
        self.stats.commits += 1;
        self.record(Arc::new(next));
    }

    /// All members stop and are started from a copy of older disks. Half of the operators say so to the federation.
    fn restore(&mut self) {
        self.stats.restores += 1;
        let kept = self.random.below(self.history.len()) + 1;
        self.history.truncate(kept);
        for member in 0..self.members.len() {
            self.members[member].applied = self.members[member].applied.min(kept - 1);
            self.end_sessions_of(member);
        }
        if self.random.below(2) == 0 {
            self.raise_restore_epoch();
        }
    }

    fn raise_restore_epoch(&mut self) {
        let mut restored = Compiled::clone(self.newest());
        // Above every epoch that any gateway ever ran: the log command asks the gateways' sessions.
        let highest = self.ever.iter().map(|(version, _)| version.restore_epoch).max().unwrap_or(0);
        restored.version.restore_epoch = highest + 1;
        restored.version.revision += 1;
        self.record(Arc::new(restored));
    }

    fn restart_gateway(&mut self) {
        let index = self.random.below(self.gateways.len());
        self.break_session(index);
        let features = features(&mut self.random);
        let place = self.random.below(self.gateways[index].disk.len());
        let gateway = &mut self.gateways[index];
        let held = gateway.disk.get(place).cloned().unwrap_or_default();
        gateway.disk.truncate(place + 1);
        gateway.swapping = None;
        (gateway.held, gateway.running, gateway.features) = (held.clone(), held, features);
    }

    fn break_session(&mut self, gateway: usize) {
        self.gateways[gateway].owes_ack = false;
        if self.gateways[gateway].session.take().is_some() {
            self.stats.breaks += 1;
        }
    }

    fn end_sessions_of(&mut self, member: usize) {
        for gateway in 0..self.gateways.len() {
            if self.gateways[gateway].session.as_ref().is_some_and(|session| session.member == member) {
                self.break_session(gateway);
            }
        }
    }

    /// Members that are in touch with a majority follow the log, each at its own pace.
    fn apply_some(&mut self) {
        let newest = self.history.len() - 1;
        for member in &mut self.members {
            if member.up && member.connected && member.applied < newest {
                member.applied += 1 + self.random.below(newest - member.applied);
            }
        }
    }

    /// One event at one gateway or on its session.
    fn move_gateway(&mut self, index: usize) -> Result<(), String> {
        if self.gateways[index].session.is_none() {
            return self.connect(index);
        }
        match self.random.below(4) {
            0 => self.member_side(index)?,
            1 => self.receive(index),
            2 => self.swap(index),
            _ => self.hear(index),
        }
        Ok(())
    }

    fn connect(&mut self, index: usize) -> Result<(), String> {
        let member = self.random.below(self.members.len());
        if !self.members[member].up {
            return Ok(());
        }
        // Hello drains what is still being applied; should it not, the digests have to notice.
        if self.plant != Plant::WrongBase && self.random.below(4) > 0 {
            self.swap(index);
        }
        // Some members are of a version that does not look at what a gateway says it runs.
        let is_careless = self.random.below(8) == 0;
        let begun_at = self.newest().version;
        let gateway = &mut self.gateways[index];
        let running = if is_careless { Version::default() } else { gateway.held.version };
        let offer = Offer::new(running, gateway.held.resources.digest());
        gateway.session = Some(Session {
            member,
            offer,
            is_confirmed: false,
            begun_at,
            to_gateway: VecDeque::new(),
            to_member: VecDeque::new(),
        });
        Ok(())
    }

    /// The member's driver: barrier, then whatever the offer says.
    fn member_side(&mut self, index: usize) -> Result<(), String> {
        let Some(session) = self.gateways[index].session.as_mut() else { return Ok(()) };
        let member = &mut self.members[session.member];
        let majority = member.connected;
        if !session.is_confirmed {
            if self.plant == Plant::OfferWithoutBarrier {
                session.offer.confirmed(Version::default());
                session.is_confirmed = true;
            } else if majority {
                // A read index: the member has applied what was committed when it answers.
                member.applied = self.history.len() - 1;
                session.offer.confirmed(self.history[member.applied].version);
                session.is_confirmed = true;
            }
        }
        let (suited, lacks) = suit(&self.history[member.applied], &self.gateways[index].features);
        self.stats.closed += lacks.len() as u64;
        let Some(session) = self.gateways[index].session.as_mut() else { return Ok(()) };
        match session.offer.next(&Arc::new(suited)) {
            Next::Nothing => {}
            Next::AskHeld => {
                self.stats.asked += 1;
                session.to_gateway.push_back(Down::SendHeld);
            }
            Next::Update(update) => {
                let offered = Version::from(update.version.unwrap());
                if offered < session.begun_at {
                    return Err(format!("{offered} is offered in a session that began at {}", session.begun_at));
                }
                if update.full {
                    self.stats.fulls += 1;
                } else {
                    self.stats.deltas += 1;
                }
                session.to_gateway.push_back(Down::Update(update));
            }
            Next::Behind { .. } => self.stats.behind += 1,
        }
        Ok(())
    }

    /// The gateway's driver: one directive.
    fn receive(&mut self, index: usize) {
        let plant = self.plant;
        let gateway = &mut self.gateways[index];
        let Some(session) = gateway.session.as_mut() else { return };
        // The applier takes one update after another; what is held is told at any time.
        if gateway.swapping.is_some() && matches!(session.to_gateway.front(), Some(Down::Update(_))) {
            return;
        }
        match session.to_gateway.pop_front() {
            None => {}
            Some(Down::SendHeld) => {
                let rows = gateway.held.resources.iter().map(|row| (row.name.clone(), row.version.to_vec()));
                session.to_member.push_back(Up::Held(rows.collect()));
            }
            Some(Down::Update(update)) => {
                let offered: Version = update.version.unwrap().into();
                match take(&gateway.held, &update, plant) {
                    Ok(next) => {
                        if plant == Plant::AckBeforeSwap {
                            session.to_member.push_back(Up::Ack(offered));
                        }
                        gateway.swapping = Some((next, offered));
                        gateway.owes_ack = true;
                    }
                    Err(refusal) => {
                        self.stats.refusals += 1;
                        session.to_member.push_back(Up::Refused(offered, refusal.into()));
                    }
                }
            }
        }
    }

    /// The workers take the snapshot; then it is acknowledged and written.
    fn swap(&mut self, index: usize) {
        let gateway = &mut self.gateways[index];
        let Some((next, version)) = gateway.swapping.take() else { return };
        (gateway.held, gateway.running) = (next.clone(), next.clone());
        gateway.disk.push_back(next);
        if gateway.disk.len() > 6 {
            gateway.disk.pop_front();
        }
        let owes_ack = std::mem::take(&mut gateway.owes_ack) && self.plant != Plant::AckBeforeSwap;
        if let Some(session) = gateway.session.as_mut().filter(|_| owes_ack) {
            session.to_member.push_back(Up::Ack(version));
        }
    }

    /// The member hears from the gateway.
    fn hear(&mut self, index: usize) {
        let gateway = &mut self.gateways[index];
        let Some(session) = gateway.session.as_mut() else { return };
        match session.to_member.pop_front() {
            None => {}
            Some(Up::Held(rows)) => session.offer.held(rows),
            Some(Up::Refused(version, refusal)) => {
                session.offer.refused(version, &Refusal::from_wire(refusal, version));
            }
            Some(Up::Ack(version)) if session.offer.acknowledged(version) => self.stats.acks += 1,
            Some(Up::Ack(_)) => {}
        }
    }

    fn check(&mut self) -> Result<(), String> {
        for (index, gateway) in self.gateways.iter().enumerate() {
            let running = &gateway.running;
            let committed = running.version == Version::default()
                || self.ever.contains(&(running.version, running.resources.digest().to_bytes()));
            if !committed {
                return Err(format!("gateway {index} runs {} with content that nobody committed", running.version));
            }
            // What is on its way to the member as an acknowledgement must be what runs.
            for message in gateway.session.iter().flat_map(|session| &session.to_member) {
                if let Up::Ack(version) = message
                    && *version > running.version
                {
                    return Err(format!("gateway {index} acknowledges {version} and runs {}", running.version));
                }
            }
        }
        Ok(())
    }

    /// Runs one step and sees that no gateway went back; a restart may.
    fn checked_step(&mut self) -> Result<(), String> {
        let before: Vec<(Version, usize)> =
            self.gateways.iter().map(|gateway| (gateway.running.version, gateway.disk.len())).collect();
        self.step()?;
        for (index, (gateway, (version, disk))) in self.gateways.iter().zip(before).enumerate() {
            let restarted = gateway.session.is_none() && gateway.disk.len() <= disk;
            if gateway.running.version < version && !restarted {
                return Err(format!("gateway {index} went back from {version} to {}", gateway.running.version));
            }
        }
        Ok(())
    }

    /// Everything works again, and the operator has declared what was restored.
    fn heal(&mut self) -> Result<(), String> {
        self.members.iter_mut().for_each(|member| (member.up, member.connected) = (true, true));
        self.raise_restore_epoch();
        for _ in 0..400 {
            self.apply_some();
            for index in 0..self.gateways.len() {
                if self.gateways[index].session.is_none() {
                    self.connect(index)?;
                }
                self.member_side(index)?;
                self.receive(index);
                self.swap(index);
                self.hear(index);
                self.check()?;
            }
        }
        for (index, gateway) in self.gateways.iter().enumerate() {
            let (suited, _) = suit(self.newest(), &gateway.features);
            if gateway.running.version.policy() != suited.version.policy()
                || gateway.running.resources != suited.resources
            {
                return Err(format!("gateway {index} still runs {} when all is well", gateway.running.version));
            }
        }
        Ok(())
    }
}

fn take(held: &Held, update: &ConfigUpdate, plant: Plant) -> Result<Held, Refusal> {
    match (held.take(update), plant) {
        (Err(Refusal::Regression { running, offered }), Plant::TakeRegressions) => {
            let older = Held { version: Version::default(), resources: held.resources.clone() };
            older.take(update).map_err(|_| Refusal::Regression { running, offered })
        }
        (Err(Refusal::WrongBase { .. }), Plant::WrongBase) => {
            let mut resources = held.resources.clone();
            update.removals.iter().for_each(|name| resources.remove(name));
            update.upserts.iter().for_each(|row| resources.put(row.clone().into()));
            Ok(Held { version: update.version.unwrap().into(), resources })
        }
        (taken, _) => taken,
    }
}

fn version(restore_epoch: u64, revision: u64, fleet: u64) -> Version {
    Version { restore_epoch, revision, fleet }
}

fn resource(name: &str, random: &mut Random) -> Resource {
    let service = ServiceConfig {
        name: name.rsplit('/').next().unwrap().to_owned(),
        hosts: vec![random.below(4).to_string()],
        ..ServiceConfig::default()
    };
    let needs = random.below(6);
    let resource = compile::resource(Body::Service(service));
    Resource::from(ConfigResource {
        name: name.to_owned(),
        version: [resource.version.as_ref(), &[needs as u8]].concat().into(),
        required_features: FEATURES.get(needs).map(ToString::to_string).into_iter().collect(),
        ..resource
    })
}

fn features(random: &mut Random) -> BTreeSet<String> {
    FEATURES.iter().filter(|_| random.below(2) == 0).map(ToString::to_string).collect()
}

fn all_features() -> impl Iterator<Item = BTreeSet<String>> {
    (0..1 << FEATURES.len()).map(|bits: usize| {
        let chosen = FEATURES.iter().enumerate().filter(|(place, _)| bits >> place & 1 == 1);
        chosen.map(|(_, name)| (*name).to_owned()).collect()
    })
}

struct Random(SplitMix64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }
}

fn run(seed: u64, plant: Plant) -> Result<Stats, String> {
    let mut world = World::new(seed, plant);
    for _ in 0..STEPS {
        world.checked_step()?;
    }
    world.heal()?;
    Ok(world.stats)
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    match (number("SIM_SEED"), number("SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(200),
    }
}

const STEPS: usize = 1_500;

#[test]
fn safe_under_faults_and_convergent_after() {
    let seeds = seeds();
    let count = seeds.end - seeds.start;
    let mut total = Stats::default();
    for seed in seeds {
        let stats = run(seed, Plant::Nothing).unwrap_or_else(|why| panic!("{why}\nrerun with SIM_SEED={seed}"));
        total.commits += stats.commits;
        total.acks += stats.acks;
        total.refusals += stats.refusals;
        total.fulls += stats.fulls;
        total.deltas += stats.deltas;
        total.asked += stats.asked;
        total.breaks += stats.breaks;
        total.restores += stats.restores;
        total.behind += stats.behind;
        total.closed += stats.closed;
    }
    println!("{count} seeds: {total:?}");
    // Guards against a simulation that passes because nothing happens in it.
    if count >= 100 {
        let all = [total.acks, total.fulls, total.deltas, total.asked, total.restores, total.behind, total.closed];
        assert!(all.iter().all(|seen| *seen > count), "{total:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 4] {
        assert_eq!(run(seed, Plant::Nothing), run(seed, Plant::Nothing), "seed {seed}");
    }
}

fn caught(plant: Plant) -> String {
    let found = (0..150).find_map(|seed| run(seed, plant).err().map(|why| (seed, why)));
    let (seed, why) = found.unwrap_or_else(|| panic!("{plant:?} went unnoticed"));
    println!("{plant:?} shows at seed {seed}: {why}");
    why
}

#[test]
fn an_offer_without_a_barrier_is_caught() {
    assert!(caught(Plant::OfferWithoutBarrier).contains("is offered in a session that began at"));
}

#[test]
fn taking_what_is_older_is_caught() {
    assert!(caught(Plant::TakeRegressions).contains("went back"));
}

#[test]
fn acknowledging_before_the_swap_is_caught() {
    assert!(caught(Plant::AckBeforeSwap).contains("acknowledges"));
}

#[test]
fn a_difference_on_a_wrong_base_is_caught() {
    assert!(caught(Plant::WrongBase).contains("nobody committed"));
}
