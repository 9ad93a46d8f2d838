//! What the sessions of gateways and agents show, as events. Pure.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_model::event::{Draft, Reason};
use archipelago_model::version::Version;
use archipelago_proto::v1::{GatewayHello, Kept, Problem, ResourceRejection};

/// A gateway begins a session; `before`: the place in the order of starts of the session that it has still, or had last.
pub(crate) fn gateway_connected(hello: &GatewayHello, before: Option<u64>) -> Draft {
    let boot = hello.order.map_or(0, |order| order.boot);
    let is_another = before.is_some_and(|before| before < boot);
    let reason = if is_another { Reason::GatewayReplaced } else { Reason::GatewayConnected };
    let running = hello.running.map_or_else(Version::default, Version::from);
    let runs = match running.revision {
        0 => "has no configuration yet".to_owned(),
        revision => format!("runs revision {revision}"),
    };
    let version = match hello.software_version.as_str() {
        "" => String::new(),
        version => format!("version {version}, "),
    };
    let verb = if is_another { "is another process now" } else { "connected" };
    let message = format!("{}/{} {verb}: {version}it {runs}", hello.cluster, hello.gateway);
    Draft { revision: running.revision, ..of_gateway(&hello.cluster, &hello.gateway, reason, message) }
}

/// A gateway's session ended by itself.
pub(crate) fn gateway_disconnected(cluster: &str, gateway: &str, why: &str) -> Draft {
    let message = format!("{cluster}/{gateway} is not connected to the control plane any more: {why}");
    of_gateway(cluster, gateway, Reason::GatewayDisconnected, message)
}

/// A cluster's agent begins a session.
pub(crate) fn agent_connected(cluster: &str, software_version: &str) -> Draft {
    let message = format!("the agent of {cluster} connected: version {software_version}");
    Draft { cluster: cluster.to_owned(), ..Draft::new(Reason::AgentConnected, message) }
}

/// An agent's session ended by itself.
pub(crate) fn agent_disconnected(cluster: &str, why: &str) -> Draft {
    let message = format!("the agent of {cluster} is not connected to the control plane any more: {why}");
    Draft { cluster: cluster.to_owned(), ..Draft::new(Reason::AgentDisconnected, message) }
}

/// What a gateway cannot use or have, as it was told before: what is news of it.
#[derive(Debug, Default)]
pub(crate) struct Unusable {
    rejected: BTreeMap<String, String>,
    unsupported: BTreeMap<String, String>,
    unserved: BTreeSet<(String, String)>,
    refused: bool,
}

impl Unusable {
    /// A gateway acknowledged `revision` with these rejections.
    pub(crate) fn acknowledged(&mut self, at: (&str, &str), revision: u64, now: &[ResourceRejection]) -> Vec<Draft> {
        let kept = |rejection: &ResourceRejection| match rejection.kept() {
            Kept::LastGood => "runs its form before",
            Kept::Closed => "refuses requests for it",
            Kept::Unspecified => "runs something else",
        };
        let words = |rejection: &ResourceRejection| {
            (rejection.resource.clone(), format!("{}; it {}", rejection.reason, kept(rejection)))
        };
        let now = now.iter().map(words).collect();
        let (before, cannot) = (std::mem::take(&mut self.rejected), "cannot use");
        let mut drafts = changes(at, revision, (Reason::ConfigRejected, cannot), &before, &now);
        self.rejected = now;
        if std::mem::take(&mut self.refused) {
            let message = format!("{}/{} runs revision {revision}, after one that it refused", at.0, at.1);
            drafts.push(Draft { revision, ..of_gateway(at.0, at.1, Reason::ConfigAccepted, message) });
        }
        drafts
    }

    /// A gateway was sent `revision` without these resources, for lack of features.
    pub(crate) fn unsupported(&mut self, at: (&str, &str), revision: u64, now: &[Problem]) -> Vec<Draft> {
        let now = now.iter().map(|problem| (problem.subject.clone(), problem.reason.clone())).collect();
        let (before, cannot) = (std::mem::take(&mut self.unsupported), "cannot have");
        let drafts = changes(at, revision, (Reason::ConfigUnsupported, cannot), &before, &now);
        self.unsupported = now;
        drafts
    }

    /// A gateway will not run a revision at all.
    pub(crate) fn refused(&mut self, (cluster, gateway): (&str, &str), revision: u64, why: &str) -> Draft {
        self.refused = true;
        let message = format!("{cluster}/{gateway} refuses revision {revision}: {why}");
        Draft { revision, ..of_gateway(cluster, gateway, Reason::ConfigRefused, message) }
    }

    /// A gateway says what it cannot serve.
    pub(crate) fn unserved(&mut self, (cluster, gateway): (&str, &str), now: &[Problem]) -> Vec<Draft> {
        let now: BTreeSet<_> = now.iter().map(|problem| (problem.subject.clone(), problem.reason.clone())).collect();
        let before = std::mem::replace(&mut self.unserved, now);
        let draft = |reason: Reason, (what, why): &(String, String), verb: &str| Draft {
            subject: what.clone(),
            service: named(why).unwrap_or_default(),
            ..of_gateway(cluster, gateway, reason, format!("{cluster}/{gateway} {verb}: {why}"))
        };
        let new = self.unserved.difference(&before);
        let new = new.map(|problem| draft(Reason::PortUnavailable, problem, "cannot have a port"));
        let gone = before.difference(&self.unserved);
        let gone =
            gone.map(|problem| draft(Reason::PortAvailable, problem, "has, or does not need, a port that it lacked"));
        new.chain(gone).take(NEWS_MAX).collect()
    }
}

