//! A kind that is followed through everything that an API server does to its clients.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says by panicking that it failed")]

use std::time::{Duration, Instant};

use archipelago_base::shutdown::{Shutdown, ShutdownTrigger};
use archipelago_kubernetes::{
    client,
    types::{Key, Service},
    watch::{Feed, Index, Selection, follow},
};
use archipelago_kubernetes_fake::{ApiServer, Fault};
use serde_json::{Value, json};
use tokio::time::timeout;

struct World {
    api: ApiServer,
    feed: Feed<Service>,
    _running: ShutdownTrigger,
}

impl World {
    async fn new() -> Self {
        let api = ApiServer::start().await;
        Self::on(api)
    }

    fn on(api: ApiServer) -> Self {
        let (running, shutdown) = Shutdown::manual();
        let client = client::new(kube::Config::new(api.url().parse().unwrap())).unwrap();
        let feed = follow(client, Selection::default(), shutdown);
        Self { api, feed, _running: running }
    }

    /// Waits until the index is as wanted, and checks on the way that it never was anything worse.
    async fn until(&self, what: &str, mut wanted: impl FnMut(&Index<Service>) -> bool) -> Index<Service> {
        let mut index = self.feed.index();
        let found = timeout(Duration::from_secs(60), index.wait_for(|index| wanted(index))).await;
        found.unwrap_or_else(|_| panic!("in vain: {what}; there is {:?}", self.names())).unwrap().clone()
    }

    async fn until_names(&self, names: &[&str]) {
        self.until(&format!("{names:?}"), |index| index.is_complete && of(index) == names).await;
    }

    fn names(&self) -> Vec<String> {
        of(&self.feed.now())
    }

    async fn until_failing(&self, status: Option<u16>) {
        let fails = |_: &ApiServer| {
            let failure = self.feed.failure()?;
            (failure.status.map(|status| status.as_u16()) == status).then_some(())
        };
        self.api.wait(&format!("failure {status:?}"), fails).await;
    }
}

fn of(index: &Index<Service>) -> Vec<String> {
    index.objects.keys().map(|key| key.name.to_string()).collect()
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": name },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
    })
}

#[tokio::test]
async fn follows_additions_changes_and_deletions() {
    let world = World::new().await;
    world.until_names(&[]).await;
    world.api.put(service("a"));
    world.api.put(service("b"));
    world.until_names(&["a", "b"]).await;
    world.api.edit("Service", "shop", "a", |object| object["spec"]["ports"][0]["port"] = 81.into());
    let port = |index: &Index<Service>| index.objects.get(&Key::new("shop", "a")).map(|service| service.ports[0].port);
    world.until("the new port", |index| port(index) == Some(81)).await;
    world.api.remove("Service", "shop", "a");
    world.until_names(&["b"]).await;
    assert!(world.api.seen().iter().all(|seen| seen.agent.starts_with("archipelago-agent/")));
}

#[tokio::test]
async fn a_long_list_is_read_in_pages_and_shown_only_when_it_is_whole() {
    let api = ApiServer::start().await;
    for n in 0..1_100 {
        api.put(service(&format!("s{n:04}")));
    }
    // The last page keeps failing; what came before must not be taken for everything.
    api.fault(Fault::status(500).on("continue=1100-services-100"));
    let world = World::on(api);
    world.until_failing(Some(500)).await;
    assert_eq!(world.feed.now(), Index::default());
    world.api.heal();
    world.until("all", |index| index.is_complete && index.objects.len() == 1_100).await;
}

#[tokio::test]
async fn a_continue_token_that_expires_leads_to_a_list_without_pages() {
    let api = ApiServer::start().await;
    for n in 0..600 {
        api.put(service(&format!("s{n:04}")));
    }
    api.fault(Fault::status(410).on("continue="));
    let world = World::on(api);
    world.until("all", |index| index.is_complete && index.objects.len() == 600).await;
    let lists: Vec<_> = world.api.seen().into_iter().filter(|seen| !seen.uri.contains("watch=")).collect();
    assert!(lists.last().is_some_and(|seen| !seen.uri.contains("limit=")), "{lists:?}");
}

#[tokio::test]
async fn compaction_and_a_broken_watch_lose_nothing_and_find_what_happened_in_between() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.api.put(service(name));
    }
    world.until_names(&["a", "b", "c"]).await;
    let kept = world.feed.now().objects.get(&Key::new("shop", "b")).cloned().unwrap();

    // Away while it happens: neither the deletion nor the addition is ever seen as an event.
    world.api.stop();
    world.until_failing(None).await;
    world.api.remove("Service", "shop", "a");
    world.api.put(service("d"));
    world.api.compact();
    let mut index = world.feed.index();
    let watching = tokio::spawn(async move {
        let mut fewest = usize::MAX;
        loop {
            let names = of(&index.borrow_and_update());
            fewest = fewest.min(names.len());
            if names == ["b", "c", "d"] || index.changed().await.is_err() {
                return fewest;
            }
        }
    });
    world.api.restart().await;
    assert_eq!(timeout(Duration::from_secs(60), watching).await.unwrap().unwrap(), 3, "the index was never emptied");
    // What did not change is the very same object.
    let same = world.feed.now().objects.get(&Key::new("shop", "b")).cloned().unwrap();
    assert!(std::sync::Arc::ptr_eq(&kept, &same));

    // 410 in the middle of a watch.
    world.api.compact();
    world.api.put(service("e"));
    world.until_names(&["b", "c", "d", "e"]).await;
}

