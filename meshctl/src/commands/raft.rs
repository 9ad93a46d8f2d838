//! `raft restored`.

use serde::Serialize;

use super::Context;
use crate::cli::RaftCommand;
use crate::exit::{Failure, Outcome};
use crate::output::Text;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RestoredView {
    restore_epoch: u64,
    revision: u64,
}

/// `raft …`.
pub(super) async fn run(context: &Context, command: RaftCommand) -> Outcome {
    let RaftCommand::Restored { yes } = command;
    if !yes {
        return Err(Failure::refused("nothing was changed: this needs --yes").problems([EXPLANATION.to_owned()]));
    }
    let version = context.client()?.raise_restore_epoch().await?.version.unwrap_or_default();
    let view = RestoredView { restore_epoch: version.restore_epoch, revision: version.revision };
    context.output.print(&view, || {
        Text::default().line(format!(
            "restore epoch {}: every gateway follows to revision {} as soon as it is connected",
            view.restore_epoch, view.revision
        ))
    })
}

const EXPLANATION: &str = "\
Gateways never go back: after the control plane was restored from an older backup they go on with what they run, which is
newer, and say so in `meshctl status`. `raft restored` declares that what the control plane holds now is what counts. Every
gateway then takes it, and what was written after the backup is gone for good. Before that, look at what was restored with
`meshctl get` and apply again what is missing.";
