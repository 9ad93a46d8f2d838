//! The identity in its Secret, and reviews of those who want to join.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says by panicking that it failed")]

use archipelago_agent::provider::{IdentityStore, Review};
use archipelago_base::shutdown::Shutdown;
use archipelago_kubernetes::{
    client, review,
    secret::IdentitySecret,
    types::Pod,
    watch::{Selection, follow},
};
use archipelago_kubernetes_fake::{ApiServer, Fault};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

fn client(api: &ApiServer) -> kube::Client {
    client::new(kube::Config::new(api.url().parse().unwrap())).unwrap()
}

#[tokio::test]
async fn an_identity_survives_in_a_secret_that_may_be_there_already() {
    let api = ApiServer::start().await;
    let store = IdentitySecret::new(client(&api), "system".into());
    assert_eq!(store.load().await.unwrap(), None);
    store.store(b"first").await.unwrap();
    assert_eq!(store.load().await.unwrap().as_deref(), Some(&b"first"[..]));
    api.edit("Secret", "system", "archipelago-agent-identity", |secret| secret["data"]["theirs"] = "eA==".into());
    store.store(b"second").await.unwrap();
    assert_eq!(store.load().await.unwrap().as_deref(), Some(&b"second"[..]));
    let secret = api.get("Secret", "system", "archipelago-agent-identity").unwrap();
    assert_eq!((&secret["data"]["theirs"], &secret["type"]), (&json!("eA=="), &json!("Opaque")));

    // Made empty by the installation: nothing is stored yet.
    api.remove("Secret", "system", "archipelago-agent-identity");
    api.put(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": "system", "name": "archipelago-agent-identity" } }));
    assert_eq!(store.load().await.unwrap(), None);

    api.fault(Fault::status(403));
    let error = format!("{:#}", store.load().await.unwrap_err());
    assert!(error.contains("needs get and patch") && error.contains("403"), "{error}");
}

#[tokio::test]
async fn what_is_damaged_is_said_without_saying_what_it_was() {
    let api = ApiServer::start().await;
    let store = IdentitySecret::new(client(&api), "system".into());
    store.store(b"key").await.unwrap();
    api.edit("Secret", "system", "archipelago-agent-identity", |secret| secret["data"]["identity"] = "PRIVATE!".into());
    let error = format!("{:#}", store.load().await.unwrap_err());
    assert!(error.contains("damaged") && !error.contains("PRIVATE"), "{error}");
}

#[tokio::test]
async fn a_review_asks_the_cluster() {
    let api = ApiServer::start().await;
    api.know_token(
        "good",
        json!({
            "authenticated": true, "audiences": ["archipelago/test/paris"],
            "user": {
                "username": "system:serviceaccount:system:archipelago-gateway",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["gateway-1"],
                    "authentication.kubernetes.io/node-name": ["node-1"],
                },
            },
        }),
    );
    let (running, shutdown) = Shutdown::manual();
    let pods = follow::<Pod>(client(&api), Selection::default(), shutdown.clone());
    let (reviews, asked) = mpsc::channel(1);
    let task = tokio::spawn(review::run(client(&api), "system".into(), pods, asked, shutdown));
    let ask = async |token: &str| {
        let (answer, said) = oneshot::channel();
        let review = Review { token: token.into(), audience: "archipelago/test/paris".into(), answer };
        reviews.send(review).await.unwrap();
        said.await.unwrap()
    };
    assert_eq!(ask("good").await, Ok("node-1".into()));
    let refusal = ask("SECRET-BUT-WRONG").await.unwrap_err();
    assert!(refusal.contains("not good") && !refusal.contains("SECRET"), "{refusal}");
    api.fault(Fault::status(403).on("tokenreviews"));
    let refusal = ask("good").await.unwrap_err();
    assert!(refusal.contains("create on tokenreviews"), "{refusal}");
    running.request();
    task.await.unwrap();
}
