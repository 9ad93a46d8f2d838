//! `member list|add|replace|remove|transfer`: who the control plane is made of.
//!
//! The control plane makes each change in one step that may be asked for again; this goes from step to step, and says how far it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use archipelago_base::durable;
use archipelago_control_plane::seed::{self, Seed};
use archipelago_proto::v1::{self, FederationMember, MemberStanding, membership_client::MembershipClient};
use serde::Serialize;

use super::{Context, kubernetes, watch};
use crate::cli::{AddMemberArgs, FollowArgs, MemberCommand, ReplaceMemberArgs};
use crate::client::Client;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{self, Cell, Table, Text};
use crate::up::guide;
use crate::up::state::StateDir;

/// `member …`.
pub(super) async fn run(context: &Context, command: MemberCommand) -> Outcome {
    match command {
        MemberCommand::List(watch) => watch::run(context, watch, list).await,
        MemberCommand::Add(args) => add(context, args).await,
        MemberCommand::Replace(args) => replace(context, args).await,
        MemberCommand::Remove { member, reason } => remove(context, member, reason.unwrap_or_default()).await,
        MemberCommand::Transfer { to } => transfer(context, to.unwrap_or(0)).await,
    }
}

/// One member, as programs read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberView {
    name: String,
    id: u64,
    /// The number that its process is started with.
    place: u64,
    /// `voter`, `learner`, or `outside` when a change was interrupted.
    standing: &'static str,
    /// `leader`, `follower`, `candidate`, `learner`, `unreachable`.
    role: String,
    address: String,
    peer_address: String,
    applied_index: Option<u64>,
    /// Members whose checkpoints are of the same index have the same sum.
    checkpoint_index: Option<u64>,
    checkpoint_sha256: Option<String>,
    problem: Option<String>,
}

impl MemberView {
    fn new(member: FederationMember, status: Option<&v1::MemberStatus>) -> Self {
        let answers = status.filter(|status| status.term > 0);
        let checkpoint = answers.filter(|status| status.checkpoint_index > 0);
        Self {
            name: name(member.id),
            id: member.id,
            place: member.place,
            standing: word(member.standing()),
            role: status.map_or_else(|| "unreachable".to_owned(), |status| status.role.clone()),
            applied_index: answers.map(|status| status.applied_index),
            checkpoint_index: checkpoint.map(|status| status.checkpoint_index),
            checkpoint_sha256: checkpoint
                .map(|status| status.checkpoint_sha256.iter().map(|byte| format!("{byte:02x}")).collect()),
            problem: status.map(|status| status.problem.clone()).filter(|problem| !problem.is_empty()),
            address: member.client,
            peer_address: member.peer,
        }
    }
}

async fn list(context: &Context) -> Outcome {
    let client = context.client()?;
    let (members, status) = (members(&client).await?, client.status().await?);
    let of = |id: u64| status.members.iter().find(|member| member.id == id);
    let views: Vec<MemberView> = members
        .into_iter()
        .map(|member| (of(member.id), member))
        .map(|(of, member)| MemberView::new(member, of))
        .collect();
    context.output.print(&views, || {
        let mut table = Table::new(&["MEMBER", "PLACE", "VOTE", "ROLE", "ADDRESS", "PEERS", "APPLIED"]);
        for view in &views {
            table.row([
                view.name.clone().into(),
                view.place.to_string().into(),
                Cell::state(view.standing),
                Cell::state(&view.role),
                view.address.clone().into(),
                view.peer_address.clone().into(),
                Cell::known(view.applied_index),
            ]);
        }
        let problems = views.iter().filter_map(|view| Some(format!("{}: {}", view.name, view.problem.as_ref()?)));
        problems.fold(Text::from(table), Text::line)
    })
}

/// What became of a change, as programs read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangedView {
    name: String,
    id: u64,
    /// The one that it is in the place of.
    replaces: Option<String>,
    address: String,
    /// `voter`, `learner`.
    standing: &'static str,
    /// Where what it begins with was put; absent when another run of the command did, or under `up`.
    files: Option<String>,
}

