//! The page of a running federation, as a browser asks for it: who gets in, what is shown, what buttons do.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::Instant;

use harness::client::{Body, empty, full};
use harness::suite::{self, shared};
use harness::{Connection, Federation, PATIENCE, Reply, check, eventually, saw};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpSocket;
use tokio::time::timeout;

fn main() -> ExitCode {
    suite::run(&shared![
        nobody_gets_in_without_a_session_or_from_elsewhere,
        a_link_is_good_once_and_shows_the_federation,
        a_reader_sees_and_changes_nothing,
        a_switch_by_button_moves_traffic_and_is_counted,
        every_button_has_its_way_back,
        a_killed_cluster_is_seen,
        the_session_of_a_revoked_operator_ends,
        who_does_not_read_is_cut,
    ])
}

async fn nobody_gets_in_without_a_session_or_from_elsewhere(federation: &Federation) {
    let link = link(federation, "").await;
    let mut page = Page::at(&link);
    let root = page.get("/").await;
    assert_eq!(root.status, 200);
    let policy = root.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(root.headers["content-type"], "text/html; charset=utf-8");
    for path in ["/api/me", "/api/live"] {
        let told = page.get(path).await;
        assert_eq!(told.status, 401, "{told:?}");
        assert!(told.field("hint").contains("meshctl dashboard"), "{told:?}");
        assert_eq!(told.headers["cache-control"], "no-store");
    }
    let told =
        page.post("/api/actions/switch", &json!({ "dryRun": true, "service": "shop/web", "cluster": "tokyo" })).await;
    assert_eq!(told.status, 401, "{told:?}");
    for (host, expected) in [("evil.example", 421), ("127.0.0.1.evil.example:80", 421), ("localhost:1", 200)] {
        let told = page.send("GET", "/", &[("host", host)], empty()).await;
        assert_eq!(told.status, expected, "{host}: {told:?}");
    }

    // The right link, from a page of somebody else's: it is refused, and the link stays good.
    let body = json!({ "secret": link.secret }).to_string();
    let host = page.host.clone();
    let own = format!("http://{host}");
    let kind = ("content-type", "application/json");
    for headers in [
        [("host", host.as_str()), ("origin", "https://evil.example"), kind, ("x-archipelago-page", "1")],
        [("host", host.as_str()), ("origin", own.as_str()), kind, ("x-other", "1")],
        [
            ("host", host.as_str()),
            ("origin", own.as_str()),
            ("content-type", "text/plain"),
            ("x-archipelago-page", "1"),
        ],
    ] {
        let told = page.send("POST", "/api/sign-in", &headers, full(body.clone())).await;
        assert_eq!(told.status, 403, "{told:?}");
    }
    let large = json!({ "secret": "x".repeat(70_000) });
    assert_eq!(page.post("/api/sign-in", &large).await.status, 413);
    assert_eq!(page.post("/api/sign-in", &json!({ "secret": "wrong" })).await.status, 401);
    assert_eq!(page.post("/api/sign-in", &json!({ "secret": link.secret, "more": 1 })).await.status, 400);
    page.sign_in(&link).await;
    saw!("{} answers 401 to strangers, 421 to names of others, 403 to pages of others", page.host);
}

