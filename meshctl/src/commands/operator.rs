//! `operator create|list|renew|revoke`: people and robots that operate the federation, each with a credential of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_identity::CredentialDir;
use archipelago_proto::v1::{CreateOperatorRequest, SvidResponse, identity_client::IdentityClient};
use archipelago_rpc::enrol::{self, Candidate};
use serde::Serialize;

use super::{Context, identity, watch};
use crate::cli::OperatorCommand;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Text};
use crate::views::timestamp;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CredentialView {
    spiffe_id: String,
    dir: String,
    expires: Option<String>,
}

/// `operator …`.
pub(super) async fn run(context: &Context, command: OperatorCommand) -> Outcome {
    match command {
        OperatorCommand::Create { name, ttl, out, csr } => create(context, name, ttl, out, csr.as_deref()).await,
        OperatorCommand::List(watch) => {
            watch::run(context, watch, async |context| {
                let views = identity::list(&context.client()?, "/operator/").await?;
                context.output.print(&views, || identity::table(&views, "no operator is known"))
            })
            .await
        }
        OperatorCommand::Renew => renew(context).await,
        OperatorCommand::Revoke { name, reason } => {
            let client = context.client()?;
            let own = client.spiffe_id();
            let spiffe_id = format!("spiffe://{}/operator/{name}", own.trust_domain());
            identity::revoke(context, &spiffe_id, reason.as_deref()).await
        }
    }
}

/// Asks for another operator's certificate; its key is made here, or stays wherever the request in `csr` was made.
async fn create(context: &Context, name: String, ttl: Duration, out: Option<PathBuf>, csr: Option<&Path>) -> Outcome {
    let client = context.client()?;
    let state = out.unwrap_or_else(|| PathBuf::from(format!("operator-{name}")));
    let dir = state.join("operator");
    if dir.exists() {
        return Err(Failure::refused(format!("{} exists already", dir.display())).hint("name another with --out DIR"));
    }
    let candidate = Candidate::generate().map_err(anyhow::Error::from)?;
    let csr_der = match csr {
        None => candidate.csr_der().to_vec(),
        Some(path) => {
            enrol::read_csr(path).map_err(|error| Failure::refused(format!("{}: {error}", path.display())))?
        }
    };
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let request = CreateOperatorRequest { name, csr_der, ttl_ms };
    let response = client
        .call(|channel| {
            let request = request.clone();
            async move { IdentityClient::new(channel).create_operator(request).await }
        })
        .await?;
    let view = CredentialView {
        spiffe_id: response.spiffe_id.clone(),
        dir: state.display().to_string(),
        expires: timestamp(response.not_after_unix.saturating_mul(1_000)),
    };
    store(&client.control_plane_file(), &dir, response, csr.is_none().then_some(candidate))?;
    context.output.print(&view, || {
        let line = format!("{} is an operator; its credential is in {}", view.spiffe_id, view.dir);
        Text::default().line(line)
    })?;
    let use_it = format!("use it with `meshctl --state {}`", view.dir);
    output::talk(if csr.is_some() { format!("put key.pem beside it, then {use_it}") } else { use_it });
    Ok(())
}

fn store(addresses: &Path, dir: &Path, response: SvidResponse, key: Option<Candidate>) -> Outcome {
    use std::os::unix::fs::DirBuilderExt as _;
    let failed = |error: std::io::Error| Failure::refused(format!("cannot write {}: {error}", dir.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let credentials = CredentialDir::new(dir);
    match key {
        Some(candidate) => {
            let credential = candidate.certify(response).map_err(anyhow::Error::from)?;
            credentials.store(&credential).map_err(anyhow::Error::from)?;
        }
        None => credentials.store_public(&response.chain_der, &response.bundle_der).map_err(anyhow::Error::from)?,
    }
    fs::copy(addresses, dir.join("control-plane.json")).map_err(failed)?;
    Ok(())
}

/// A new key and certificate for the credential in use, which is the founding one or any other.
async fn renew(context: &Context) -> Outcome {
    let client = context.client()?;
    let dir = CredentialDir::new(context.state().join("operator"));
    let renewed = tokio::time::timeout(context.global.timeout, client.renew())
        .await
        .map_err(|_| Failure::refused("no control plane answered in time"))??;
    dir.store(&renewed).map_err(anyhow::Error::from)?;
    let view = CredentialView {
        spiffe_id: renewed.spiffe_id.to_string(),
        dir: dir.path().display().to_string(),
        expires: jiff::Timestamp::try_from(renewed.not_after).ok().map(|time| time.to_string()),
    };
    context.output.print(&view, || {
        let until = view.expires.as_deref().unwrap_or("-");
        Text::default().line(format!("{} renewed until {until}", view.spiffe_id))
    })
}
