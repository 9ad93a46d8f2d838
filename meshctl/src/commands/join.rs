//! `join TOKEN`: this machine becomes an agent or a gateway of a federation.

use archipelago_identity::CredentialDir;
use archipelago_rpc::enrol::{self, EnrolError, JoinToken};
use serde::Serialize;

use super::Context;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{self, Text};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JoinedView {
    spiffe_id: String,
    state_dir: String,
    control_plane: Vec<String>,
    /// What starts the process.
    command: String,
}

/// Exchanges the token for an identity, stores it, and says how to start what it is for.
pub(super) async fn run(context: &Context, args: &crate::cli::JoinArgs) -> Outcome {
    let token: JoinToken = args.token.parse().map_err(|error: EnrolError| refused(&error))?;
    let dir = context.state().join("joined").join(&token.cluster).join(&token.name);
    let dir = std::path::absolute(&dir).map_err(anyhow::Error::from)?;
    let identity = CredentialDir::new(dir.join("identity"));
    if let Ok(Some(credential)) = identity.load() {
        // The token works once: it must not be spent for what is already there.
        return Err(Failure::refused(format!("{} already holds the identity {}", dir.display(), credential.spiffe_id))
            .hint("it renews itself; to join anew, remove that directory or name another with --state DIR"));
    }
    std::fs::create_dir_all(&dir)
        .map_err(|error| Failure::refused(format!("cannot create {}: {error}", dir.display())))?;
    let joined = tokio::time::timeout(context.global.timeout, enrol::join(&token))
        .await
        .map_err(|_| {
            let tried = token.control_plane.join(", ");
            Failure::new(Exit::NoControlPlane, format!("no control plane answered in time; tried {tried}"))
                .hint("the token names these addresses: can this machine reach them?")
        })?
        .map_err(|error| refused(&error))?;
    identity.store(&joined.credential).map_err(anyhow::Error::from)?;
    let view = JoinedView {
        spiffe_id: joined.credential.spiffe_id.to_string(),
        command: command(&token, &dir.display().to_string(), &joined.control_plane),
        state_dir: dir.display().to_string(),
        control_plane: joined.control_plane,
    };
    context.output.print(&view, || Text::default().line(view.command.as_str()))?;
    output::talk(format!("joined as {}; start it with the command above", view.spiffe_id));
    Ok(())
}

/// The process that uses the identity, with its usual ports.
fn command(token: &JoinToken, state_dir: &str, control_plane: &[String]) -> String {
    let program = format!("archipelago-{}", token.role);
    let common = format!(
        "{program} --cluster {} --name {} --state-dir {state_dir} --control-plane {}",
        token.cluster,
        token.name,
        control_plane.join(",")
    );
    match token.role.as_str() {
        "agent" => format!("{common} --services ./services --listen 0.0.0.0:7410"),
        _ => {
            format!("{common} --agent AGENT_HOST:7410 --http 0.0.0.0:15080 --tunnel 0.0.0.0:15443 --dns 0.0.0.0:15053")
        }
    }
}

fn refused(error: &EnrolError) -> Failure {
    let exit = match &error {
        // Someone answered, and was not who the token says: that is a refusal, ours.
        EnrolError::Connect(cause) if !cause.is_identity_refusal() => Exit::NoControlPlane,
        _ => Exit::Refused,
    };
    Failure::new(exit, archipelago_base::error::chain(error))
        .hint("a fresh token comes from `meshctl token create` on a machine with the operator's credential")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_complete() {
        let token = JoinToken {
            control_plane: vec!["cp:7400".into()],
            trust_domain: "mesh.example".into(),
            cluster: "lyon".into(),
            role: "agent".into(),
            name: "agent".into(),
            secret: [1; 32],
            ca_sha256: [2; 32],
            expires_unix: 0,
        };
        let line = command(&token, "/state", &["a:7400".to_owned(), "b:7400".to_owned()]);
        assert!(line.starts_with(
            "archipelago-agent --cluster lyon --name agent --state-dir /state --control-plane a:7400,b:7400"
        ));
    }
}
