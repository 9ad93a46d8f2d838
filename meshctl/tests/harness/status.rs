//! `status -o json` as this version documents it: a field that is missing fails to parse.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) revision: Option<u64>,
    pub(crate) control_plane: ControlPlane,
    pub(crate) clusters: Vec<Cluster>,
    #[serde(default)]
    pub(crate) processes: Vec<Process>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ControlPlane {
    pub(crate) members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) role: String,
    pub(crate) address: String,
    pub(crate) applied_index: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) state: String,
    pub(crate) gateways: Vec<Gateway>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) revision: Option<u64>,
    pub(crate) http: String,
    pub(crate) tunnel: String,
    pub(crate) dns: String,
    pub(crate) metrics: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) cluster: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) state: String,
    pub(crate) restarts: u64,
}

impl Status {
    /// All gateways by `cluster/gateway`.
    pub(crate) fn gateways(&self) -> BTreeMap<String, Gateway> {
        let named =
            |cluster: &Cluster| cluster.gateways.clone().into_iter().map(|gateway| (gateway.name.clone(), gateway));
        self.clusters.iter().flat_map(named).collect()
    }

    /// The leading member's id.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.control_plane.members.iter().find(|member| member.role == "leader").map(|member| member.id)
    }

    /// The process of this name.
    #[track_caller]
    pub(crate) fn process(&self, name: &str) -> &Process {
        let found = self.processes.iter().find(|process| process.name == name);
        found.unwrap_or_else(|| panic!("no process {name} in {:?}", self.processes))
    }

    /// The pid of a process that runs.
    #[track_caller]
    pub(crate) fn pid(&self, name: &str) -> u32 {
        self.process(name).pid.unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// Names and pids of the processes that run and satisfy `wanted`.
    pub(crate) fn running(&self, wanted: impl Fn(&Process) -> bool) -> Vec<(String, u32)> {
        let found = self.processes.iter().filter(|process| wanted(process));
        found.filter_map(|process| Some((process.name.clone(), process.pid?))).collect()
    }
}
