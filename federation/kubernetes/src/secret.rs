//! The agent's identity in a Secret of its own namespace, so that its replicas share it and it survives their nodes.

use anyhow::{Context, anyhow};
use archipelago_agent::provider::IdentityStore;
use http::{Method, Request, header};
use kube::Client;
use serde::Deserialize;
use serde_json::json;

use crate::client::{self, Failure};

/// One key of one Secret.
pub struct IdentitySecret {
    client: Client,
    namespace: String,
}

impl IdentitySecret {
    /// In `namespace`, which is the agent's own.
    #[must_use]
    pub fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace }
    }

    fn path(&self, name: &str) -> String {
        format!("/api/v1/namespaces/{}/secrets{name}", self.namespace)
    }

    /// Through [`client::fetch`], which logs nothing of what it reads.
    async fn ask(&self, method: Method, name: &str, kind: &str, body: Vec<u8>) -> Result<bytes::Bytes, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(self.path(name))
            .header(header::CONTENT_TYPE, kind)
            .body(body)
            .map_err(Failure::transport)?;
        client::fetch(&self.client, request).await
    }
}

#[tonic::async_trait]
impl IdentityStore for IdentitySecret {
    async fn load(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let read = match self.ask(Method::GET, &format!("/{NAME}"), JSON, Vec::new()).await {
            Ok(read) => read,
            Err(failure) if failure.is_not_found() => return Ok(None),
            Err(failure) => return Err(failure).with_context(|| self.hint("get")),
        };
        let secret = serde_json::from_slice::<Secret>(&read);
        // The error of the parser would quote what it read.
        let secret = secret.map_err(|_| anyhow!("the Secret {}/{NAME} cannot be read as one", self.namespace))?;
        let Some(identity) = secret.data.unwrap_or_default().identity else { return Ok(None) };
        let decoded = data_encoding::BASE64.decode(identity.as_bytes());
        let decoded = decoded.map_err(|_| {
            anyhow!(
                "`{KEY}` of the Secret {}/{NAME} is damaged; delete the Secret to join anew with a token",
                self.namespace
            )
        })?;
        Ok(Some(decoded).filter(|identity| !identity.is_empty()))
    }

    async fn store(&self, identity: &[u8]) -> anyhow::Result<()> {
        let data = json!({ KEY: data_encoding::BASE64.encode(identity) });
        // The Secret is usually there, empty, from the installation: then the agent need not be allowed to create any.
        let patch = serde_json::to_vec(&json!({ "data": data }))?;
        match self.ask(Method::PATCH, &format!("/{NAME}"), "application/merge-patch+json", patch).await {
            Ok(_) => return Ok(()),
            Err(failure) if failure.is_not_found() => {}
            Err(failure) => return Err(failure).with_context(|| self.hint("patch")),
        }
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": { "name": NAME, "labels": { crate::types::MANAGED_BY: crate::types::APP } },
            "data": data,
        });
        let created = self.ask(Method::POST, "", JSON, serde_json::to_vec(&secret)?).await;
        created.map(drop).with_context(|| self.hint("create"))
    }
}

impl IdentitySecret {
    fn hint(&self, verb: &str) -> String {
        format!(
            "cannot {verb} the Secret {}/{NAME}; the agent's ServiceAccount needs get and patch on it",
            self.namespace
        )
    }
}

#[derive(Deserialize)]
struct Secret {
    data: Option<Data>,
}

#[derive(Default, Deserialize)]
struct Data {
    identity: Option<String>,
}

/// Of the Secret.
pub const NAME: &str = "archipelago-agent-identity";
const KEY: &str = "identity";
const JSON: &str = "application/json";