#[tokio::test]
async fn a_watch_that_breaks_off_goes_on_where_it_was() {
    let world = World::new().await;
    world.api.put(service("a"));
    world.until_names(&["a"]).await;
    let lists = |world: &World| world.api.seen().iter().filter(|seen| seen.uri.contains("limit=")).count();
    let before = lists(&world);
    for name in ["b", "c", "d"] {
        world.api.break_watches();
        world.api.put(service(name));
        world.until(name, |index| of(index).contains(&name.to_owned())).await;
    }
    assert_eq!(lists(&world), before, "there was no need to list again");
}

#[tokio::test]
async fn bookmarks_move_on_past_a_compaction() {
    let world = World::new().await;
    world.api.put(service("a"));
    world.until_names(&["a"]).await;
    // Other kinds change a lot, this one does not.
    for n in 0..10 {
        let pod =
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "shop", "name": format!("p{n}") } });
        world.api.put(pod);
    }
    world.api.wait("the watch", |api| (api.watchers() == 1).then_some(())).await;
    let before = Instant::now();
    world.api.bookmark();
    world.api.wait("the bookmark", |_| (world.feed.age()? < before.elapsed()).then_some(())).await;
    world.api.break_watches();
    let resumed = |api: &ApiServer| {
        let mut watches = api.seen().into_iter().filter(|seen| seen.uri.contains("watch=true"));
        watches.next_back().filter(|seen| seen.uri.contains("resourceVersion=11")).map(drop)
    };
    world.api.wait("a watch from the bookmark", resumed).await;
}

#[tokio::test]
async fn forbidden_is_said_and_survived() {
    let world = World::new().await;
    world.api.put(service("a"));
    world.until_names(&["a"]).await;
    world.api.fault(Fault::status(403).on("/services"));
    world.api.break_watches();
    world.until_failing(Some(403)).await;
    assert!(world.feed.failure().unwrap().is_forbidden());
    world.api.put(service("b"));
    assert_eq!(world.names(), ["a"]);
    world.api.heal();
    world.until_names(&["a", "b"]).await;
    assert_eq!(world.feed.failure(), None);
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_said() {
    let api = ApiServer::start().await;
    api.put(service("a"));
    api.fault(Fault::busy(1).on("/services").times(2));
    let world = World::on(api);
    let began = Instant::now();
    world.until_names(&["a"]).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    let asked = world.api.seen().iter().filter(|seen| !seen.uri.contains("watch=")).count();
    assert_eq!(asked, 3);
}

#[tokio::test]
async fn dropped_connections_slow_answers_and_server_errors() {
    let api = ApiServer::start().await;
    api.put(service("a"));
    api.fault(Fault::delay(Duration::from_millis(300)).on("limit=").times(1));
    api.fault(Fault::status(500).on("/services").times(1));
    api.fault(Fault::drop().on("/services").times(1));
    let world = World::on(api);
    world.until_names(&["a"]).await;
    world.api.fault(Fault::drop().on("watch=true").times(2));
    world.api.break_watches();
    world.api.put(service("b"));
    world.until_names(&["a", "b"]).await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_keeps_what_was_known_of_it() {
    let world = World::new().await;
    world.api.put(service("a"));
    world.api.put(service("b"));
    world.until_names(&["a", "b"]).await;
    world.api.edit("Service", "shop", "a", |object| object["spec"]["ports"] = json!("none of your business"));
    world.api.edit("Service", "shop", "b", |object| object["spec"]["ports"][0]["port"] = 81.into());
    let port =
        |index: &Index<Service>, name| index.objects.get(&Key::new("shop", name)).map(|service| service.ports[0].port);
    let index = world.until("the readable one", |index| port(index, "b") == Some(81)).await;
    assert_eq!(port(&index, "a"), Some(80));
    // The same when it comes in a list.
    world.api.compact();
    world.api.put(service("c"));
    world.until_names(&["a", "b", "c"]).await;
    assert_eq!(port(&world.feed.now(), "a"), Some(80));
}

#[tokio::test]
async fn a_kind_that_is_not_installed_is_waited_for() {
    let api = ApiServer::start().await;
    api.uninstall("Service");
    let world = World::on(api);
    world.until_failing(Some(404)).await;
    assert!(!world.feed.now().is_complete);
    world.api.install(archipelago_kubernetes_fake::Kind::namespaced("", &["v1"], "services", "Service"));
    world.api.put(service("a"));
    world.until_names(&["a"]).await;
}

#[tokio::test]
async fn a_stopped_server_makes_the_index_old_and_nothing_else() {
    let world = World::new().await;
    world.api.put(service("a"));
    world.until_names(&["a"]).await;
    world.api.pause();
    world.api.put(service("b"));
    let age = world.feed.age().unwrap();
    world.api.wait("age", |_| (world.feed.age()? > age + Duration::from_millis(200)).then_some(())).await;
    assert_eq!(world.names(), ["a"]);
    world.api.resume();
    world.until_names(&["a", "b"]).await;
}
