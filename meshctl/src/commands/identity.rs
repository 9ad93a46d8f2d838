//! `identity list|describe|revoke`: who holds certificates of the federation, and whose are refused.

use std::time::SystemTime;

use archipelago_proto::v1::{IdentityInfo, ListIdentitiesRequest, RevokeRequest, identity_client::IdentityClient};
use serde::Serialize;

use super::{Context, watch};
use crate::cli::IdentityCommand;
use crate::client::{Client, request_id};
use crate::exit::{Failure, Outcome};
use crate::output::{Cell, Table, Text};
use crate::views::timestamp;

/// One identity, as programs read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdentityView {
    pub(super) spiffe_id: String,
    /// `valid`, `revoked`, `expired`, or `unknown` when no certificate of it is known.
    pub(super) state: &'static str,
    pub(super) expires: Option<String>,
    issued: Option<String>,
    serial: Option<String>,
    /// Member of the control plane.
    issued_by: Option<u64>,
    /// Certificates from before are refused.
    revoked_before: Option<String>,
    reason: Option<String>,
    revoked_by: Option<String>,
    /// How far its clock was ahead of the answering member's.
    clock_offset_ms: Option<i64>,
}

impl IdentityView {
    fn new(info: IdentityInfo, now_unix: i64) -> Self {
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        let state = match (info.revoked, info.not_after_unix) {
            (true, _) => "revoked",
            (false, 0) => "unknown",
            (false, end) if end <= now_unix => "expired",
            (false, _) => "valid",
        };
        Self {
            spiffe_id: info.spiffe_id,
            state,
            expires: timestamp(info.not_after_unix.saturating_mul(1_000)),
            issued: timestamp(info.issued_unix_ms),
            serial: text(info.serial),
            issued_by: Some(info.member).filter(|member| *member > 0),
            revoked_before: timestamp(info.revoked_before_unix.saturating_mul(1_000)),
            reason: text(info.reason),
            revoked_by: text(info.revoked_by),
            clock_offset_ms: info.clock_offset_ms,
        }
    }
}

/// `identity …`.
pub(super) async fn run(context: &Context, command: IdentityCommand) -> Outcome {
    match command {
        IdentityCommand::List { prefix, watch } => {
            watch::run(context, watch, async |context| {
                let views = list(&context.client()?, prefix.as_deref().unwrap_or_default()).await?;
                context.output.print(&views, || table(&views, "no identity was ever issued"))
            })
            .await
        }
        IdentityCommand::Describe { spiffe_id } => {
            let path = path_of(&spiffe_id)?;
            let found = list(&context.client()?, path).await?;
            let Some(view) = found.into_iter().find(|view| view.spiffe_id == spiffe_id) else {
                return Err(Failure::refused(format!("no certificate of {spiffe_id} is known"))
                    .hint("`meshctl identity list` shows all that are"));
            };
            context.output.print(&view, || describe(&view))
        }
        IdentityCommand::Revoke { spiffe_id, reason } => revoke(context, &spiffe_id, reason.as_deref()).await,
    }
}

/// Prints all identities.
pub(super) async fn list_all(context: &Context) -> Outcome {
    let views = list(&context.client()?, "").await?;
    context.output.print(&views, || table(&views, "no identity was ever issued"))
}

/// Every identity whose path begins with `prefix`.
pub(super) async fn list(client: &Client, prefix: &str) -> Outcome<Vec<IdentityView>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let mut request = ListIdentitiesRequest { path_prefix: prefix.to_owned(), ..ListIdentitiesRequest::default() };
    let mut views = Vec::new();
    loop {
        let page = client
            .call(|channel| {
                let request = request.clone();
                async move { IdentityClient::new(channel).list(request).await }
            })
            .await?;
        views.extend(page.identities.into_iter().map(|info| IdentityView::new(info, now)));
        if page.next_page_token.is_empty() {
            return Ok(views);
        }
        request.page_token = page.next_page_token;
    }
}

pub(super) fn table(views: &[IdentityView], nothing: &str) -> Text {
    let mut table = Table::new(&["IDENTITY", "STATE", "EXPIRES", "REASON"]);
    for view in views {
        let or_dash = |text: &Option<String>| Cell::from(text.clone().unwrap_or_else(|| "-".to_owned()));
        table.row([view.spiffe_id.clone().into(), view.state.into(), or_dash(&view.expires), or_dash(&view.reason)]);
    }
    if table.is_empty() { Text::default().line(nothing) } else { table.into() }
}

fn describe(view: &IdentityView) -> Text {
    let mut text = Text::default().line(format!("{}: {}", view.spiffe_id, view.state));
    let lines = [
        ("issued", view.issued.clone()),
        ("issued by member", view.issued_by.map(|member| member.to_string())),
        ("expires", view.expires.clone()),
        ("serial", view.serial.clone()),
        ("revoked before", view.revoked_before.clone()),
        ("reason", view.reason.clone()),
        ("revoked by", view.revoked_by.clone()),
        ("clock", view.clock_offset_ms.map(|ms| format!("{ms} ms ahead"))),
    ];
    for (name, value) in lines {
        if let Some(value) = value {
            text = text.line(format!("  {name}: {value}"));
        }
    }
    text
}

/// Revokes an identity and says from when on.
pub(super) async fn revoke(context: &Context, spiffe_id: &str, reason: Option<&str>) -> Outcome {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct RevokedView<'a> {
        spiffe_id: &'a str,
        revoked_before: Option<String>,
        revision: u64,
    }
    path_of(spiffe_id)?;
    let request = RevokeRequest {
        spiffe_id: spiffe_id.to_owned(),
        reason: reason.unwrap_or_default().to_owned(),
        request_id: request_id(),
    };
    let revoked = context
        .client()?
        .call(|channel| {
            let request = request.clone();
            async move { IdentityClient::new(channel).revoke(request).await }
        })
        .await?;
    let view = RevokedView {
        spiffe_id,
        revoked_before: timestamp(revoked.issued_before_unix.saturating_mul(1_000)),
        revision: revoked.revision,
    };
    context.output.print(&view, || {
        let line = format!("{spiffe_id} revoked at revision {}: its sessions end, gateways refuse it", view.revision);
        Text::default().line(line)
    })
}

/// The path of a SPIFFE id, with its leading slash.
fn path_of(spiffe_id: &str) -> Outcome<&str> {
    let id = spiffe_id.strip_prefix("spiffe://").and_then(|rest| rest.find('/').map(|slash| &rest[slash..]));
    id.ok_or_else(|| {
        Failure::refused(format!("{spiffe_id:?} is no SPIFFE id"))
            .hint("they look like spiffe://mesh.local/cluster/paris/gateway/gw-1; see `meshctl identity list`")
    })
}
