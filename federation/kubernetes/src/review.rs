//! Whether somebody is a gateway of this cluster: the API server says whose a token is and where its pod runs.
//!
//! A token is a gateway's if it was issued for our audience to the ServiceAccount of the gateways in the agent's own
//! namespace, and is bound to a pod that runs on a node: then the gateway is that node's.

use archipelago_agent::provider::{Review, Uid};
use archipelago_base::shutdown::Shutdown;
use http::{Request, header};
use kube::Client;
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    client::{self, Failure},
    types::{Key, Pod},
    watch::{Feed, Objects},
};

/// Answers reviews until `shutdown`.
pub async fn run(
    client: Client,
    namespace: String,
    pods: Feed<Pod>,
    mut reviews: mpsc::Receiver<Review>,
    shutdown: Shutdown,
) {
    loop {
        let review = tokio::select! {
            review = reviews.recv() => review,
            () = shutdown.requested() => None,
        };
        let Some(Review { token, audience, answer }) = review else { return };
        let asked = timeout(REVIEW_TIME_MAX, ask(&client, &token, &audience)).await;
        let said = match asked {
            Ok(Ok(status)) => gateway(&status, &audience, &namespace, &pods.now().objects),
            Ok(Err(failure)) if failure.is_forbidden() => {
                Err(format!("{failure}; the agent's ServiceAccount needs create on tokenreviews.authentication.k8s.io"))
            }
            Ok(Err(failure)) => Err(format!("the cluster cannot review the token right now: {failure}")),
            Err(_) => Err("the cluster's API server did not answer in time; try again".to_owned()),
        };
        match &said {
            Ok(node) => tracing::info!(%node, "a gateway of this cluster joins"),
            Err(refusal) => {
                tracing::warn!(%refusal, "somebody who wants to join as a gateway of this cluster is refused")
            }
        }
        // Whoever asked may have given up.
        let _ = answer.send(said);
    }
}

async fn ask(client: &Client, token: &str, audience: &str) -> Result<TokenStatus, Failure> {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": { "token": token, "audiences": [audience] },
    });
    let request = Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
        .header(header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(&review).map_err(Failure::transport)?)
        .map_err(Failure::transport)?;
    // The answer repeats the token, so nothing of it may be logged: neither here nor by the parser.
    let answer = client::fetch(client, request).await?;
    let review = serde_json::from_slice::<TokenReview>(&answer);
    Ok(review.map_err(|_| Failure::transport("the answer is no TokenReview"))?.status)
}

/// The node of the gateway whose token this is, or why it is none.
fn gateway(status: &TokenStatus, audience: &str, namespace: &str, pods: &Objects<Pod>) -> Result<String, String> {
    if !status.authenticated {
        let error = status.error.as_deref().unwrap_or("the API server does not know it");
        return Err(format!("the token is not good in this cluster: {error}"));
    }
    // An API server that does not know audiences leaves them out; then it did not check ours.
    if !status.audiences.iter().any(|known| known == audience) {
        return Err(format!("the token was not issued for the audience {audience}"));
    }
    let user = &status.user;
    let expected = format!("system:serviceaccount:{namespace}:{SERVICE_ACCOUNT}");
    if user.username != expected {
        return Err(format!("the token is {}'s, and gateways are {expected}", user.username));
    }
    let extra = |name: &str| user.extra.get(name).and_then(|values| values.first()).filter(|value| !value.is_empty());
    let Some(pod) = extra("authentication.kubernetes.io/pod-name") else {
        return Err("the token is bound to no pod; a gateway's is projected into its pod".to_owned());
    };
    let found = pods.get(&Key::new(namespace, pod.as_str()));
    if let Some(found) = found {
        let uid = extra("authentication.kubernetes.io/pod-uid");
        if uid.is_some_and(|uid| Uid::from(uid.as_str()) != found.who.uid) {
            return Err(format!("the token is of an earlier pod {pod}"));
        }
    }
    // API servers before 1.30 do not say the node.
    let node = extra("authentication.kubernetes.io/node-name").cloned();
    let seen = found.and_then(|found| found.node.as_deref().map(str::to_owned));
    match (node, seen) {
        (Some(node), Some(seen)) if node != seen => {
            Err(format!("the token says node {node}, the pod {pod} is on {seen}"))
        }
        (Some(node), _) | (None, Some(node)) => Ok(node),
        (None, None) => Err(format!("the node of the pod {pod} is not known yet; try again")),
    }
}

#[derive(Debug, Deserialize)]
struct TokenReview {
    status: TokenStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenStatus {
    authenticated: bool,
    audiences: Vec<String>,
    error: Option<String>,
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: BTreeMap<String, Vec<String>>,
}

/// Of the gateways, in the agent's own namespace.
pub const SERVICE_ACCOUNT: &str = "archipelago-gateway";
/// Less than whoever asks will wait.
const REVIEW_TIME_MAX: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Kind, Names};

    const AUDIENCE: &str = "archipelago/test/paris";

    fn status(change: impl FnOnce(&mut serde_json::Value)) -> TokenStatus {
        let mut status = json!({
            "authenticated": true, "audiences": [AUDIENCE],
            "user": {
                "username": "system:serviceaccount:archipelago-system:archipelago-gateway",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["gateway-x"],
                    "authentication.kubernetes.io/pod-uid": ["u1"],
                    "authentication.kubernetes.io/node-name": ["node-1"],
                },
            },
        });
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    fn review(status: &TokenStatus, pods: &Objects<Pod>) -> Result<String, String> {
        gateway(status, AUDIENCE, "archipelago-system", pods)
    }

    #[test]
    fn the_gateway_is_its_nodes_and_everybody_else_is_told_why_not() {
        let raw = json!({
            "metadata": { "name": "gateway-x", "namespace": "archipelago-system", "uid": "u1" },
            "spec": { "nodeName": "node-1" },
        });
        let pod = |raw| Pod::keep(serde_json::from_value(raw).unwrap(), &mut Names::default()).unwrap();
        let key = Key::new("archipelago-system", "gateway-x");
        let none = Objects::default();
        let pods = Objects::unit(key, pod(raw).into());

        assert_eq!(review(&status(|_| {}), &none), Ok("node-1".into()));
        assert_eq!(review(&status(|_| {}), &pods), Ok("node-1".into()));
        let extra = |name: &'static str, value: serde_json::Value| {
            status(move |status| status["user"]["extra"][format!("authentication.kubernetes.io/{name}")] = value)
        };
        // Before 1.30: the node comes from the pod, which must be known.
        assert_eq!(review(&extra("node-name", json!([])), &pods), Ok("node-1".into()));
        let refused = |status: &TokenStatus, pods: &Objects<Pod>| review(status, pods).unwrap_err();
        assert!(refused(&extra("node-name", json!([])), &none).contains("not known yet"));
        assert!(refused(&extra("pod-uid", json!(["u0"])), &pods).contains("earlier pod"));
        assert!(refused(&extra("node-name", json!(["node-2"])), &pods).contains("is on node-1"));
        assert!(refused(&extra("pod-name", json!([])), &pods).contains("bound to no pod"));
        assert!(refused(&status(|status| status["audiences"] = json!([])), &pods).contains("audience"));
        assert!(refused(&status(|status| status["authenticated"] = json!(false)), &pods).contains("not good"));
        let other = "system:serviceaccount:shop:archipelago-gateway";
        assert!(refused(&status(|status| status["user"]["username"] = json!(other)), &pods).contains(other));
    }
}
