//! What a person wants changed: the same edits as those of `meshctl`'s verbs, on the one resource that each is about. Pure.

use archipelago_model::edit::{
    self, Edit, ServiceName, Share, Target, cluster, failover,
    names::label,
    split::{SplitEdit, set_split},
    switch,
};
use serde::Deserialize;
use serde_json::Value;

/// A request to change something; which of the fields there are depends on the verb.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ask {
    /// Show what would change.
    pub dry_run: bool,
    /// Of the plan that was shown.
    #[serde(default)]
    pub basis: Option<String>,
    /// The page's own name for this request, the same when it is repeated.
    #[serde(default)]
    pub request_id: Option<String>,
    #[serde(default)]
    service: Option<String>,
    #[serde(default)]
    cluster: Option<String>,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    backends: Option<Vec<AskBackend>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskBackend {
    cluster: String,
    #[serde(default)]
    version: Option<String>,
    weight: u32,
}

/// What is to be changed, checked for its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Other shares of the requests that no route singles out.
    Split {
        /// Whose.
        service: ServiceName,
        /// Never empty.
        shares: Vec<Share>,
    },
    /// No split.
    ClearSplit {
        /// Whose.
        service: ServiceName,
    },
    /// All requests to one place.
    Switch {
        /// Whose.
        service: ServiceName,
        /// Where.
        target: Target,
    },
    /// The split before the latest switch.
    UndoSwitch {
        /// Whose.
        service: ServiceName,
    },
    /// A cluster serves no more as long as others can; or does again.
    Drain {
        /// Which.
        cluster: String,
        /// Or does again.
        drained: bool,
    },
    /// One service away from a cluster.
    Failover {
        /// Which.
        service: ServiceName,
        /// Away from here.
        cluster: String,
    },
    /// The end of that.
    Release {
        /// Which.
        service: ServiceName,
        /// `None`: from everywhere that it was moved away from.
        cluster: Option<String>,
    },
}

impl Wish {
    /// Reads a request; `Ok(None)`: there is no such verb.
    ///
    /// # Errors
    /// A sentence: something is missing, too much, or no name.
    pub fn read(verb: &str, ask: &Ask) -> Result<Option<Self>, String> {
        let Ask { service, cluster, version, backends, .. } = ask.clone();
        let given = [
            ("service", service.is_some()),
            ("cluster", cluster.is_some()),
            ("version", version.is_some()),
            ("backends", backends.is_some()),
        ];
        let (needed, possible): (&[&str], &[&str]) = match verb {
            "split" => (&["service", "backends"], &[]),
            "clear-split" | "undo-switch" => (&["service"], &[]),
            "switch" => (&["service", "cluster"], &["version"]),
            "drain" | "undrain" => (&["cluster"], &[]),
            "failover" => (&["service", "cluster"], &[]),
            "release" => (&["service"], &["cluster"]),
            _ => return Ok(None),
        };
        for (field, is_given) in given {
            match (is_given, needed.contains(&field), possible.contains(&field)) {
                (false, true, _) => return Err(format!("`{field}` is missing")),
                (true, false, false) => return Err(format!("{verb} has no `{field}`")),
                _ => {}
            }
        }
        let named = |cluster: String| match label(&cluster) {
            Ok(()) => Ok(cluster),
            Err(why) => Err(format!("cluster {cluster:?} {why}")),
        };
        let service = || service.as_deref().unwrap_or_default().parse::<ServiceName>();
        let one_cluster = || named(cluster.clone().unwrap_or_default());
        let version = version.filter(|version| !version.is_empty());
        let wish = match verb {
            "split" => {
                let shares = backends.unwrap_or_default().into_iter().map(|one| {
                    let version = one.version.filter(|version| !version.is_empty());
                    Ok(Share { target: Target { cluster: named(one.cluster)?, version }, weight: one.weight })
                });
                let shares: Vec<Share> = shares.collect::<Result<_, String>>()?;
                if shares.is_empty() {
                    return Err("a split needs a cluster at least".to_owned());
                }
                Self::Split { service: service()?, shares }
            }
            "clear-split" => Self::ClearSplit { service: service()? },
            "switch" => Self::Switch { service: service()?, target: Target { cluster: one_cluster()?, version } },
            "undo-switch" => Self::UndoSwitch { service: service()? },
            "drain" | "undrain" => Self::Drain { cluster: one_cluster()?, drained: verb == "drain" },
            "failover" => Self::Failover { service: service()?, cluster: one_cluster()? },
            _ => Self::Release { service: service()?, cluster: cluster.map(named).transpose()? },
        };
        Ok(Some(wish))
    }

