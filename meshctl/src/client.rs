//! The control plane as commands see it: any member, mutual TLS, retries with the same request id.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use archipelago_identity::tls::Expect;
use archipelago_identity::{Credential, CredentialDir, LiveCredential, SpiffeId};
use archipelago_proto::v1::{self, question};
use archipelago_rpc::{enrol, grpc};
use rand::seq::SliceRandom as _;
use serde::Deserialize;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::commands::Enough;
use crate::exit::{Exit, Failure, Outcome};
use crate::output;

/// An operator's way to one federation, from the credential under the state directory.
#[derive(Clone)]
pub(crate) struct Client {
    state: PathBuf,
    credential: LiveCredential,
    addresses: Vec<String>,
    timeout: Duration,
}

/// A link into a page.
pub(crate) struct SignedIn {
    /// Of the member that gave it.
    pub(crate) address: String,
    pub(crate) link: v1::SignInResponse,
}

/// `operator/control-plane.json`, as bootstrap writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ControlPlaneFile {
    control_plane: Vec<String>,
}

impl Client {
    /// Reads `STATE/operator`; `timeout` bounds every call with all its retries.
    ///
    /// # Errors
    /// Exit code 4 when there is no credential, since then no control plane can be asked; 1 when what
    /// is there cannot be read.
    pub(crate) fn open(state: &Path, timeout: Duration) -> Outcome<Self> {
        let client = Self::open_quietly(state, timeout)?;
        warn_before_expiry(&client.credential.current());
        Ok(client)
    }

    /// The same without a word about what is left of the credential.
    pub(crate) fn open_quietly(state: &Path, timeout: Duration) -> Outcome<Self> {
        let dir = state.join("operator");
        let credential = CredentialDir::new(&dir)
            .load()
            .map_err(|error| Failure::refused(format!("cannot use the operator credential: {error}")))?
            .ok_or_else(|| nobody(state, &format!("there is no operator credential in {}", dir.display())))?;
        let file = dir.join("control-plane.json");
        let text = std::fs::read_to_string(&file)
            .map_err(|error| Failure::refused(format!("cannot read {}: {error}", file.display())))?;
        let ControlPlaneFile { control_plane: addresses } =
            serde_json::from_str(&text).map_err(|error| Failure::refused(format!("{}: {error}", file.display())))?;
        if addresses.is_empty() {
            return Err(Failure::refused(format!("{}: names no address", file.display())));
        }
        let credential = LiveCredential::new(credential)
            .map_err(|error| Failure::refused(format!("cannot use the operator credential: {error}")))?;
        Ok(Self { state: state.to_owned(), credential, addresses, timeout })
    }

    /// Who is calling.
    pub(crate) fn spiffe_id(&self) -> SpiffeId {
        self.credential.current().spiffe_id.clone()
    }

    /// What is left of the caller's certificate.
    pub(crate) fn credential_left(&self, now: SystemTime) -> Duration {
        self.credential.current().not_after.duration_since(now).unwrap_or_default()
    }

    /// The file that names the members.
    pub(crate) fn control_plane_file(&self) -> PathBuf {
        self.state.join("operator").join("control-plane.json")
    }

    /// A new credential for the one in use.
    pub(crate) async fn renew(&self) -> Outcome<Credential> {
        enrol::renew(&self.credential, &self.addresses).await.map_err(|error| {
            let exit = if error.is_retryable() { Exit::NoControlPlane } else { Exit::Refused };
            Failure::new(exit, archipelago_base::error::chain(&error))
        })
    }

    /// The same client with another bound.
    fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Calls any member; goes to the next one when it does not answer, until the timeout.
    ///
    /// `call` may run more than once: it must be a read, or carry a request id.
    ///
    /// # Errors
    /// What the control plane refuses (exit code 1), or no answer in time (exit code 4).
    pub(crate) async fn call<T, F>(&self, call: impl Fn(Channel) -> F) -> Outcome<T>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut addresses = self.addresses.clone();
        addresses.shuffle(&mut rand::rng());
        let mut tried: Vec<(String, String)> = Vec::new();
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            for address in &addresses {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(self.unanswered(&tried));
                }
                let attempt = async {
                    let channel = self.connect(address).await?;
                    call(channel).await.map_err(|status| Attempt::of(&status))
                };
                let outcome = match tokio::time::timeout(left.min(ATTEMPT_MAX), attempt).await {
                    Ok(Ok(answer)) => return Ok(answer.into_inner()),
                    Ok(Err(Attempt::Refused(failure))) => return Err(failure),
                    Ok(Err(Attempt::Again(why))) => why,
                    Err(_) => format!("no answer within {}", crate::duration::display(left.min(ATTEMPT_MAX))),
                };
                tried.retain(|(name, _)| name != address);
                tried.push((address.clone(), outcome));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left <= pause {
                return Err(self.unanswered(&tried));
            }
            // An election takes about a second; asking faster than this only adds load to it.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// A connection to one member.
    async fn connect(&self, address: &String) -> Result<Channel, Attempt> {
        grpc::connect(std::slice::from_ref(address), &self.credential, Expect::control_plane())
            .await
            // One address was tried, so its cause is the cause.
            .map_err(|error| Attempt::Again(error.attempts.into_iter().map(|(_, cause)| cause.to_string()).collect()))
    }