async fn add(context: &Context, args: AddMemberArgs) -> Outcome {
    let AddMemberArgs { client: address, peer, follow } = args;
    let client = context.client()?;
    // One that this command began with before, and did not see to its end.
    let waiting = waiting(&client).await?.filter(|member| member.client == address && member.peer == peer);
    let begun = match waiting {
        Some(member) => Begun::again(member),
        None => {
            let request = v1::AddMemberRequest { client: address, peer, replaces: 0 };
            begin(context, &client, request, &follow).await?
        }
    };
    to_the_end(context, &client, begun, None, "", follow.wait).await
}

async fn replace(context: &Context, args: ReplaceMemberArgs) -> Outcome {
    let ReplaceMemberArgs { member: lost, client: address, peer, reason, secrets, namespace, follow } = args;
    let client = context.client()?;
    let there = members(&client).await?;
    let place = there.iter().find(|member| member.id == lost).map(|member| member.place);
    let waiting = there.into_iter().find(|member| {
        member.standing() == MemberStanding::Learner && Some(member.place) == place && member.id != lost
    });
    let begun = match waiting {
        Some(member) if secrets => {
            let id = member.id;
            return Err(Failure::refused(format!(
                "{} was added already, and what it begins with is given once",
                name(id)
            ))
            .hint(format!("`meshctl member remove {id}` undoes that; then begin again")));
        }
        Some(member) => Begun::again(member),
        None => {
            let request = v1::AddMemberRequest {
                client: address.unwrap_or_default(),
                peer: peer.unwrap_or_default(),
                replaces: lost,
            };
            if secrets {
                let added = call_add(&client, request).await?;
                output::talk(format!(
                    "{} takes the log as soon as it runs; `meshctl member replace {lost}` then gives it the vote of {}",
                    name(added.member.as_ref().map_or(0, |member| member.id)),
                    name(lost)
                ));
                return kubernetes::print(&kubernetes::member_secrets(&namespace, &added));
            }
            begin(context, &client, request, &follow).await?
        }
    };
    to_the_end(context, &client, begun, Some(lost), &reason.unwrap_or_default(), follow.wait).await
}

async fn remove(context: &Context, member: u64, reason: String) -> Outcome {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct RemovedView {
        name: String,
        id: u64,
        members: Vec<String>,
    }
    let client = context.client()?;
    let removed = client
        .call(|channel| {
            let request = v1::RemoveMemberRequest { id: member, reason: reason.clone() };
            async move { MembershipClient::new(channel).remove(request).await }
        })
        .await;
    removed.map_err(|failure| match failure.to_string().contains("it leads") {
        true => failure.hint("`meshctl member transfer` hands leadership over; then remove it"),
        false => {
            failure.or_hint(|| "`meshctl member list` shows who answers; start what can be started first".to_owned())
        }
    })?;
    let left = members(&client).await?;
    let view =
        RemovedView { name: name(member), id: member, members: left.iter().map(|member| name(member.id)).collect() };
    context.output.print(&view, || {
        let line = format!("{} is no member any more, and its certificates are refused", view.name);
        Text::default().line(line).line(format!("members: {}", view.members.join(", ")))
    })
}

async fn transfer(context: &Context, to: u64) -> Outcome {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct LeaderView {
        leader: Option<String>,
    }
    let moved = context
        .client()?
        .call(|channel| {
            let request = v1::TransferLeadershipRequest { to };
            async move { MembershipClient::new(channel).transfer(request).await }
        })
        .await
        .map_err(|failure| failure.or_hint(|| "`meshctl member list` shows who votes and answers".to_owned()))?;
    let view = LeaderView { leader: Some(moved.leader).filter(|leader| *leader > 0).map(name) };
    context.output.print(&view, || match &view.leader {
        Some(leader) => Text::default().line(format!("{leader} leads")),
        None => Text::default().line("leadership was handed over; `meshctl member list` shows to whom"),
    })
}

