//! Every reason that an event can have, in one table: the documentation is held against it.

use std::fmt;

use archipelago_proto::v1::EventSeverity;

/// What is said of a reason.
#[derive(Debug, Clone, Copy)]
pub struct ReasonInfo {
    /// The reason.
    pub reason: Reason,
    /// As programs read it.
    pub name: &'static str,
    /// What it is a kind of.
    pub kind: &'static str,
    /// How bad it is.
    pub severity: EventSeverity,
    /// Who says it: "gateway", "member", "log".
    pub said_by: &'static str,
    /// When it is said.
    pub meaning: &'static str,
}

macro_rules! reasons {
    ($($kind:literal { $($name:ident $severity:ident $said_by:literal $meaning:literal)+ })+) => {
        /// Why there is an event. A name means one thing for ever: what changes its meaning gets a new name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $meaning] $name,)+)+
        }

        /// All kinds of events.
        pub const KINDS: &[&str] = &[$($kind),+];

        /// All reasons, by kind.
        pub const REASONS: &[ReasonInfo] = &[$($(ReasonInfo {
            reason: Reason::$name,
            name: stringify!($name),
            kind: $kind,
            severity: EventSeverity::$severity,
            said_by: $said_by,
            meaning: $meaning,
        }),+),+];

        impl Reason {
            /// What is said of it.
            #[must_use]
            pub fn info(self) -> ReasonInfo {
                match self {
                    $($(Self::$name => ReasonInfo {
                        reason: self,
                        name: stringify!($name),
                        kind: $kind,
                        severity: EventSeverity::$severity,
                        said_by: $said_by,
                        meaning: $meaning,
                    },)+)+
                }
            }
        }
    };
}

