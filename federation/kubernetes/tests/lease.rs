//! Two replicas and one Lease, on an API server that is not always there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says by panicking that it failed")]

use std::time::{Duration, Instant};

use archipelago_base::shutdown::{Shutdown, ShutdownTrigger};
use archipelago_kubernetes::{client, lease};
use archipelago_kubernetes_fake::{ApiServer, Fault};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

struct Replica {
    leading: watch::Receiver<Option<u64>>,
    running: ShutdownTrigger,
    task: JoinHandle<()>,
}

impl Replica {
    fn new(api: &ApiServer, name: &str) -> Self {
        let (running, shutdown) = Shutdown::manual();
        let client = client::new(kube::Config::new(api.url().parse().unwrap())).unwrap();
        let (leads, leading) = watch::channel(None);
        let name = name.to_owned();
        let task = tokio::spawn(async move { lease::run(client, "system", name, leads, shutdown).await });
        Self { leading, running, task }
    }

    async fn until(&mut self, leads: bool) -> Option<u64> {
        let changed = self.leading.wait_for(|term| term.is_some() == leads);
        *timeout(Duration::from_secs(60), changed).await.expect("in vain").unwrap()
    }

    async fn stop(self) {
        self.running.request();
        self.task.await.unwrap();
    }
}

fn holder(api: &ApiServer) -> Option<String> {
    let lease = api.get("Lease", "system", "archipelago-agent")?;
    lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_leader_that_ends_is_followed_at_once() {
    let api = ApiServer::start().await;
    let mut a = Replica::new(&api, "a");
    let first = a.until(true).await.unwrap();
    let mut b = Replica::new(&api, "b");
    api.wait("the other one looks", |api| {
        (api.seen().iter().filter(|seen| seen.method == "GET").count() > 2).then_some(())
    })
    .await;
    assert_eq!((holder(&api).as_deref(), *b.leading.borrow()), (Some("a"), None));
    let began = Instant::now();
    a.stop().await;
    let second = b.until(true).await.unwrap();
    assert!(second > first);
    assert!(began.elapsed() < Duration::from_secs(8), "it was given back, not waited for: {:?}", began.elapsed());
    assert_eq!(holder(&api).as_deref(), Some("b"));
    b.stop().await;
    assert_eq!(holder(&api).as_deref(), Some(""));
}

#[tokio::test]
async fn a_leader_that_cannot_renew_steps_down_and_takes_up_a_new_term() {
    let api = ApiServer::start().await;
    let mut a = Replica::new(&api, "a");
    let first = a.until(true).await.unwrap();
    // Reads go through, writes do not.
    api.fault(Fault::status(500).method("PUT"));
    a.until(false).await;
    api.heal();
    let second = a.until(true).await.unwrap();
    assert!(second > first);
    // A server that says nothing at all is no better.
    api.pause();
    a.until(false).await;
    api.resume();
    assert!(a.until(true).await.unwrap() > second);
    a.stop().await;
}
