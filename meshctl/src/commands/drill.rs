//! `drill kill|cut|end`: asked of the supervisor of `meshctl up`.

use std::time::Duration;

use serde::Serialize;

use super::{Context, show};
use crate::cli::DrillCommand;
use crate::exit::{Failure, Outcome};
use crate::output::Text;
use crate::up::control::{self, Reply, Request};
use crate::up::state::StateDir;

#[derive(Serialize)]
struct DrillView {
    done: Vec<String>,
}

/// `drill …`.
pub(super) async fn run(context: &Context, command: DrillCommand) -> Outcome {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let request = match command {
        DrillCommand::Kill { target, time } => Request::Kill { target, for_ms: millis(time) },
        DrillCommand::Cut { clusters, time } => Request::Cut { clusters, for_ms: millis(time) },
        DrillCommand::End => Request::EndDrills,
    };
    let state = StateDir::new(context.state())?;
    match control::ask(&state, &request, SILENCE_MAX, |_| {}).await? {
        Some(Reply::Done { lines }) => {
            let view = DrillView { done: lines };
            context.output.print(&view, || view.done.iter().fold(Text::default(), |text, line| text.line(line)))
        }
        Some(_) => Err(Failure::refused("the supervisor answers something else; is it of another version?")),
        None => Err(show::no_supervisor(context)),
    }
}

/// Killing a cluster takes milliseconds; telling gateways that do not answer takes their timeout.
const SILENCE_MAX: Duration = Duration::from_secs(15);
