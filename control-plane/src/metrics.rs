//! Metrics of a member, all declared here.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};
use tonic::Code;

use crate::{
    api::Context,
    consensus::CommitError,
    machine::command::{Answer, Outcome},
};

/// Everything that is counted when it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    commits: Family<ResultLabel, Counter>,
    commit_seconds: Histogram,
    joins: Family<ResultLabel, Counter>,
    issued: Counter,
    audit_dropped: Counter,
    updates: Counter,
    update_resources: Counter,
    acks: Family<ResultLabel, Counter>,
    raft_dropped: Family<ReasonLabel, Counter>,
    snapshots: Family<ResultLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl Metrics {
    /// Registers every metric of this crate; names carry the prefix `mesh_control_plane`.
    pub(crate) fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            commits: Family::default(),
            commit_seconds: Histogram::new(COMMIT_BUCKETS),
            joins: Family::default(),
            issued: Counter::default(),
            audit_dropped: Counter::default(),
            updates: Counter::default(),
            update_resources: Counter::default(),
            acks: Family::default(),
            raft_dropped: Family::default(),
            snapshots: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix(PREFIX);
        registry.register(
            "commits",
            "Commands that this member carried to the leader, by result",
            metrics.commits.clone(),
        );
        registry.register(
            "commit_seconds",
            "From a command's receipt by this member to its outcome",
            metrics.commit_seconds.clone(),
        );
        registry.register("joins", "Uses of join tokens, by result", metrics.joins.clone());
        registry.register("svids_issued", "Certificates issued by this member", metrics.issued.clone());
        registry.register(
            "audit_records_dropped",
            "Issued certificates that could not be noted in the audit list",
            metrics.audit_dropped.clone(),
        );
        registry.register("config_updates", "Configuration updates sent to gateways", metrics.updates.clone());
        registry.register(
            "config_update_resources",
            "Resources changed or removed in those updates",
            metrics.update_resources.clone(),
        );
        registry.register("config_acks", "Verdicts of gateways on updates, by result", metrics.acks.clone());
        registry.register("raft_messages_dropped", "Raft messages not sent, by reason", metrics.raft_dropped.clone());
        registry.register("raft_snapshots_sent", "Snapshots sent to peers, by result", metrics.snapshots.clone());
        // Present from the start: the first of its kind must be seen as an increase.
        for (family, results) in [
            (&metrics.commits, &COMMIT_RESULTS[..]),
            (&metrics.joins, &JOIN_RESULTS),
            (&metrics.acks, &["applied", "rejected"]),
            (&metrics.snapshots, &["delivered", "failed"]),
        ] {
            for result in results {
                drop(family.get_or_create(&ResultLabel { result }));
            }
        }
        for reason in DROPPED {
            drop(metrics.raft_dropped.get_or_create(&ReasonLabel { reason }));
        }
        Arc::new(metrics)
    }

    pub(crate) fn commit(&self, result: &Result<Outcome, CommitError>, elapsed: Duration) {
        let result = match result {
            Ok(Outcome { answer: Some(Answer::Refused(_)), .. }) => "refused",
            Ok(_) => "committed",
            Err(CommitError::NoLeader { .. }) => "no_leader",
            Err(CommitError::Overloaded) => "overloaded",
            Err(CommitError::DiskFull(_)) => "disk_full",
            Err(CommitError::TooFast { .. }) => "too_fast",
            Err(_) => "failed",
        };
        self.commits.get_or_create(&ResultLabel { result }).inc();
        if result == "committed" {
            self.commit_seconds.observe(elapsed.as_secs_f64());
        }
    }

    pub(crate) fn join(&self, result: Result<(), Code>) {
        let result = match result {
            Ok(()) => "joined",
            Err(Code::Unauthenticated) => "unknown_token",
            Err(Code::PermissionDenied) => "refused",
            Err(Code::InvalidArgument) => "bad_request",
            Err(_) => "failed",
        };
        self.joins.get_or_create(&ResultLabel { result }).inc();
    }

    pub(crate) fn issued(&self) {
        self.issued.inc();
    }

    pub(crate) fn audit_dropped(&self) {
        self.audit_dropped.inc();
    }

    pub(crate) fn update_sent(&self, resources: usize) {
        self.updates.inc();
        self.update_resources.inc_by(resources as u64);
    }

    pub(crate) fn acked(&self) {
        self.acks.get_or_create(&ResultLabel { result: "applied" }).inc();
    }

    pub(crate) fn rejected(&self) {
        self.acks.get_or_create(&ResultLabel { result: "rejected" }).inc();
    }

    pub(crate) fn raft_dropped(&self, reason: &'static str) {
        self.raft_dropped.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn snapshot_sent(&self, delivered: bool) {
        let result = if delivered { "delivered" } else { "failed" };
        self.snapshots.get_or_create(&ResultLabel { result }).inc();
    }
}

/// Values read when they are scraped. Bound to the member once that exists.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scraped(Arc<OnceLock<Weak<Context>>>);

