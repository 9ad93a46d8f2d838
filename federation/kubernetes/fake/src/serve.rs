//! HTTP in front of the store.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};

use crate::{
    Seen, Shared,
    fault::Effect,
    kinds::{Kind, Scope},
    lock,
    selector::Selector,
    store::Refusal,
    watch::{Watch, as_served, lines},
};

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

pub(crate) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let mut ended = shared.connections.subscribe();
            ended.mark_unchanged();
            let service = service_fn(|request| {
                let shared = shared.clone();
                async move { handle(&shared, request).await.ok_or("dropped on purpose") }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                _ = ended.changed() => {}
            }
        });
    }
}

/// `None`: the connection ends without an answer.
async fn handle(shared: &Arc<Shared>, request: Request<Incoming>) -> Option<Answer> {
    let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    let seen = Seen {
        method: request.method().to_string(),
        uri: request.uri().to_string(),
        agent: agent.unwrap_or_default().to_owned(),
    };
    let effect = lock(&shared.faults).strike(&seen.method, &seen.uri);
    lock(&shared.seen).push(seen);
    let mut is_paused = shared.is_paused.subscribe();
    let _ = is_paused.wait_for(|is_paused| !is_paused).await;
    match effect {
        Some(Effect::Drop) => return None,
        Some(Effect::Delay(time)) => sleep(time).await,
        Some(Effect::Status { code, retry_after }) => {
            let reason = if code == 403 { "Forbidden" } else { "InjectedFault" };
            let mut answer = status(&Refusal::new(code, reason, "refused on purpose"));
            if let Some(seconds) = retry_after {
                answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            return Some(answer);
        }
        None => {}
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let call = Call::new(shared, &head.method, head.uri.path(), head.uri.query().unwrap_or_default());
    let is_apply = head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/apply-patch+yaml");
    Some(match call {
        Ok(call) => call.answer(shared, &body, is_apply).unwrap_or_else(|refusal| status(&refusal)),
        Err(refusal) => status(&refusal),
    })
}

/// A request, understood.
struct Call {
    method: Method,
    kind: Kind,
    /// Version of the kind in the path.
    served: String,
    namespace: Option<String>,
    name: Option<String>,
    is_status: bool,
    query: Vec<(String, String)>,
}

impl Call {
    fn new(shared: &Shared, method: &Method, path: &str, query: &str) -> Result<Self, Refusal> {
        let unknown = || Refusal::new(404, "NotFound", "the server could not find the requested resource");
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match &parts[..] {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(unknown()),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && *rest != ["status"] => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let (plural, name, is_status) = match rest {
            [plural] => (*plural, None, false),
            [plural, name] => (*plural, Some(*name), false),
            [plural, name, "status"] => (*plural, Some(*name), true),
            _ => return Err(unknown()),
        };
        let review = Kind::namespaced("authentication.k8s.io", &["v1"], "tokenreviews", "TokenReview").cluster_wide();
        let kind = match (group, plural) {
            ("authentication.k8s.io", "tokenreviews") => review,
            _ => lock(&shared.kinds).at(group, version, plural).ok_or_else(unknown)?,
        };
        Ok(Self {
            method: method.clone(),
            kind,
            served: version.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            is_status,
            query: query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(k, v)| (k.into(), decode(v)))
                .collect(),
        })
    }

    fn answer(self, shared: &Arc<Shared>, body: &[u8], is_apply: bool) -> Result<Answer, Refusal> {
        let parse = || {
            serde_json::from_slice::<Value>(body)
                .map_err(|error| Refusal::new(400, "BadRequest", format!("the body is no JSON: {error}")))
        };
        if self.kind.kind == "TokenReview" {
            return Ok(json_answer(201, &review(shared, parse()?)));
        }
        let namespace = self.namespace.clone().unwrap_or_default();
        if self.kind.scope == Scope::Namespaced && namespace.is_empty() && self.method != Method::GET {
            return Err(Refusal::new(405, "MethodNotAllowed", "a write needs a namespace"));
        }
        let Some(name) = &self.name else { return self.collection(shared, &namespace, parse) };
        let at = (namespace.as_str(), name.as_str());
        let written = {
            let mut store = lock(&shared.store);
            match self.method {
                Method::GET => store
                    .get(&self.kind, at.0, at.1)
                    .ok_or_else(|| Refusal::new(404, "NotFound", format!("{} \"{name}\" not found", self.kind.plural))),
                Method::PUT => store.replace(&self.kind, at, parse()?, self.is_status),
                Method::PATCH if is_apply => {
                    let manager = self.query("fieldManager");
                    store.apply(&self.kind, at, manager, parse()?, self.is_status)
                }
                Method::PATCH => store.merge(&self.kind, at, &parse()?, self.is_status),
                Method::DELETE => {
                    let options = if body.is_empty() { Value::Null } else { parse()? };
                    store.delete(&self.kind, at, &options["preconditions"])
                }
                _ => Err(Refusal::new(405, "MethodNotAllowed", "not here")),
            }?
        };
        if self.method != Method::GET {
            shared.changed();
        }
        Ok(json_answer(200, &as_served(written, &self.kind, &self.served)))
    }

    fn collection(
        self,
        shared: &Arc<Shared>,
        namespace: &str,
        parse: impl Fn() -> Result<Value, Refusal>,
    ) -> Result<Answer, Refusal> {
        let selector = Selector::new(self.namespace.clone(), self.query("labelSelector"), self.query("fieldSelector"));
        match self.method {
            Method::GET if matches!(self.query("watch"), "true" | "1") => Ok(self.watch(shared, selector)),
            Method::GET => {
                let limit = self.query("limit").parse().unwrap_or(0);
                let (items, version, token) =
                    lock(&shared.store).page(&self.kind, &selector, limit, self.query("continue"))?;
                let items: Vec<Value> =
                    items.into_iter().map(|object| as_served(object, &self.kind, &self.served)).collect();
                Ok(json_answer(
                    200,
                    &json!({
                        "kind": format!("{}List", self.kind.kind), "apiVersion": self.kind.api_version(&self.served),
                        "metadata": { "resourceVersion": version.to_string(), "continue": token }, "items": items,
                    }),
                ))
            }
            Method::POST => {
                let created = lock(&shared.store).create(&self.kind, namespace, parse()?)?;
                shared.changed();
                Ok(json_answer(201, &as_served(created, &self.kind, &self.served)))
            }
            Method::DELETE => {
                let mut store = lock(&shared.store);
                for object in store.list(&self.kind, Some(&selector)) {
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    store.delete(&self.kind, (namespace, name), &Value::Null)?;
                }
                drop(store);
                shared.changed();
                Ok(json_answer(200, &json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })))
            }
            _ => Err(Refusal::new(405, "MethodNotAllowed", "not here")),
        }
    }

    fn watch(self, shared: &Arc<Shared>, selector: Selector) -> Answer {
        let version = self.query("resourceVersion").parse().unwrap_or_default();
        let seconds = self.query("timeoutSeconds").parse().unwrap_or(1_800);
        let wants_bookmarks = self.query("allowWatchBookmarks") == "true";
        let stream = lines(Watch {
            shared: shared.clone(),
            kind: self.kind,
            served: self.served,
            selector,
            version,
            wants_bookmarks,
            time: Duration::from_secs(seconds),
        });
        answer(200, StreamBody::new(stream.map_ok(Frame::data)).boxed_unsync())
    }

    fn query(&self, name: &str) -> &str {
        self.query.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

fn review(shared: &Shared, mut review: Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let known = lock(&shared.tokens).iter().find(|(known, _)| known == token).map(|(_, status)| status.clone());
    review["status"] = known.unwrap_or_else(|| json!({ "authenticated": false, "error": "invalid bearer token" }));
    review
}

fn status(refusal: &Refusal) -> Answer {
    json_answer(
        refusal.code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": refusal.code, "reason": refusal.reason, "message": refusal.message,
        }),
    )
}

fn json_answer(code: u16, body: &Value) -> Answer {
    answer(code, Full::new(Bytes::from(body.to_string())).map_err(|never: Infallible| match never {}).boxed_unsync())
}

fn answer(code: u16, body: UnsyncBoxBody<Bytes, std::io::Error>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte.unwrap_or(b'0')).to_digit(16).unwrap_or(0);
                let (high, low) = (digit(bytes.next()), digit(bytes.next()));
                u8::try_from(high * 16 + low).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}
