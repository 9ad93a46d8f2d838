//! What a large cluster costs in memory: bytes on the heap, counted, so that nothing else on the machine changes them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says by panicking that it failed")]

use std::{env, io::Read, path::Path, process::Stdio, sync::Arc, time::Duration};

use archipelago_agent::{
    catalog::Catalog,
    health::driver::Readiness,
    provider::{Link, Nodes, Provider},
    view::View,
};
use archipelago_base::{durable, shutdown::Shutdown};
use archipelago_kubernetes::{Kubernetes, client};
use archipelago_kubernetes_fake::{ApiServer, large};
use peak_alloc::PeakAlloc;
use tokio::{
    process::Command,
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Through the real lists, indexes and merges, up to what gateways and the control plane are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_cluster_is_a_few_megabytes() {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    let mut api_server = Command::new(env::current_exe().unwrap())
        .args(["an_api_server_in_a_process_of_its_own", "--exact", "--ignored"])
        .env(KUBECONFIG, &kubeconfig)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let patience = Duration::from_secs(240);
    let is_there = async {
        while !kubeconfig.exists() {
            assert!(api_server.try_wait().unwrap().is_none(), "the API server ended");
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(patience, is_there).await.expect("the API server");
    let before = HEAP.current_usage();

    let config = client::kubeconfig(&kubeconfig).await.unwrap();
    let provider = Kubernetes::new(config, "system".into(), "agent-0".into(), 17_000..=17_999);
    let (catalog, mut catalogs) = watch::channel(Arc::new(Catalog::default()));
    let (workloads, mut lists) = watch::channel(Nodes::default());
    let link = Link {
        cluster: "paris".into(),
        trust_domain: "test".into(),
        catalog,
        captures: watch::Sender::new(Arc::default()),
        workloads,
        policies: watch::Sender::new(None),
        leading: watch::Sender::new(None),
        imports: watch::channel(None).1,
        statuses: watch::channel(Arc::default()).1,
        reviews: mpsc::channel(1).1,
    };
    let (running, shutdown) = Shutdown::manual();
    let task = tokio::spawn(provider.follow(link, shutdown));
    let is_whole = |catalog: &Arc<Catalog>| {
        let endpoints = catalog.services.values().map(|service| service.ports[0].endpoints.len());
        catalog.read && endpoints.sum::<usize>() == SERVICES * ENDPOINTS
    };
    let catalog = timeout(patience, catalogs.wait_for(is_whole)).await.expect("the catalog").unwrap().clone();
    let is_whole =
        |nodes: &Nodes| nodes.values().map(|list| list.known().count()).sum::<usize>() == SERVICES * ENDPOINTS;
    drop(timeout(patience, lists.wait_for(is_whole)).await.expect("who runs where").unwrap());
    let view = View::new(&catalog, &Readiness::default(), None);
    assert_eq!(view.reports().iter().map(|report| report.ready as usize).sum::<usize>(), SERVICES * ENDPOINTS);

    // Buffers of lists that just ended are on their way out.
    let held = || HEAP.current_usage().saturating_sub(before);
    let small = async {
        while held() > BYTES_MAX {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let is_small = timeout(Duration::from_secs(60), small).await.is_ok();
    println!("{} bytes, {} at most", held(), HEAP.peak_usage());
    assert!(is_small, "{} bytes, and {BYTES_MAX} are enough", held());
    running.request();
    timeout(patience, task).await.expect("it ends").unwrap();
}

/// What an API server needs is not the agent's. Runs until its standard input ends.
#[tokio::test]
#[ignore = "part of the other test"]
async fn an_api_server_in_a_process_of_its_own() {
    let Some(kubeconfig) = env::var_os(KUBECONFIG) else { return };
    let api = ApiServer::start().await;
    large::fill(&api, SERVICES, ENDPOINTS);
    durable::write(Path::new(&kubeconfig), api.kubeconfig().as_bytes(), 0o600).unwrap();
    // A thread may be left in a read for ever; the process ends all the same.
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    let _ = end.await;
}

const KUBECONFIG: &str = "ARCHIPELAGO_TEST_KUBECONFIG";
/// The figure of the project's goal.
const SERVICES: usize = 2_000;
const ENDPOINTS: usize = 10;
/// A sixth more than was measured when it was written.
const BYTES_MAX: usize = 24_000_000;
