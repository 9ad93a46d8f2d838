//! The log's format follows the members: it rises once every one of them knows more, and not before.

use std::{sync::Arc, time::Duration};

use archipelago_proto::v1::MemberStatusRequest;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    consensus::Consensus,
    machine::{
        State,
        command::{Action, RaiseFormat},
        format,
    },
};

/// What one member says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Support {
    member: u64,
    /// The newest format it knows; `None` when it does not answer.
    format: Option<u32>,
}

/// While this member leads: raises the format of the log as far as all members support it. Ends when cancelled.
pub(crate) async fn raise_format(consensus: Arc<Consensus>, stopping: CancellationToken) {
    let actor = format!("member:{}", consensus.node_id);
    let supported = consensus.supported_format();
    loop {
        let agreed = consensus.read(State::format_version);
        let leads = consensus.raft.status().leader == Some(consensus.node_id);
        if leads && agreed < supported {
            let members = ask(&consensus).await;
            let common = members.iter().map(|member| member.format.unwrap_or(format::BASE)).min();
            let all_answered = members.iter().all(|member| member.format.is_some());
            if let Some(common) = common.filter(|common| all_answered && *common > agreed) {
                let action = Action::RaiseFormat(RaiseFormat { format_version: common });
                match consensus.commit("", &actor, action).await {
                    Ok(_) => {
                        tracing::info!(format = common, "every member knows this log format: it is used from here on")
                    }
                    Err(error) => tracing::debug!(%error, "the log format is not raised yet"),
                }
            }
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}

/// The members that do not know log format `required`, each with what it does know, in words.
pub(crate) async fn held_back_by(consensus: &Consensus, required: u32) -> Vec<String> {
    let lacks = |support: &Support| support.format.is_none_or(|format| format < required);
    ask(consensus).await.into_iter().filter(lacks).map(describe).collect()
}

fn describe(support: Support) -> String {
    match support.format {
        Some(format) => format!("member {} knows formats up to {format}", support.member),
        None => format!("member {} does not answer", support.member),
    }
}

/// All members, this one included, asked at once.
async fn ask(consensus: &Consensus) -> Vec<Support> {
    // One that is only known, and takes no part, must not hold the others back.
    let group = consensus.raft.status();
    let takes_part = |member: &u64| group.voters.contains(member) || group.learners.contains(member);
    let others = consensus.peers.ids().into_iter().filter(takes_part).map(|member| async move {
        let asked = async { consensus.peers.client(member).await?.member_status(MemberStatusRequest {}).await };
        let format = match timeout(ASK_TIMEOUT, asked).await {
            // A member from before formats names none.
            Ok(Ok(status)) => Some(status.into_inner().format_supported.max(format::BASE)),
            Ok(Err(_)) | Err(_) => None,
        };
        Support { member, format }
    });
    let mut members = join_all(others).await;
    members.push(Support { member: consensus.node_id, format: Some(consensus.supported_format()) });
    members.sort_by_key(|support| support.member);
    members
}

/// An upgrade ends when the last member is back; what waits for it waits this much longer.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A living member answers in a round trip; a client waits meanwhile.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
