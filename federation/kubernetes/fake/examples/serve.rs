//! An API server with a large cluster in it, for measurements: `serve SERVICES ENDPOINTS KUBECONFIG`.
//!
//! Every service is exported. Ends with its standard input.

use std::{env, fs};

use archipelago_kubernetes_fake::{ApiServer, large};
use tokio::io::{AsyncReadExt, stdin};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = env::args().collect();
    let [_, services, endpoints, kubeconfig] = &arguments[..] else {
        panic!("serve SERVICES ENDPOINTS KUBECONFIG");
    };
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let (services, endpoints) = (number(services), number(endpoints));
    let api = ApiServer::start().await;
    large::fill(&api, services, endpoints);
    fs::write(kubeconfig, api.kubeconfig()).expect("the kubeconfig can be written");
    println!("{services} services, {} pods at {}", services * endpoints, api.url());
    let _ = stdin().read_to_end(&mut Vec::new()).await;
}
