//! The dashboards, a file each.

mod certificates;
mod cluster_pair;
mod control_plane;
mod drills;
mod federation;
mod gateway;
mod service;

use crate::dashboard::Dashboard;

/// All of them, the one to begin with first.
pub fn all() -> Vec<Dashboard> {
    vec![
        federation::dashboard(),
        cluster_pair::dashboard(),
        service::dashboard(),
        gateway::dashboard(),
        control_plane::dashboard(),
        certificates::dashboard(),
        drills::dashboard(),
    ]
}

/// Values of what is either so or not.
const YES_NO: [(&str, &str, &str); 2] = [("0", "no", "green"), ("1", "yes", "orange")];
/// Values of `up`.
const UP_DOWN: [(&str, &str, &str); 2] = [("0", "down", "red"), ("1", "up", "green")];
