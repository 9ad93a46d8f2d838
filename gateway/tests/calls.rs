//! gRPC calls are counted by their own status, wherever it stands and however far it came.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;

use archipelago_proto::v1::Protocol;
use bytes::Bytes;
use harness::{Mesh, empty, eventually, raw, request, service};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

const HOST: &str = "checkout.shop";

/// Ends calls as their paths say: `/trailers/STATUS`, `/head/STATUS` and `/none/` without a word.
async fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    address
}

type Pieces = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn answer(request: Request<Incoming>) -> Result<Response<Pieces>, Infallible> {
    let (_, how) = request.uri().path().split_once('/').unwrap();
    let (how, status) = how.split_once('/').unwrap();
    let mut response = Response::builder().header("content-type", "application/grpc");
    let mut pieces = vec![Ok(Frame::data(Bytes::from_static(b"message")))];
    match how {
        "trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            pieces.push(Ok(Frame::trailers(trailers)));
        }
        "head" => {
            response = response.header("grpc-status", status);
            pieces.clear();
        }
        _ => {}
    }
    Ok(response.body(StreamBody::new(futures_util::stream::iter(pieces))).unwrap())
}

/// The status that a caller of `path` at `entry` hears.
async fn calls(entry: SocketAddr, path: &str, content_type: &str) -> String {
    let stream = TcpStream::connect(entry).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let headers = [("content-type", content_type), ("te", "trailers")];
    let asked = request("POST", HOST, &format!("http://{HOST}{path}"), &headers, empty());
    let (head, body) = sender.send_request(asked).await.unwrap().into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let said = trailers.get("grpc-status").or_else(|| head.headers.get("grpc-status"));
    said.map(|status| status.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// Requests by `response_code`, `response_flags` and `grpc_response_status`, as `reporter` counted them.
async fn counted(mesh: &Mesh, cluster: &str, reporter: &str) -> BTreeMap<String, u64> {
    let text = raw(mesh.metrics(cluster), b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await;
    let start = format!("mesh_requests_total{{reporter=\"{reporter}\"");
    let of = |line: &str| {
        let (labels, count) = line.rsplit_once("} ").unwrap();
        let value = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let names = ["response_code", "response_flags", "grpc_response_status"];
        (names.map(|name| value(name).unwrap_or_default()).join(" ").trim_end().to_owned(), count.parse().unwrap())
    };
    text.lines().filter(|line| line.starts_with(&start)).map(of).collect()
}

/// Lines of the access log: path without its first part, and what is said of the status.
fn logged(mesh: &Mesh, cluster: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(mesh.state_dir(cluster).join("access.log")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn a_call_is_counted_by_its_own_status() {
    let endpoint = backend().await;
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let config = service("checkout", Protocol::H2c, &["tokyo"], &[]);
    mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, "")]).await;
    for entry in ["tokyo", "paris"] {
        eventually(&format!("{entry} reaches it"), async || {
            calls(mesh.http(entry), "/head/16", "application/grpc").await == "16"
        })
        .await;
    }
    let reporters = [("tokyo", "source"), ("paris", "source"), ("tokyo", "destination")];
    for entry in ["tokyo", "paris"] {
        let heard = async |path: &str| calls(mesh.http(entry), path, "application/grpc+proto").await;
        assert_eq!(heard("/trailers/0").await, "0");
        assert_eq!(heard("/trailers/14").await, "14", "{entry}");
        assert_eq!(heard("/trailers/5").await, "5", "{entry}");
        assert_eq!(heard("/head/7").await, "7", "{entry}");
        for word in ["17", "4294967296", "evil"] {
            assert_eq!(heard(&format!("/trailers/{word}")).await, word, "it passes as it is");
        }
        assert_eq!(heard("/none/").await, "");
        // Who did not call is not counted as if he had.
        assert_eq!(calls(mesh.http(entry), "/trailers/13", "application/json").await, "13");
    }
    let expected = [("200 -", 1), ("200 - 0", 1), ("200 - 14", 1), ("200 - 2", 4), ("200 - 5", 1), ("200 - 7", 1)];
    let expected: BTreeMap<String, u64> = expected.map(|(what, count)| (what.to_owned(), count)).into();
    for (cluster, reporter) in reporters {
        eventually(&format!("{reporter} {cluster} has counted all of them"), async || {
            let mut seen = counted(&mesh, cluster, reporter).await;
            // Those that asked whether it is reached.
            seen.retain(|what, _| what.starts_with("200 -") && what != "200 - 16");
            seen == expected
        })
        .await;
    }
    // Both gateways write down what the caller heard.
    for (cluster, reporter) in reporters {
        let mut said = Vec::new();
        eventually(&format!("{cluster} has written them down"), async || {
            let is_meant = |line: &&Value| line["reporter"] == reporter && line["path"] == "/trailers/14";
            said = logged(&mesh, cluster).iter().filter(is_meant).map(|line| line["grpc_status"].clone()).collect();
            !said.is_empty()
        })
        .await;
        assert!(said.iter().all(|status| *status == 14), "{cluster} {said:?}");
    }
    let none = logged(&mesh, "paris").into_iter().find(|line| line["path"] == "/trailers/13").unwrap();
    assert!(none.get("grpc_status").is_none(), "{none}");
}