    fn unanswered(&self, tried: &[(String, String)]) -> Failure {
        let mut names: Vec<&str> = self.addresses.iter().map(String::as_str).collect();
        names.sort_unstable();
        let mut reasons: Vec<String> =
            tried.iter().map(|(address, why)| format!("control plane {address}: {why}")).collect();
        reasons.sort();
        nobody(&self.state, &format!("no control plane answered; tried {}", names.join(", "))).problems(reasons)
    }

    /// A link into the page of a member that serves one.
    ///
    /// # Errors
    /// None does, with what to do about it; or none answers.
    pub(crate) async fn sign_in(&self, read_only: bool) -> Outcome<SignedIn> {
        let mut addresses = self.addresses.clone();
        addresses.shuffle(&mut rand::rng());
        let mut refused = Vec::new();
        let mut last = None;
        for address in addresses {
            let one = Self { addresses: vec![address.clone()], timeout: self.timeout.min(ATTEMPT_MAX), ..self.clone() };
            let asked = one.call(|channel| async move {
                let mut client = v1::dashboard_client::DashboardClient::new(channel);
                client.sign_in(v1::SignInRequest { read_only }).await
            });
            match asked.await {
                Ok(link) => return Ok(SignedIn { address, link }),
                Err(failure) if failure.exit() == Exit::Refused => refused.push(format!("{address}: {failure}")),
                Err(failure) => last = Some(failure),
            }
        }
        refused.sort();
        match last {
            Some(failure) if refused.is_empty() => Err(failure),
            _ => Err(Failure::refused("no member that answers lets you into a dashboard").problems(refused).hint(
                "start members with `--dashboard 127.0.0.1:7430`; under `meshctl up` all of them serve one, after `down --keep-state` and `up`",
            )),
        }
    }

    /// Status of the federation.
    pub(crate) async fn status(&self) -> Outcome<v1::StatusResponse> {
        self.call(
            |channel| async move { v1::fleet_client::FleetClient::new(channel).status(v1::StatusRequest {}).await },
        )
        .await
    }