/// What is there now and was not, and what was and is not.
fn changes(
    (cluster, gateway): (&str, &str),
    revision: u64,
    (reason, cannot): (Reason, &str),
    before: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) -> Vec<Draft> {
    let draft = |reason: Reason, resource: &str, message: String| Draft {
        subject: resource.to_owned(),
        service: resource.strip_prefix("service/").map(ToOwned::to_owned).unwrap_or_default(),
        revision,
        ..of_gateway(cluster, gateway, reason, message)
    };
    let new = now
        .iter()
        .filter(|(resource, why)| before.get(*resource) != Some(why))
        .map(|(resource, why)| draft(reason, resource, format!("{cluster}/{gateway} {cannot} {resource}: {why}")));
    let gone = before.keys().filter(|resource| !now.contains_key(*resource)).map(|resource| {
        draft(Reason::ConfigAccepted, resource, format!("{cluster}/{gateway} is not without {resource} any more"))
    });
    new.chain(gone).take(NEWS_MAX).collect()
}

/// The service that a sentence of a gateway begins with.
fn named(sentence: &str) -> Option<String> {
    let word = sentence.split([' ', ':']).next()?;
    let is_label = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (namespace, name) = word.split_once('/')?;
    (is_label(namespace) && is_label(name)).then(|| word.to_owned())
}

fn of_gateway(cluster: &str, gateway: &str, reason: Reason, message: String) -> Draft {
    Draft { cluster: cluster.to_owned(), gateway: format!("{cluster}/{gateway}"), ..Draft::new(reason, message) }
}

/// A gateway that cannot use more than this has one fault, not a thousand.
const NEWS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::SessionOrder;

    use super::*;

    const AT: (&str, &str) = ("paris", "gw-1");

    fn shown(drafts: &[Draft]) -> Vec<String> {
        drafts.iter().map(|draft| format!("{} [{}] {}", draft.reason, draft.service, draft.message)).collect()
    }

    fn rejection(resource: &str, reason: &str) -> ResourceRejection {
        ResourceRejection {
            resource: resource.into(),
            reason: reason.into(),
            kept: Kept::Closed.into(),
            ..ResourceRejection::default()
        }
    }

    #[test]
    fn only_news_are_told() {
        let mut unusable = Unusable::default();
        let all = [rejection("service/shop/web", "no such cluster"), rejection("mesh", "odd")];
        assert_eq!(
            shown(&unusable.acknowledged(AT, 7, &all)),
            [
                "ConfigRejected [] paris/gw-1 cannot use mesh: odd; it refuses requests for it",
                "ConfigRejected [shop/web] paris/gw-1 cannot use service/shop/web: no such cluster; it refuses requests for it"
            ]
        );
        assert_eq!(unusable.acknowledged(AT, 8, &all), []);
        assert_eq!(
            shown(&unusable.acknowledged(AT, 9, &all[1..])),
            ["ConfigAccepted [shop/web] paris/gw-1 is not without service/shop/web any more"]
        );
        assert_eq!(unusable.refused(AT, 10, "regression").message, "paris/gw-1 refuses revision 10: regression");
        assert_eq!(
            shown(&unusable.acknowledged(AT, 11, &all[1..])),
            ["ConfigAccepted [] paris/gw-1 runs revision 11, after one that it refused"]
        );
        let lacks = [Problem { subject: "service/shop/web".into(), reason: "lacks tea".into() }];
        assert_eq!(
            shown(&unusable.unsupported(AT, 12, &lacks)),
            ["ConfigUnsupported [shop/web] paris/gw-1 cannot have service/shop/web: lacks tea"]
        );
        assert_eq!(unusable.unsupported(AT, 13, &lacks), []);
        let port = [Problem { subject: "TCP service".into(), reason: "shop/ledger: port 16000 is taken".into() }];
        assert_eq!(
            shown(&unusable.unserved(AT, &port)),
            ["PortUnavailable [shop/ledger] paris/gw-1 cannot have a port: shop/ledger: port 16000 is taken"]
        );
        assert_eq!(unusable.unserved(AT, &port), []);
        assert_eq!(unusable.unserved(AT, &[])[0].reason, Reason::PortAvailable);
        let many: Vec<_> = (0..500).map(|n| rejection(&format!("service/s/s-{n}"), "no")).collect();
        assert_eq!(unusable.acknowledged(AT, 14, &many).len(), NEWS_MAX);
    }

    #[test]
    fn another_process_of_a_gateway_is_named_so() {
        let hello = |boot: u64| GatewayHello {
            cluster: "paris".into(),
            gateway: "gw-1".into(),
            software_version: "0.1.0".into(),
            order: Some(SessionOrder { boot, session: 1 }),
            ..GatewayHello::default()
        };
        let reason = |boot, before| gateway_connected(&hello(boot), before).reason;
        assert_eq!(reason(3, None), Reason::GatewayConnected);
        assert_eq!(reason(3, Some(3)), Reason::GatewayConnected, "it only came again");
        assert_eq!(reason(3, Some(2)), Reason::GatewayReplaced);
        assert_eq!(
            gateway_connected(&hello(1), None).message,
            "paris/gw-1 connected: version 0.1.0, it has no configuration yet"
        );
    }
}