    /// Kind of the resource that it is about.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Split { .. } | Self::ClearSplit { .. } | Self::Switch { .. } | Self::UndoSwitch { .. } => {
                "TrafficSplit"
            }
            Self::Failover { .. } | Self::Release { .. } => "FailoverPolicy",
            Self::Drain { .. } => "Cluster",
        }
    }

    /// The service that it is about.
    #[must_use]
    pub const fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Split { service, .. }
            | Self::ClearSplit { service }
            | Self::Switch { service, .. }
            | Self::UndoSwitch { service }
            | Self::Failover { service, .. }
            | Self::Release { service, .. } => Some(service),
            Self::Drain { .. } => None,
        }
    }

    /// The namespace of the resource; empty for a kind without one.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.service().map_or("", |service| &service.namespace)
    }

    /// Whether a document of the kind is the one.
    #[must_use]
    pub fn is_about(&self, document: &Value) -> bool {
        match self {
            Self::Drain { cluster, .. } => edit::name(document) == cluster,
            _ => self.service().is_some_and(|service| edit::is_about(document, service)),
        }
    }

    /// The next form of the resource.
    ///
    /// # Errors
    /// A sentence: there is nothing of this to change.
    pub fn change(&self, current: Option<&Value>) -> Result<Edit, String> {
        match self {
            Self::Split { service, shares } => {
                let edit = SplitEdit { shares: shares.clone(), ..SplitEdit::default() };
                Ok(Edit::Apply(set_split(current, service, &edit)))
            }
            Self::ClearSplit { service } => {
                current.map(|_| Edit::Delete).ok_or_else(|| format!("{service} has no split"))
            }
            Self::Switch { service, target } => Ok(Edit::Apply(switch::switch(current, service, target))),
            Self::UndoSwitch { service } => {
                current.and_then(switch::undo).ok_or_else(|| format!("there is no switch of {service} to undo"))
            }
            Self::Drain { cluster: name, drained } => match current {
                Some(current) => Ok(Edit::Apply(cluster::drained(current, *drained))),
                None => Err(format!("there is no cluster {name}")),
            },
            Self::Failover { service, cluster } => Ok(Edit::Apply(failover::trigger(current, service, cluster))),
            Self::Release { service, cluster } => {
                current.and_then(|policy| failover::release(policy, cluster.as_deref())).ok_or_else(|| {
                    let place = cluster.as_deref().unwrap_or("any cluster");
                    format!("{service} was not moved away from {place} by hand")
                })
            }
        }
    }

    /// The command line that does the same.
    #[must_use]
    pub fn command(&self) -> String {
        match self {
            Self::Split { service, shares } => {
                let shares: Vec<String> =
                    shares.iter().map(|share| quoted(&format!("{}={}", share.target, share.weight))).collect();
                format!("meshctl split set {service} {}", shares.join(" "))
            }
            Self::ClearSplit { service } => format!("meshctl split clear {service}"),
            Self::Switch { service, target } => {
                format!("meshctl switch {service} --to {}", quoted(&target.to_string()))
            }
            Self::UndoSwitch { service } => format!("meshctl switch {service} --undo"),
            Self::Drain { cluster, drained: true } => format!("meshctl cluster drain {cluster}"),
            Self::Drain { cluster, drained: false } => format!("meshctl cluster uncordon {cluster}"),
            Self::Failover { service, cluster } => format!("meshctl failover trigger {service} --from {cluster}"),
            Self::Release { service, cluster: Some(cluster) } => {
                format!("meshctl failover release {service} --from {cluster}")
            }
            Self::Release { service, cluster: None } => format!("meshctl failover release {service}"),
        }
    }
}