async fn a_link_is_good_once_and_shows_the_federation(federation: &Federation) {
    let link = link(federation, "").await;
    let mut page = Page::at(&link);
    let me = page.sign_in(&link).await;
    assert!(me["role"] == "operator" && me["identity"].as_str().unwrap().contains("/operator/"), "{me}");
    let again = Page::at(&link).post("/api/sign-in", &json!({ "secret": link.secret })).await;
    assert_eq!(again.status, 401, "{again:?}");
    assert!(!federation.logs(usize::MAX).contains(&link.secret), "a secret is in a log");

    let mut live = page.live().await;
    let gateways = federation.gateways().len();
    let state = live
        .until("everything is there", |state| {
            let links = state["links"].as_array().unwrap();
            let members = state["members"].as_array().unwrap();
            state["rollout"]["acknowledged"] == gateways
                && members.iter().any(|member| member["role"] == "leader")
                && links.len() == 3
                && links.iter().all(|link| link["state"] == "up" && link["rttMicros"].is_u64())
                && !state["windowSeconds"].is_null()
                && !state["events"].as_array().unwrap().is_empty()
        })
        .await;
    let clusters = state["clusters"].as_array().unwrap();
    let names: Vec<&str> = clusters.iter().map(|cluster| cluster["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["frankfurt", "paris", "tokyo"]);
    for cluster in clusters {
        assert!(cluster["state"] == "active" && cluster["agent"] == "connected", "{cluster}");
        assert!(
            cluster["gateways"].as_array().unwrap().iter().all(|gateway| gateway["state"] == "synced"),
            "{cluster}"
        );
        assert!(cluster["entering"]["requestsPerSecond"].is_number(), "{cluster}");
    }
    let checkout = service(&state, "shop/checkout");
    assert!(checkout["state"] == "ready" && checkout["split"].is_null(), "{checkout}");
    assert_eq!(checkout["rate"]["requestsPerSecond"], 0.0, "no traffic is known to be none");
    assert_eq!(checkout["rate"]["p99Micros"], Value::Null);
    let expiries = state["certificates"].as_array().unwrap();
    assert!(expiries.iter().any(|certificate| certificate["who"] == "paris/gw-1"), "{expiries:?}");

    // Whoever signs out is out, also on the stream that is open.
    assert_eq!(page.post("/api/sign-out", &json!({})).await.status, 204);
    let bye = live.bye().await;
    assert_eq!(bye["reason"], "signed-out");
    assert_eq!(page.get("/api/me").await.status, 401);
}

async fn a_reader_sees_and_changes_nothing(federation: &Federation) {
    let link = link(federation, "--read-only").await;
    let mut page = Page::at(&link);
    assert_eq!(page.sign_in(&link).await["role"], "reader");
    page.live().await.state().await;
    let before = federation.json("get").await;
    for dry_run in [true, false] {
        let body = json!({ "dryRun": dry_run, "service": "shop/checkout", "cluster": "tokyo", "basis": "absent", "requestId": "a" });
        let told = page.post("/api/actions/switch", &body).await;
        assert_eq!(told.status, 403, "{told:?}");
        assert!(told.field("error").contains("reader"), "{told:?}");
    }
    assert_eq!(federation.json("get").await, before);
}

async fn a_switch_by_button_moves_traffic_and_is_counted(federation: &Federation) {
    let (mut page, mut live) = signed_in(federation).await;
    let served = async || {
        let mut connection = Connection::http1(&federation.gateway("paris/gw-1").http).await;
        connection.get("checkout.shop", "/", &[]).await.field("cluster")
    };
    assert_eq!(served().await, "paris");
    let wish = json!({ "dryRun": true, "service": "shop/checkout", "cluster": "tokyo" });
    let plan = page.post("/api/actions/switch", &wish).await;
    assert_eq!(plan.status, 200, "{plan:?}");
    let plan = plan.json();
    assert_eq!(plan["command"], "meshctl switch shop/checkout --to tokyo");
    assert_eq!((&plan["before"], &plan["basis"]), (&Value::Null, &json!("absent")));
    assert_eq!(plan["after"]["backends"], json!([{ "cluster": "tokyo", "weight": 1 }]));
    assert_eq!(plan["changes"][0]["what"], "created");
    assert_eq!(served().await, "paris", "a plan changes nothing");

    let body = json!({ "dryRun": false, "service": "shop/checkout", "cluster": "tokyo", "basis": plan["basis"], "requestId": "one" });
    let done = page.post("/api/actions/switch", &body).await;
    assert_eq!(done.status, 200, "{done:?}");
    let done = done.json();
    let (expected, acknowledged) = (&done["applied"]["expected"], &done["applied"]["acknowledged"]);
    assert_eq!((expected, acknowledged), (&json!(federation.gateways().len()), expected), "{done}");
    for _ in 0..20 {
        assert_eq!(served().await, "tokyo", "who has acknowledged it does it");
    }
    saw!("{acknowledged} of {expected} gateways, the last after {} µs", done["applied"]["lastAckMicros"]);

    // The same request once more does nothing more; another one made from the same plan is refused.
    let again = page.post("/api/actions/switch", &body).await.json();
    assert_eq!(again["revision"], done["revision"], "{again}");
    let stale = json!({ "dryRun": false, "service": "shop/checkout", "cluster": "paris", "basis": plan["basis"], "requestId": "two" });
    let told = page.post("/api/actions/switch", &stale).await;
    assert_eq!(told.status, 409, "{told:?}");
    assert_eq!(served().await, "tokyo");

    // The stream tells it, and where the requests go now.
    let state = live
        .until("the switch and its traffic", |state| {
            let checkout = service(state, "shop/checkout");
            let flows = checkout["flows"].as_array().into_iter().flatten();
            let moved = flows.clone().any(|flow| flow["from"] == "paris" && flow["to"] == "tokyo");
            checkout["split"]["canUndo"] == true && moved && state["revision"] == done["revision"]
        })
        .await;
    let checkout = service(&state, "shop/checkout");
    assert_eq!(checkout["split"]["backends"][0]["sharePercent"], 100.0);
    let events = state["events"].as_array().unwrap();
    let written = events.iter().rev().find(|event| event["kind"] == "write" && event["service"] == "shop/checkout");
    assert!(written.is_some_and(|event| event["actor"].as_str().unwrap().contains("/operator/")), "{written:?}");
}

async fn every_button_has_its_way_back(federation: &Federation) {
    let (mut page, _live) = signed_in(federation).await;
    let before = federation.json("get").await;
    let mut number = 0;
    for (there, back) in [
        (
            (
                "split",
                json!({ "service": "shop/checkout", "backends": [{ "cluster": "paris", "weight": 9 }, { "cluster": "tokyo", "weight": 1 }] }),
            ),
            ("clear-split", json!({ "service": "shop/checkout" })),
        ),
        (
            ("switch", json!({ "service": "shop/checkout", "cluster": "tokyo" })),
            ("undo-switch", json!({ "service": "shop/checkout" })),
        ),
        (("drain", json!({ "cluster": "tokyo" })), ("undrain", json!({ "cluster": "tokyo" }))),
        (
            ("failover", json!({ "service": "shop/checkout", "cluster": "paris" })),
            ("release", json!({ "service": "shop/checkout", "cluster": "paris" })),
        ),
    ] {
        for (verb, fields) in [there, back] {
            number += 1;
            let done = page.act(verb, &fields, &format!("way-{number}")).await;
            let changed = done["changes"][0]["what"].as_str().unwrap();
            assert!(["created", "updated", "deleted"].contains(&changed), "{verb}: {done}");
            assert_eq!(done["applied"]["acknowledged"], done["applied"]["expected"], "{verb}: {done}");
        }
        let specs = |list: &Value| -> Vec<Value> {
            list.as_array().unwrap().iter().map(|resource| resource["spec"].clone()).collect()
        };
        assert_eq!(specs(&federation.json("get").await), specs(&before));
    }
    for (verb, fields, status) in [
        ("drain", json!({ "dryRun": true, "cluster": "atlantis" }), 422),
        ("switch", json!({ "dryRun": true, "service": "shop/none", "cluster": "tokyo" }), 422),
        ("switch", json!({ "dryRun": true, "service": "shop/checkout", "cluster": "atlantis" }), 422),
        ("undo-switch", json!({ "dryRun": true, "service": "shop/checkout" }), 422),
        ("format", json!({ "dryRun": true }), 404),
        ("drain", json!({ "dryRun": false, "cluster": "tokyo" }), 400),
    ] {
        let told = page.post(&format!("/api/actions/{verb}"), &fields).await;
        assert_eq!(told.status, status, "{verb}: {told:?}");
        assert!(!told.field("error").is_empty());
    }
}

async fn a_killed_cluster_is_seen(federation: &Federation) {
    let (_page, mut live) = signed_in(federation).await;
    live.until("all are well", |state| cluster(state, "tokyo")["state"] == "active").await;
    let killed = Instant::now();
    federation.ok("drill kill tokyo --for 60s").await;
    let state = live.until("it is gone", |state| cluster(state, "tokyo")["state"] == "unreachable").await;
    saw!("seen {} ms after the drill began", killed.elapsed().as_millis());
    assert_eq!(cluster(&state, "tokyo")["entering"], Value::Null, "not known is not zero");
    let gone = cluster(&state, "tokyo")["gateways"].as_array().unwrap().clone();
    assert!(gone.iter().all(|gateway| gateway["state"] == "disconnected"), "{gone:?}");
    let missing = state["missing"].as_array().unwrap();
    assert!(missing.iter().any(|missing| missing["who"] == "tokyo/gw-1"), "{missing:?}");
    live.until("the link says so", |state| {
        let links = state["links"].as_array().unwrap();
        links.iter().any(|link| link["a"] == "paris" && link["b"] == "tokyo" && link["state"] == "down")
    })
    .await;
    federation.ok("drill end").await;
    live.until("it is back", |state| cluster(state, "tokyo")["state"] == "active").await;
}

async fn the_session_of_a_revoked_operator_ends(federation: &Federation) {
    let state = federation.scratch().join("bob");
    federation.ok(&format!("operator create bob --out {}", state.display())).await;
    let ran =
        harness::meshctl(["--state".as_ref(), state.as_os_str(), "dashboard".as_ref(), "-o".as_ref(), "json".as_ref()]);
    let (link, unused) = (
        Link::of(&ran.await.expect(0).json()),
        Link::of(&{
            let ran = harness::meshctl([
                "--state".as_ref(),
                state.as_os_str(),
                "dashboard".as_ref(),
                "-o".as_ref(),
                "json".as_ref(),
            ]);
            ran.await.expect(0).json()
        }),
    );
    let mut page = Page::at(&link);
    assert_eq!(page.sign_in(&link).await["name"], "bob");
    let mut live = page.live().await;
    live.state().await;
    let (_mine, mut others) = signed_in(federation).await;
    federation.ok("operator revoke bob").await;
    let bye = live.bye().await;
    assert_eq!(bye["reason"], "revoked");
    for path in ["/api/me", "/api/live"] {
        assert_eq!(page.get(path).await.status, 401);
    }
    // The other link may be of a member that hears of it a moment later: it ends what it has let in meanwhile.
    let mut late = Page::at(&unused);
    let told = late.post("/api/sign-in", &json!({ "secret": unused.secret })).await;
    assert!(matches!(told.status, 200 | 401), "{told:?}");
    if let Some(cookie) = told.headers.get("set-cookie") {
        late.cookie = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
    }
    eventually("a revoked operator is signed in nowhere", PATIENCE, async || {
        let me = late.get("/api/me").await;
        check(me.status == 401, || format!("{me:?}"))
    })
    .await;
    others.state().await;
}

async fn who_does_not_read_is_cut(federation: &Federation) {
    let (page, mut others) = signed_in(federation).await;
    let socket = TcpSocket::new_v4().unwrap();
    // As little as a kernel keeps for a reader.
    socket.set_recv_buffer_size(1).unwrap();
    let mut stream = socket.connect(page.address).await.unwrap();
    let head = format!("GET /api/live HTTP/1.1\r\nhost: {}\r\ncookie: {}\r\n\r\n", page.host, page.cookie);
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let cut = timeout(PATIENCE, stream.ready(Interest::ERROR)).await;
    assert!(cut.is_ok_and(|ready| ready.is_ok()), "still held after {PATIENCE:?}");
    let error = rustix::net::sockopt::socket_error(stream.as_fd()).unwrap();
    assert!(error.is_err(), "ended, and not by a reset");
    saw!("cut after {:.1} s", begun.elapsed().as_secs_f64());
    others.state().await;
}

/// A link as `meshctl dashboard` prints it.
struct Link {
    address: SocketAddr,
    secret: String,
}

impl Link {
    fn of(said: &Value) -> Self {
        let url = said["url"].as_str().unwrap();
        let (site, secret) = url.split_once("/sign-in#").unwrap();
        Self { address: harness::client::address(site), secret: secret.to_owned() }
    }
}

async fn link(federation: &Federation, flags: &str) -> Link {
    let said = federation.json(&format!("dashboard --print {flags}")).await;
    assert_eq!(said["validForSeconds"], 60, "{said}");
    Link::of(&said)
}

async fn signed_in(federation: &Federation) -> (Page, Live) {
    let link = link(federation, "").await;
    let mut page = Page::at(&link);
    page.sign_in(&link).await;
    let live = page.live().await;
    (page, live)
}

/// A browser's side of it.
struct Page {
    address: SocketAddr,
    host: String,
    cookie: String,
}

impl Page {
    fn at(link: &Link) -> Self {
        Self { address: link.address, host: link.address.to_string(), cookie: String::new() }
    }

    async fn sign_in(&mut self, link: &Link) -> Value {
        let told = self.post("/api/sign-in", &json!({ "secret": link.secret })).await;
        assert_eq!(told.status, 200, "{told:?}");
        let cookie = told.headers["set-cookie"].to_str().unwrap();
        for word in ["HttpOnly", "SameSite=Strict", "Path=/"] {
            assert!(cookie.split("; ").any(|part| part == word), "{cookie}");
        }
        self.cookie = cookie.split(';').next().unwrap().to_owned();
        told.json()
    }

    async fn get(&mut self, path: &str) -> Reply {
        let (host, cookie) = (self.host.clone(), self.cookie.clone());
        self.send("GET", path, &[("host", &host), ("cookie", &cookie)], empty()).await
    }

    async fn post(&mut self, path: &str, body: &Value) -> Reply {
        let (host, cookie) = (self.host.clone(), self.cookie.clone());
        let headers = [
            ("host", host.as_str()),
            ("cookie", cookie.as_str()),
            ("origin", &format!("http://{host}")),
            ("content-type", "application/json"),
            ("x-archipelago-page", "1"),
        ];
        self.send("POST", path, &headers, full(body.to_string())).await
    }

    /// Plans it and does it.
    async fn act(&mut self, verb: &str, fields: &Value, request_id: &str) -> Value {
        let path = format!("/api/actions/{verb}");
        let mut body = fields.clone();
        body["dryRun"] = true.into();
        let plan = self.post(&path, &body).await;
        assert_eq!(plan.status, 200, "{verb}: {plan:?}");
        body["dryRun"] = false.into();
        body["basis"] = plan.json()["basis"].clone();
        body["requestId"] = request_id.into();
        let done = self.post(&path, &body).await;
        assert_eq!(done.status, 200, "{verb}: {done:?}");
        done.json()
    }

    async fn live(&self) -> Live {
        let mut connection = Connection::http1(&self.address.to_string()).await;
        let headers = [("cookie", self.cookie.as_str())];
        let response = connection.send("GET", &self.host, "/api/live", &headers, empty()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        Live { body: response.into_body(), rest: Vec::new(), _connection: connection }
    }

    /// `headers` name the host.
    async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Reply {
        let mut connection = Connection::http1(&self.address.to_string()).await;
        let host = headers.iter().find(|(name, _)| *name == "host").unwrap().1;
        let others: Vec<(&str, &str)> =
            headers.iter().filter(|(name, value)| *name != "host" && !value.is_empty()).copied().collect();
        Reply::read(connection.send(method, host, path, &others, body).await.unwrap()).await
    }
}

/// The stream of states.
struct Live {
    body: Incoming,
    rest: Vec<u8>,
    _connection: Connection,
}

impl Live {
    /// Kind and data of the next event.
    async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") {
                let rest = self.rest.split_off(end + 2);
                let event = String::from_utf8(std::mem::replace(&mut self.rest, rest)).unwrap();
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let data = field("data: ").unwrap();
                return (field("event: ").unwrap(), serde_json::from_str(&data).unwrap());
            }
            let frame = timeout(PATIENCE, self.body.frame()).await.expect("a state every two seconds");
            let data = frame.expect("it goes on").unwrap().into_data().unwrap();
            self.rest.extend_from_slice(&data);
        }
    }

    async fn state(&mut self) -> Value {
        let (kind, state) = self.next().await;
        assert_eq!(kind, "state", "{state}");
        state
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let state = self.state().await;
            if is_so(&state) {
                return state;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}: {state:#}");
        }
    }

    /// The last word, after which there is nothing.
    async fn bye(&mut self) -> Value {
        loop {
            let (kind, said) = self.next().await;
            if kind == "bye" {
                let end = timeout(PATIENCE, self.body.frame()).await.expect("the stream ends");
                assert!(end.is_none(), "{end:?}");
                return said;
            }
        }
    }
}

fn cluster<'a>(state: &'a Value, name: &str) -> &'a Value {
    named(&state["clusters"], name)
}

fn service<'a>(state: &'a Value, name: &str) -> &'a Value {
    named(&state["services"], name)
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name} in {list}"))
}