reasons! {
    "failover" {
        Failover Warning "gateway" "A cluster cannot serve a service any more as this gateway sees it, and others serve in its place."
        Failback Info "gateway" "A cluster that was away serves the service again; with a ramp, a growing share of it."
        FailbackComplete Info "gateway" "What stood in for a cluster that came back serves no longer."
        TrafficMoved Info "gateway" "Other clusters serve a service because an operator wanted that: a policy, a drain, a trigger."
        ServiceUnavailable Error "gateway" "No cluster can serve a service as this gateway sees it: requests for it fail."
        ServiceAvailable Info "gateway" "A service that no cluster could serve is served again."
        ClusterUnreachable Warning "gateway" "None of the gateways of another cluster that this gateway keeps tunnels to can be reached."
        ClusterReachable Info "gateway" "A gateway of a cluster that could not be reached can be reached again."
        GatewayUnreachable Warning "gateway" "A gateway of another cluster is silent, or its connection broke: nothing is sent there."
        GatewayReachable Info "gateway" "A gateway that could not be reached can be reached again."
    }
    "ejection" {
        EndpointEjected Warning "gateway" "An endpoint failed several requests in a row and sits out for a while."
        EndpointHung Warning "gateway" "An endpoint left requests unanswered and was silent meanwhile; it sits out for a while."
        EndpointUnreachable Warning "gateway" "Connections to an endpoint come to nothing: none of its requests is sent there."
        EndpointReturned Info "gateway" "An endpoint that sat out is given requests again, or is gone."
    }
    "drain" {
        ClusterDrained Info "log" "An operator drains a cluster: its services are served by others as far as those can."
        ClusterUncordoned Info "log" "An operator ended the drain of a cluster."
        GatewayDraining Info "gateway" "A gateway ends, or a peer said that it does: what is in flight is finished, nothing new is taken."
    }
    "config" {
        ConfigRejected Warning "member" "A gateway cannot use a resource; it runs the form before, or answers it closed."
        ConfigUnsupported Warning "member" "A gateway lacks a feature that a resource needs, and answers that service closed."
        ConfigRefused Error "member" "A gateway will not run a whole revision and stays with what it has."
        ConfigAccepted Info "member" "A gateway runs what it could not use before."
        PortUnavailable Warning "member" "A gateway cannot have the port of a TCP service or of a capture."
        PortAvailable Info "member" "A gateway has the port that it could not have before."
    }
    "certificate" {
        IdentityRevoked Warning "log" "Certificates of an identity that were issued before are refused from now on."
        OperatorCertificateIssued Info "log" "An operator was given a certificate."
        CertificateRenewalOverdue Warning "gateway" "A gateway's certificate should have been renewed by now, and was not."
        CertificateExpiring Error "gateway" "A gateway's certificate ends soon, and renewing it fails."
        CertificateRenewed Info "gateway" "A gateway's certificate that was overdue has been renewed."
        AuthorityInstalled Info "log" "The certificate authority of the federation was founded."
    }
    "membership" {
        TokenCreated Info "log" "An operator made a join token."
        TokenUsed Info "log" "A gateway or an agent joined by a token."
        ClusterJoined Info "log" "The first gateway, or the first report, of a cluster."
        GatewayRegistered Info "log" "A gateway is in the registry for the first time: others open tunnels to it."
        ServiceOffered Info "log" "A cluster offers a service that it did not offer before."
        ServiceWithdrawn Info "log" "A cluster offers a service no longer."
        GatewayConnected Info "member" "A gateway opened its session with the control plane."
        GatewayReplaced Info "member" "A gateway's process was replaced by another while it was connected."
        GatewayDisconnected Warning "member" "A gateway's session with the control plane ended; its traffic does not need it."
        AgentConnected Info "member" "A cluster's agent opened its session with the control plane."
        AgentDisconnected Warning "member" "The session of a cluster's agent with the control plane ended."
        ClusterDisconnected Error "member" "Neither a gateway nor the agent of a cluster is connected to the control plane."
        ClusterConnected Info "member" "A cluster of which nothing was connected is connected again."
        MemberStarted Info "member" "A member of the control plane started; what it saw before is forgotten."
        LeaderElected Info "member" "A member of the control plane became its leader."
        LeaderMissing Error "member" "A member has known no leader for a while: nothing can be written there."
        MemberUnreachable Warning "member" "The leader does not hear another member."
        MemberReachable Info "member" "The leader hears a member again."
        MemberAdded Info "log" "An operator added a member to the control plane: it takes the log, and has no vote yet."
        MemberPromoted Info "member" "A member that was added has caught up and has a vote."
        MemberRemoved Info "log" "An operator took a member out of the control plane: its certificates are refused."
        EventsLost Warning "member" "A gateway forgot events before this member had heard of them."
        LogFormatRaised Info "log" "All members know a newer format of the log, and use it from now on."
        RestoreDeclared Warning "log" "An operator declared that a backup was restored."
    }
    "write" {
        ResourceCreated Info "log" "A resource was created."
        ResourceUpdated Info "log" "A resource was changed."
        ResourceDeleted Info "log" "A resource was deleted."
        ResourcesWritten Info "log" "A write changed more resources than are named one by one."
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.info().name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_words_and_each_is_there_once() {
        let names: BTreeSet<_> = REASONS.iter().map(|info| info.name).collect();
        assert_eq!(names.len(), REASONS.len());
        for info in REASONS {
            assert!(KINDS.contains(&info.kind) && info.reason.info().name == info.name);
            assert!(info.name.bytes().all(|b| b.is_ascii_alphabetic()) && info.name.as_bytes()[0].is_ascii_uppercase());
            assert!(matches!(info.said_by, "gateway" | "member" | "log"), "{}", info.name);
        }
    }

    /// The page that people read has a line for each, with the same words.
    #[test]
    fn the_documentation_has_them_all_and_no_others() {
        let page = include_str!("../../../../docs/events.md");
        let severity = |info: &ReasonInfo| match info.severity {
            EventSeverity::Error => "error",
            EventSeverity::Warning => "warning",
            EventSeverity::Info | EventSeverity::Unspecified => "info",
        };
        let line = |info: &ReasonInfo| {
            format!("| {} | `{}` | {} | {} | {} |", info.kind, info.name, severity(info), info.said_by, info.meaning)
        };
        let expected: Vec<String> = REASONS.iter().map(line).collect();
        let found: Vec<&str> = page.lines().filter(|line| line.contains("| `")).collect();
        assert_eq!(found, expected, "write into docs/events.md:\n{}", expected.join("\n"));
    }
}