/// A member that was added and has no vote yet.
struct Begun {
    member: FederationMember,
    files: Option<PathBuf>,
}

impl Begun {
    fn again(member: FederationMember) -> Self {
        output::talk(format!("{} was added before; going on", name(member.id)));
        Self { member, files: None }
    }
}

/// Adds a member and puts what it begins with where it is needed.
async fn begin(
    context: &Context,
    client: &Client,
    request: v1::AddMemberRequest,
    follow: &FollowArgs,
) -> Outcome<Begun> {
    let lost = request.replaces;
    // Before anything is changed: what is given once must have a place to go.
    let parent = follow.out.clone().unwrap_or_else(|| context.state().join("members"));
    create_private(&parent)?;
    let added = call_add(client, request).await?;
    let member = added.member.clone().unwrap_or_default();
    let dir = if follow.out.is_some() { parent } else { parent.join(name(member.id)) };
    create_private(&dir)?;
    let files = [
        ("ca.sealed".to_owned(), &added.ca_sealed),
        (format!("seal-{}.key", member.id), &added.seal_key),
        // Last: a directory with it is complete.
        ("federation.json".to_owned(), &added.federation_json),
    ];
    for (file, bytes) in files {
        let path = dir.join(file);
        durable::write(&path, bytes, 0o600)
            .map_err(|error| Failure::refused(format!("cannot write {}: {error}", path.display())))?;
    }
    let up = StateDir::new(context.state())?;
    if lost != 0 && up.has_record() {
        seed_under_up(&up, member.place, &dir)?;
        output::talk(format!("{} begins in the place of {}", name(member.id), name(lost)));
        return Ok(Begun { member, files: None });
    }
    output::talk(instructions(&member, &dir));
    Ok(Begun { member, files: Some(dir) })
}

/// What an operator does on the machine of a new member.
fn instructions(member: &FederationMember, dir: &Path) -> String {
    let place = member.place;
    format!(
        "{name} takes the log as soon as it runs. Take {dir} to its machine (seal-{id}.key is a secret), and there, once:\n  \
         archipelago-control-plane seed --node-id {place} --from {dir} --data-dir DATA_DIR --seal-key-out SEAL_KEY_FILE\n\
         and then start it as the others, with --node-id {place} --data-dir DATA_DIR --seal-key-file SEAL_KEY_FILE",
        name = name(member.id),
        id = member.id,
        dir = dir.display(),
    )
}

/// The directory of a lost member under `up` is filled anew; what is left of the old one is kept below `members`.
fn seed_under_up(up: &StateDir, place: u64, from: &Path) -> Outcome {
    let data_dir = up.member(place);
    if data_dir.exists() {
        let aside = |n: u32| up.root().join("members").join(format!("member-{place}-lost-{n}"));
        let aside = (1..).map(aside).find(|path| !path.exists()).unwrap_or_else(|| aside(0));
        fs::rename(&data_dir, &aside)
            .map_err(|error| Failure::refused(format!("cannot move {} aside: {error}", data_dir.display())))?;
    }
    let seal_key_out = archipelago_control_plane::bootstrap::seal_key_file(&up.seal_keys(), place);
    seed::seed(&Seed { node_id: place, from: from.to_owned(), data_dir, marker: None, seal_key_out })?;
    // It holds a secret that is in its place now.
    fs::remove_dir_all(from).map_err(|error| Failure::refused(format!("cannot remove {}: {error}", from.display())))
}