/// Fit to paste into a shell: a version is what a workload says it is.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:=/".contains(&byte);
    if word.bytes().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(verb: &str, fields: Value) -> Result<Option<Wish>, String> {
        let mut ask = json!({ "dryRun": true });
        ask.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Wish::read(verb, &serde_json::from_value(ask).map_err(|error| error.to_string())?)
    }

    /// Each verb, as the page asks for it: the command that does the same, and what it does to a resource that is not there.
    #[test]
    fn each_verb_is_a_command_of_meshctl() {
        let service = json!({ "service": "shop/checkout" });
        let both = json!({ "service": "shop/checkout", "cluster": "tokyo" });
        for (verb, fields, command, of_nothing) in [
            (
                "split",
                json!({ "service": "shop/checkout", "backends": [{ "cluster": "paris", "weight": 9 },
                        { "cluster": "tokyo", "version": "v2", "weight": 1 }] }),
                "meshctl split set shop/checkout paris=9 tokyo:v2=1",
                true,
            ),
            ("clear-split", service.clone(), "meshctl split clear shop/checkout", false),
            ("switch", both.clone(), "meshctl switch shop/checkout --to tokyo", true),
            (
                "switch",
                json!({ "service": "shop/checkout", "cluster": "tokyo", "version": "v2; 'x'" }),
                r"meshctl switch shop/checkout --to 'tokyo:v2; '\''x'\'''",
                true,
            ),
            ("undo-switch", service.clone(), "meshctl switch shop/checkout --undo", false),
            ("drain", json!({ "cluster": "tokyo" }), "meshctl cluster drain tokyo", false),
            ("undrain", json!({ "cluster": "tokyo" }), "meshctl cluster uncordon tokyo", false),
            ("failover", both.clone(), "meshctl failover trigger shop/checkout --from tokyo", true),
            ("release", both.clone(), "meshctl failover release shop/checkout --from tokyo", false),
            ("release", service.clone(), "meshctl failover release shop/checkout", false),
        ] {
            let wish = read(verb, fields).unwrap().unwrap();
            assert_eq!(wish.command(), command);
            assert_eq!(wish.change(None).is_ok(), of_nothing, "{verb}");
        }
        assert_eq!(read("format", json!({})), Ok(None));
    }

    #[test]
    fn what_is_missing_or_too_much_or_no_name_is_refused() {
        for (verb, fields, part) in [
            ("split", json!({ "service": "shop/web" }), "`backends` is missing"),
            ("split", json!({ "service": "shop/web", "backends": [] }), "at least"),
            ("split", json!({ "service": "shop/web", "backends": [{ "cluster": "a b", "weight": 1 }] }), "a b"),
            (
                "split",
                json!({ "service": "shop/web", "backends": [{ "cluster": "a", "weight": -1 }] }),
                "invalid value",
            ),
            ("switch", json!({ "service": "shop/web" }), "`cluster` is missing"),
            ("switch", json!({ "service": "<b>", "cluster": "a" }), "no namespace"),
            ("drain", json!({ "cluster": "a", "service": "shop/web" }), "has no `service`"),
            ("drain", json!({ "cluster": "../a" }), "lower-case"),
            ("drain", json!({ "cluster": "a", "force": true }), "unknown field"),
        ] {
            let said = read(verb, fields).unwrap_err();
            assert!(said.contains(part), "{said}");
        }
    }

    /// A switch and its way back, as two plans.
    #[test]
    fn undo_takes_back_what_a_switch_did() {
        let to = json!({ "service": "shop/checkout", "cluster": "tokyo" });
        let switch = read("switch", to).unwrap().unwrap();
        let before = json!({ "metadata": { "name": "weekend", "namespace": "shop" },
            "spec": { "service": "checkout", "backends": [{ "cluster": "paris", "weight": 1 }] } });
        assert!(switch.is_about(&before) && switch.namespace() == "shop" && switch.kind() == "TrafficSplit");
        let Edit::Apply(after) = switch.change(Some(&before)).unwrap() else { panic!("a switch writes") };
        assert_eq!(after["spec"]["backends"], json!([{ "cluster": "tokyo", "weight": 1 }]));
        let undo = read("undo-switch", json!({ "service": "shop/checkout" })).unwrap().unwrap();
        assert_eq!(undo.change(Some(&after)).unwrap(), Edit::Apply(before));
    }
}