    /// All services with their clusters.
    pub(crate) async fn services(&self) -> Outcome<Vec<v1::ServiceStatus>> {
        let mut request = v1::ServicesRequest::default();
        let mut services = Vec::new();
        loop {
            let page = self
                .call(|channel| {
                    let request = request.clone();
                    async move { v1::fleet_client::FleetClient::new(channel).services(request).await }
                })
                .await?;
            services.extend(page.services);
            if page.next_page_token.is_empty() {
                return Ok(services);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// All tunnels that gateways report.
    pub(crate) async fn tunnels(&self) -> Outcome<Vec<v1::TunnelStatus>> {
        let answer =
            self.call(|channel| async move {
                v1::fleet_client::FleetClient::new(channel).tunnels(v1::TunnelsRequest {}).await
            })
            .await?;
        Ok(answer.tunnels)
    }

    /// What happened.
    pub(crate) async fn events(&self, request: v1::ListEventsRequest) -> Outcome<v1::ListEventsResponse> {
        self.call(|channel| {
            let request = request.clone();
            async move { v1::events_client::EventsClient::new(channel).list(request).await }
        })
        .await
    }

    /// What happened, and what happens, from one member.
    pub(crate) async fn follow_events(
        &self,
        request: v1::ListEventsRequest,
    ) -> Outcome<tonic::Streaming<v1::FollowedEvents>> {
        self.call(|channel| {
            let request = request.clone();
            async move { v1::events_client::EventsClient::new(channel).follow(request).await }
        })
        .await
    }

    /// Resources; empty strings mean any.
    pub(crate) async fn get(&self, kind: &str, namespace: &str, name: &str) -> Outcome<v1::GetResponse> {
        let mut request = v1::GetRequest {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..v1::GetRequest::default()
        };
        let mut resources = Vec::new();
        loop {
            let page = self
                .call(|channel| {
                    let request = request.clone();
                    async move { v1::resources_client::ResourcesClient::new(channel).get(request).await }
                })
                .await?;
            resources.extend(page.resources);
            if page.next_page_token.is_empty() {
                return Ok(v1::GetResponse { revision: page.revision, resources, ..v1::GetResponse::default() });
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Commits documents; problems or conflicts in the answer mean that nothing changed.
    pub(crate) async fn apply(
        &self,
        documents: Vec<v1::Document>,
        preconditions: Vec<v1::Precondition>,
        dry_run: bool,
    ) -> Outcome<v1::ApplyResponse> {
        let request = v1::ApplyRequest { documents, dry_run, request_id: request_id(), preconditions };
        self.call(|channel| {
            let request = request.clone();
            async move {
                // Documents may be large; the limit that counts is the server's.
                let mut client = v1::resources_client::ResourcesClient::new(channel);
                client.apply(request).await
            }
        })
        .await
        .map_err(effect_unknown)
    }

    /// Deletes resources; conflicts in the answer mean that nothing changed.
    pub(crate) async fn delete(
        &self,
        keys: Vec<v1::ResourceKey>,
        preconditions: Vec<v1::Precondition>,
    ) -> Outcome<v1::ApplyResponse> {
        let request = v1::DeleteRequest { keys, request_id: request_id(), preconditions };
        self.call(|channel| {
            let request = request.clone();
            async move { v1::resources_client::ResourcesClient::new(channel).delete(request).await }
        })
        .await
        .map_err(effect_unknown)
    }

    /// A single-use join token.
    pub(crate) async fn create_token(
        &self,
        cluster: &str,
        role: v1::JoinRole,
        name: &str,
        ttl: Duration,
    ) -> Outcome<v1::CreateTokenResponse> {
        let request = v1::CreateTokenRequest {
            cluster: cluster.to_owned(),
            role: role.into(),
            name: name.to_owned(),
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            request_id: request_id(),
        };
        self.call(|channel| {
            let request = request.clone();
            async move { v1::tokens_client::TokensClient::new(channel).create(request).await }
        })
        .await
    }

    /// Tokens, used or not.
    pub(crate) async fn tokens(&self) -> Outcome<Vec<v1::TokenInfo>> {
        let mut request = v1::ListTokensRequest::default();
        let mut tokens = Vec::new();
        loop {
            let page = self
                .call(|channel| {
                    let request = request.clone();
                    async move { v1::tokens_client::TokensClient::new(channel).list(request).await }
                })
                .await?;
            tokens.extend(page.tokens);
            if page.next_page_token.is_empty() {
                return Ok(tokens);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Makes what the control plane holds now newer than anything that a gateway runs.
    pub(crate) async fn raise_restore_epoch(&self) -> Outcome<v1::RaiseRestoreEpochResponse> {
        let request = v1::RaiseRestoreEpochRequest { request_id: request_id() };
        self.call(|channel| {
            let request = request.clone();
            async move { v1::resources_client::ResourcesClient::new(channel).raise_restore_epoch(request).await }
        })
        .await
        .map_err(effect_unknown)
    }

    /// What a live gateway would do with a request.
    pub(crate) async fn explain(&self, request: v1::ExplainRequest) -> Outcome<v1::ExplainResponse> {
        self.call(|channel| {
            let request = request.clone();
            async move { v1::fleet_client::FleetClient::new(channel).explain(request).await }
        })
        .await
    }

    /// What each gateway answers to a question, or why it does not.
    pub(crate) async fn ask(&self, question: question::Body) -> Outcome<Vec<v1::GatewayAnswer>> {
        let question = v1::Question { id: 0, body: Some(question) };
        let request = v1::AskRequest { clusters: Vec::new(), question: Some(question) };
        self.call(|channel| {
            let request = request.clone();
            async move {
                let client = v1::telemetry_client::TelemetryClient::new(channel);
                let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
                let mut stream = client.ask(request).await?.into_inner();
                let mut answers = Vec::new();
                while let Some(answer) = stream.message().await? {
                    answers.push(answer);
                }
                Ok(tonic::Response::new(answers))
            }
        })
        .await
    }

    /// What happens at the gateways, again and again, as one member sees it.
    pub(crate) async fn top(&self, request: v1::TopRequest) -> Outcome<tonic::Streaming<v1::TopSnapshot>> {
        self.call(|channel| {
            let request = request.clone();
            async move { v1::telemetry_client::TelemetryClient::new(channel).top(request).await }
        })
        .await
    }

    /// Requests as they end, as one member hears of them.
    pub(crate) async fn tap(&self, request: v1::TapRequest) -> Outcome<tonic::Streaming<v1::TapSaid>> {
        self.call(|channel| {
            let request = request.clone();
            async move { v1::telemetry_client::TelemetryClient::new(channel).tap(request).await }
        })
        .await
    }

    /// Follows the acknowledgement of a revision; `progress` sees every message. Returns the last one.
    ///
    /// A member that goes away in the middle is replaced by another one. The time allowed is counted
    /// here, so that a control plane that stops answering does not hold the command.
    pub(crate) async fn wait_applied(
        &self,
        revision: u64,
        wrote: &[v1::ResourceKey],
        enough: Enough,
        mut progress: impl FnMut(&v1::WaitAppliedProgress),
    ) -> Outcome<v1::WaitAppliedProgress> {
        let deadline = Instant::now() + self.timeout;
        let mut latest: Option<v1::WaitAppliedProgress> = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let request = v1::WaitAppliedRequest {
                revision,
                timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
                percent: 0,
                majority: enough == Enough::Majority,
                wrote: wrote.to_vec(),
            };
            let opened = self
                .with_timeout(left.max(GRACE))
                .call(|channel| {
                    let request = request.clone();
                    async move { v1::fleet_client::FleetClient::new(channel).wait_applied(request).await }
                })
                .await;
            let mut stream = match (opened, latest.take()) {
                (Ok(stream), known) => {
                    latest = known;
                    stream
                }
                (Err(_), Some(known)) => return Ok(known),
                (Err(failure), None) => return Err(failure),
            };
            // The server ends the stream at its own deadline; the grace covers the way back.
            let until = tokio::time::Instant::from_std(deadline + GRACE);
            while let Ok(Ok(Some(message))) = tokio::time::timeout_at(until, stream.message()).await {
                progress(&message);
                let done = message.done;
                latest = Some(message);
                if done {
                    break;
                }
            }
            match latest.take() {
                Some(known) if known.done || Instant::now() >= deadline => return Ok(known),
                None if Instant::now() >= deadline => {
                    return Err(self.unanswered(&[]));
                }
                known => latest = known,
            }
            // The stream broke: a short pause keeps a failing member from being asked in a loop.
            tokio::time::sleep(RETRY_PAUSE_MIN).await;
        }
    }
}

/// What a failed attempt means for the next one.
enum Attempt {
    /// The control plane answered and says no.
    Refused(Failure),
    /// Try another member.
    Again(String),
}

impl Attempt {
    fn of(status: &Status) -> Self {
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Self::Refused(Failure::refused(status.message().to_owned())),
            code => Self::Again(match status.message() {
                "" => code.description().to_owned(),
                message => message.to_owned(),
            }),
        }
    }
}

/// Exit code 4, with the command that starts a control plane.
pub(crate) fn nobody(state: &Path, why: &str) -> Failure {
    Failure::new(Exit::NoControlPlane, why)
        .hint(format!("start one with `meshctl --state {} up`, or name another with --state DIR", state.display()))
}

/// No answer to a write says nothing about its effect.
fn effect_unknown(failure: Failure) -> Failure {
    if failure.exit() == Exit::NoControlPlane {
        return failure.problems(["the write may or may not have been committed; repeating it is safe".to_owned()]);
    }
    failure
}

/// On standard error, so that what programs read stays as it is.
fn warn_before_expiry(credential: &Credential) {
    let life = credential.not_after.duration_since(credential.not_before).unwrap_or_default();
    let left = credential.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    // One that never had so much is renewed in its last quarter.
    if left >= EXPIRY_NOTICE.min(life / 4) {
        return;
    }
    if left.is_zero() {
        output::talk(format!("warning: the credential of {} has run out", credential.spiffe_id));
        output::talk("hint: another operator can make a new one: meshctl operator create");
    } else {
        let left = crate::duration::display(Duration::from_secs(left.as_secs()));
        output::talk(format!("warning: the credential of {} runs out in {left}", credential.spiffe_id));
        output::talk("hint: meshctl operator renew");
    }
}

const EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Names one write, so that its retries commit once. 128 random bits, hexadecimal.
pub(crate) fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// One member's chance before the next is asked: above an election, so that a follower that is
/// looking for the leader can still answer.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);
/// What a gateway may answer, and its name.
const ANSWER_BYTES_MAX: usize = 2 * 1024 * 1024 + 4096;
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Beyond the deadline given to the server, for its last message to arrive.
const GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_credential_the_exit_code_is_four_and_the_hint_starts_one() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Client::open(dir.path(), Duration::from_secs(1)).err().unwrap();
        assert_eq!(failure.exit(), Exit::NoControlPlane);
        assert!(failure.render().contains(&format!("meshctl --state {} up", dir.path().display())));
    }

    #[test]
    fn refusals_are_not_retried_and_outages_are() {
        let refused = |status: Status| matches!(Attempt::of(&status), Attempt::Refused(_));
        assert!(refused(Status::invalid_argument("x")) && refused(Status::not_found("x")));
        assert!(refused(Status::permission_denied("x")) && refused(Status::failed_precondition("x")));
        assert!(!refused(Status::unavailable("x")) && !refused(Status::deadline_exceeded("x")));
        assert!(!refused(Status::unknown("x")) && !refused(Status::cancelled("x")));
    }

    #[test]
    fn request_ids_differ() {
        assert_ne!(request_id(), request_id());
        assert_eq!(request_id().len(), 32);
    }
}