/// Waits until the member has caught up, gives it its vote, and with it takes `replaces` out.
async fn to_the_end(
    context: &Context,
    client: &Client,
    begun: Begun,
    replaces: Option<u64>,
    reason: &str,
    wait: Duration,
) -> Outcome {
    let Begun { member, files } = begun;
    let (id, deadline) = (member.id, Instant::now() + wait);
    let mut said = String::new();
    loop {
        let progress = progress(client, id).await?;
        if progress.near {
            let promoted = client
                .call(|channel| {
                    let request =
                        v1::PromoteMemberRequest { id, replaces: replaces.unwrap_or(0), reason: reason.to_owned() };
                    async move { MembershipClient::new(channel).promote(request).await }
                })
                .await?;
            if promoted.promoted {
                break;
            }
        }
        if progress.text != said {
            output::talk(&progress.text);
            said = progress.text;
        }
        if Instant::now() >= deadline {
            let again = match replaces {
                Some(lost) => format!("member replace {lost}"),
                None => format!("member add --client {} --peer {}", member.client, member.peer),
            };
            let meshctl = guide::command(context.state());
            return Err(Failure::new(Exit::Unacknowledged, format!("{} has no vote yet: {said}", name(id))).hint(
                format!(
                    "once it runs, `{meshctl} {again}` goes on; `{meshctl} member remove {id}` undoes what was begun"
                ),
            ));
        }
        tokio::time::sleep(BETWEEN).await;
    }
    let view = ChangedView {
        name: name(id),
        id,
        replaces: replaces.map(name),
        address: member.client,
        standing: word(MemberStanding::Voter),
        files: files.map(|dir| dir.display().to_string()),
    };
    context.output.print(&view, || {
        let place = match &view.replaces {
            Some(lost) => format!(" in the place of {lost}, whose certificates are refused"),
            None => String::new(),
        };
        Text::default().line(format!("{} has a vote{place}", view.name))
    })
}

/// How far a new member is.
struct Progress {
    /// So far that it may get its vote.
    near: bool,
    text: String,
}

async fn progress(client: &Client, id: u64) -> Outcome<Progress> {
    let status = client.status().await?;
    let newest = status.members.iter().map(|member| member.applied_index).max().unwrap_or(0);
    let text = match status.members.iter().find(|member| member.id == id) {
        Some(member) if member.term > 0 && newest.saturating_sub(member.applied_index) <= NEAR => {
            return Ok(Progress { near: true, text: format!("{} has caught up", name(id)) });
        }
        Some(member) if member.applied_index > 0 => {
            format!("{} has applied {} of {newest} log entries", name(id), member.applied_index)
        }
        Some(member) if member.term > 0 => format!("{} waits for a snapshot", name(id)),
        Some(_) | None => format!("{} does not answer yet", name(id)),
    };
    Ok(Progress { near: false, text })
}

async fn call_add(client: &Client, request: v1::AddMemberRequest) -> Outcome<v1::AddMemberResponse> {
    client
        .call(|channel| {
            let request = request.clone();
            async move { MembershipClient::new(channel).add(request).await }
        })
        .await
}

/// A member that was added and has no vote yet.
async fn waiting(client: &Client) -> Outcome<Option<FederationMember>> {
    Ok(members(client).await?.into_iter().find(|member| member.standing() == MemberStanding::Learner))
}

async fn members(client: &Client) -> Outcome<Vec<FederationMember>> {
    let answer = client
        .call(|channel| async move { MembershipClient::new(channel).list(v1::ListMembersRequest {}).await })
        .await?;
    Ok(answer.members)
}

fn create_private(dir: &Path) -> Outcome {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Failure::refused(format!("cannot create {}: {error}", dir.display())))
}

fn name(id: u64) -> String {
    format!("cp-{id}")
}

fn word(standing: MemberStanding) -> &'static str {
    match standing {
        MemberStanding::Voter => "voter",
        MemberStanding::Learner => "learner",
        MemberStanding::Outside => "outside",
        MemberStanding::Unspecified => "unknown",
    }
}

/// Below this many entries the leader is asked to decide.
const NEAR: u64 = 1_000;
const BETWEEN: Duration = Duration::from_millis(250);
