//! `token create|list`.

use std::time::SystemTime;

use archipelago_proto::v1;
use serde::Serialize;

use super::{Context, watch};
use crate::cli::{JoinAs, TokenCommand};
use crate::exit::{Failure, Outcome};
use crate::output::{self, Cell, Table, Text};
use crate::views::{TokenView, timestamp};

#[derive(Serialize)]
struct CreatedView {
    token: String,
    expires: Option<String>,
}

/// `token …`.
pub(super) async fn run(context: &Context, command: TokenCommand) -> Outcome {
    match command {
        TokenCommand::List(watch) => watch::run(context, watch, list).await,
        TokenCommand::Create { cluster, role, name, ttl } => {
            let (role, name) = match (role, name) {
                (JoinAs::Agent, name) => (v1::JoinRole::Agent, name.unwrap_or_default()),
                (JoinAs::Gateway, Some(name)) => (v1::JoinRole::Gateway, name),
                (JoinAs::Gateway, None) => {
                    return Err(Failure::refused("a gateway's token is bound to its name")
                        .hint(format!("meshctl token create --cluster {cluster} --role gateway --name gw-1")));
                }
            };
            let created = context.client()?.create_token(&cluster, role, &name, ttl).await?;
            let view =
                CreatedView { token: created.token, expires: timestamp(created.expires_unix.saturating_mul(1_000)) };
            // Only the token is data: it can be piped into a file as it is.
            context.output.print(&view, || Text::default().line(view.token.as_str()))?;
            if let Some(expires) = &view.expires {
                output::talk(format!("works once, until {expires}; use it with `meshctl join TOKEN`"));
            }
            Ok(())
        }
    }
}

async fn list(context: &Context) -> Outcome {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let tokens = context.client()?.tokens().await?;
    let views: Vec<TokenView> = tokens.into_iter().map(|token| TokenView::new(token, now)).collect();
    context.output.print(&views, || {
        let mut table = Table::new(&["TOKEN", "CLUSTER", "ROLE", "NAME", "STATE", "EXPIRES", "USED"]);
        for view in &views {
            let or_dash = |text: &Option<String>| Cell::from(text.clone().unwrap_or_else(|| "-".to_owned()));
            table.row([
                view.id.clone().into(),
                view.cluster.clone().into(),
                view.role.into(),
                view.name.clone().into(),
                view.state.into(),
                or_dash(&view.expires),
                or_dash(&view.used),
            ]);
        }
        if table.is_empty() { Text::default().line("no token was ever made") } else { table.into() }
    })
}
