//! What people are told of the stream to the control plane: in the log, once each time it changes, and on the admin socket.

use archipelago_model::stream::Refusal;
use archipelago_model::version::Version;
use archipelago_proto::v1::{ConfigVersion, Problem, ResourceRejection, notice::Notice};

/// State of the stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ControlStatus {
    /// A member answers.
    pub connected: bool,
    /// Why none does, or why the one that does offers nothing; empty: all is well.
    pub trouble: String,
    /// What this gateway said of itself and the control plane does not use.
    pub problems: Vec<Problem>,
    /// Resources that cannot be used here.
    pub rejections: Vec<ResourceRejection>,
}

impl ControlStatus {
    pub(super) fn connected(&mut self) {
        self.connected = true;
        self.trouble.clear();
    }

    pub(super) fn disconnected(&mut self, why: &str) {
        self.connected = false;
        why.clone_into(&mut self.trouble);
    }

    pub(super) fn applied(&mut self, rejections: &[ResourceRejection]) {
        self.trouble.clear();
        if self.rejections != rejections {
            for ResourceRejection { resource, reason, .. } in rejections {
                tracing::warn!(resource, reason, "a resource cannot be used here");
            }
            self.rejections = rejections.to_vec();
        }
    }

    pub(super) fn refused(&mut self, refusal: &Refusal) {
        self.trouble = refusal.to_string();
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::NoLeader(from) => {
                self.trouble = format!("no leader: cp-{} has no majority, and offers nothing", from.member);
                tracing::info!(
                    member = from.member,
                    "the control plane knows no leader; the configuration stays as it is"
                );
            }
            Notice::HasLeader(from) => {
                self.trouble.clear();
                tracing::info!(member = from.member, "the control plane has a leader again");
            }
            Notice::Behind(behind) => {
                let shown = |version: Option<ConfigVersion>| version.map_or_else(Version::default, Version::from);
                self.trouble = format!(
                    "runs revision {}, cp-{} offers {}; after a restore run `meshctl raft restored`",
                    shown(behind.running),
                    behind.member,
                    shown(behind.newest)
                );
                tracing::warn!(
                    trouble = self.trouble,
                    "the control plane is older than this gateway; nothing is taken from it"
                );
            }
            Notice::Problems(problems) => {
                if self.problems != problems.problems {
                    for Problem { subject, reason } in &problems.problems {
                        tracing::warn!(
                            subject,
                            reason,
                            "the control plane does not use what this gateway says of itself"
                        );
                    }
                }
                self.problems = problems.problems;
            }
        }
    }
}