impl Scraped {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let scraped = Self::default();
        registry.register_collector(Box::new(scraped.clone()));
        scraped
    }

    pub(crate) fn bind(&self, context: &Arc<Context>) {
        // Bound once, at start.
        let _ = self.0.set(Arc::downgrade(context));
    }
}

impl Collector for Scraped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(context) = self.0.get().and_then(Weak::upgrade) else { return Ok(()) };
        let status = context.consensus.raft.status();
        let (gateways, agents) = context.sessions.local_counts();
        let leads = status.leader == Some(context.consensus.node_id);
        let version = context.consensus.published.version();
        let gauges = [
            ("raft_term", "Newest Raft term known here", status.term),
            ("raft_is_leader", "1 while this member leads", u64::from(leads)),
            ("raft_has_leader", "1 while this member knows a leader", u64::from(status.leader.is_some())),
            ("raft_commit_index", "Highest log index known to be committed", status.commit),
            ("raft_last_index", "End of the log here", status.last_index),
            ("raft_applied_index", "Highest log index applied here", status.applied_index),
            (
                "raft_disk_full",
                "1 while this member takes no writes because its disk is full",
                u64::from(status.disk_full.is_some()),
            ),
            (
                "raft_state_diverged",
                "1 while the states of members are known to differ after the same log index",
                u64::from(status.divergence.is_some()),
            ),
            ("revision", "Policy revision applied here", version.revision),
            ("fleet_version", "Fleet version applied here", version.fleet),
            ("gateway_sessions", "Gateways connected to this member", gateways as u64),
            ("agent_sessions", "Agents connected to this member", agents as u64),
            (
                "authority_unsealed",
                "1 while this member can issue certificates",
                u64::from(context.authority.get().is_ok()),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let name = format!("{PREFIX}_{name}");
            gauge.encode(encoder.encode_descriptor(&name, help, None, gauge.metric_type())?)?;
        }
        let writes = context.consensus.raft.log_writes();
        let name = format!("{PREFIX}_raft_log_write_seconds");
        let help = "Time to make a group of log entries durable, with one fsync";
        let mut histogram = encoder.encode_descriptor(&name, help, None, MetricType::Histogram)?;
        let count = writes.buckets.iter().map(|(_, count)| count).sum();
        histogram.encode_histogram::<NoLabelSet>(writes.seconds, count, &writes.buckets, None)?;
        Ok(())
    }
}

const COMMIT_RESULTS: [&str; 7] =
    ["committed", "refused", "no_leader", "overloaded", "disk_full", "too_fast", "failed"];
const DROPPED: [&str; 3] = ["unknown_peer", "queue_full", "unreachable"];
const JOIN_RESULTS: [&str; 5] = ["joined", "unknown_token", "refused", "bad_request", "failed"];
const PREFIX: &str = "mesh_control_plane";
/// From a commit on a fast disk to more than one failed election.
const COMMIT_BUCKETS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, units and types are an interface: dashboards and rules are written against them.
    #[test]
    fn golden_names() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.commit(&Err(CommitError::Stopped), Duration::ZERO);
        metrics.join(Ok(()));
        metrics.acked();
        metrics.rejected();
        metrics.raft_dropped("queue_full");
        metrics.snapshot_sent(true);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let samples: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.contains("_bucket"))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let expected = [
            "mesh_control_plane_commits_total{result=\"committed\"}",
            "mesh_control_plane_commits_total{result=\"refused\"}",
            "mesh_control_plane_commits_total{result=\"no_leader\"}",
            "mesh_control_plane_commits_total{result=\"overloaded\"}",
            "mesh_control_plane_commits_total{result=\"disk_full\"}",
            "mesh_control_plane_commits_total{result=\"too_fast\"}",
            "mesh_control_plane_commits_total{result=\"failed\"}",
            "mesh_control_plane_commit_seconds_sum",
            "mesh_control_plane_commit_seconds_count",
            "mesh_control_plane_joins_total{result=\"joined\"}",
            "mesh_control_plane_joins_total{result=\"unknown_token\"}",
            "mesh_control_plane_joins_total{result=\"refused\"}",
            "mesh_control_plane_joins_total{result=\"bad_request\"}",
            "mesh_control_plane_joins_total{result=\"failed\"}",
            "mesh_control_plane_svids_issued_total",
            "mesh_control_plane_audit_records_dropped_total",
            "mesh_control_plane_config_updates_total",
            "mesh_control_plane_config_update_resources_total",
            "mesh_control_plane_config_acks_total{result=\"applied\"}",
            "mesh_control_plane_config_acks_total{result=\"rejected\"}",
            "mesh_control_plane_raft_messages_dropped_total{reason=\"queue_full\"}",
            "mesh_control_plane_raft_messages_dropped_total{reason=\"unknown_peer\"}",
            "mesh_control_plane_raft_messages_dropped_total{reason=\"unreachable\"}",
            "mesh_control_plane_raft_snapshots_sent_total{result=\"delivered\"}",
            "mesh_control_plane_raft_snapshots_sent_total{result=\"failed\"}",
        ];
        let mut sorted = samples.clone();
        sorted.sort_unstable();
        let mut wanted = expected.to_vec();
        wanted.sort_unstable();
        assert_eq!(sorted, wanted);
    }
}
