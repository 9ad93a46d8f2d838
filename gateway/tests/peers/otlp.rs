//! Spans as a collector of others reads them, with OpenTelemetry's own messages: one request through two clusters.

use std::net::SocketAddr;

use archipelago_proto::v1::Protocol;
use serde_json::Value;

use crate::harness::{Mesh, backend, eventually, get, patient, service, text};
use crate::tools::{python_with, script, server};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";

fn config(endpoint: &str, protocol: &str) -> archipelago_otlp::Config {
    let (config, warnings) = archipelago_otlp::Config::read(|name| {
        let value = match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL" => protocol,
            "OTEL_BSP_SCHEDULE_DELAY" => "1",
            "OTEL_RESOURCE_ATTRIBUTES" => "k8s.pod.name=gateway-x7k2p",
            _ => return None,
        };
        Some(value.to_owned())
    });
    assert!(warnings.is_empty(), "{warnings:?}");
    config.unwrap()
}

async fn told(collector: SocketAddr, path: &str) -> Value {
    serde_json::from_str(&text(get(collector, "collector", path, &[]).await.unwrap()).await).unwrap()
}

/// What a backend of `Debug`-printed headers says of one of them.
fn header(seen: &str, name: &str) -> String {
    let (_, rest) = seen.split_once(&format!("\"{name}\": \"")).unwrap_or_else(|| panic!("no {name} in {seen}"));
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn one_span_for_each_hop_with_the_right_parents_by_grpc_and_http() {
    let Some(python) = python_with("opentelemetry.proto") else { return };
    for protocol in ["grpc", "http/protobuf"] {
        let (collector, _collector) = server(script(&python, "otlp_collector.py", &[])).await;
        let port = if protocol == "grpc" { told(collector, "/grpc").await } else { collector.port().into() };
        let otlp = config(&format!("http://127.0.0.1:{port}"), protocol);
        let mut mesh = Mesh::start_traced(&["paris", "tokyo"], patient(), Some(otlp)).await;
        let (endpoint, _) = backend("tokyo").await;
        let config = service("checkout", Protocol::Http1, &["tokyo"], &[("tokyo", 1)]);
        mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, "v2")]).await;
        let said = [
            ("traceparent", format!("00-{TRACE}-{CLIENT}-01")),
            ("tracestate", "rojo=1, congo=t61rcWkgMzE".to_owned()),
        ];
        let said = [(said[0].0, &*said[0].1), (said[1].0, &*said[1].1)];
        let answer = get(mesh.http("paris"), "checkout.shop", "/headers?token=secret", &said).await.unwrap();
        let seen = text(answer).await;

        let mut spans = Value::Null;
        eventually("there are four spans", async || {
            spans = told(collector, "/spans").await;
            spans.as_array().unwrap().len() >= 4
        })
        .await;
        let spans = spans.as_array().unwrap();
        assert_eq!(spans.len(), 4, "{spans:?}");
        let of = |cluster: &str, kind: &str| {
            let is_meant = |span: &&Value| span["resource"]["mesh.cluster"] == cluster && span["kind"] == kind;
            spans.iter().find(is_meant).unwrap_or_else(|| panic!("no {kind} of {cluster} in {spans:?}"))
        };
        let chain = [
            of("paris", "SPAN_KIND_SERVER"),
            of("paris", "SPAN_KIND_CLIENT"),
            of("tokyo", "SPAN_KIND_SERVER"),
            of("tokyo", "SPAN_KIND_CLIENT"),
        ];
        let mut parent = CLIENT.to_owned();
        for span in chain {
            assert_eq!(span["traceId"], TRACE);
            assert_eq!(span["parentSpanId"], parent, "{span}");
            parent = span["spanId"].as_str().unwrap().to_owned();
            assert_eq!(span["traceState"], "rojo=1,congo=t61rcWkgMzE");
            assert_eq!((&span["name"], &span["status"]), (&"GET shop/checkout".into(), &Value::Null), "{span}");
            assert_eq!(span["how"], protocol.trim_end_matches("/protobuf"));
            let (from, to) = (&span["startTimeUnixNano"], &span["endTimeUnixNano"]);
            let nanos = |text: &Value| text.as_str().unwrap().parse::<u64>().unwrap();
            assert!(nanos(from) > 0 && nanos(from) <= nanos(to), "{span}");
            assert!(!span.to_string().contains("secret"), "{span}");
        }
        assert_eq!(header(&seen, "traceparent"), format!("00-{TRACE}-{parent}-01"), "the backend's parent");
        assert_eq!(header(&seen, "tracestate"), "rojo=1, congo=t61rcWkgMzE");

        let [paris, _, tokyo, last] = chain;
        assert_eq!(paris["attributes"]["mesh.response_flags"], Value::Null, "it has all of it, however it came");
        for (span, cluster) in [(paris, "paris"), (tokyo, "tokyo")] {
            let resource = &span["resource"];
            assert_eq!(
                (&resource["service.name"], &resource["service.instance.id"]),
                (&"archipelago-gateway".into(), &format!("{cluster}/gw-1").into())
            );
            assert_eq!(
                (&resource["k8s.pod.name"], &resource["mesh.gateway"]),
                (&"gateway-x7k2p".into(), &"gw-1".into())
            );
            assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
            let attributes = &span["attributes"];
            for (name, value) in [
                ("http.request.method", "GET"),
                ("url.scheme", "http"),
                ("url.path", "/headers"),
                ("server.address", "checkout.shop"),
                ("mesh.service", "shop/checkout"),
                ("mesh.source.cluster", "paris"),
                ("mesh.destination.cluster", "tokyo"),
            ] {
                assert_eq!(attributes[name], value, "{name} in {span}");
            }
            assert_eq!(
                (&attributes["http.response.status_code"], &attributes["mesh.revision"]),
                (&200.into(), &1.into())
            );
        }
        let attributes = [paris, tokyo].map(|span| &span["attributes"]);
        assert_eq!(attributes.map(|of| &of["mesh.reporter"]), [&Value::from("source"), &"destination".into()]);
        assert_eq!(attributes.map(|of| &of["network.protocol.version"]), [&Value::from("1.1"), &"3".into()]);
        assert_eq!(
            (&attributes[1]["mesh.destination.version"], &attributes[0]["mesh.rule"]),
            (&"v2".into(), &"backends".into())
        );
        assert_eq!(attributes[1]["mesh.source.gateway"], "spiffe://mesh.test/cluster/paris/gateway/gw-1");
        assert_eq!(last["attributes"]["network.peer.port"], endpoint.port());
        assert_eq!(chain[1]["attributes"]["mesh.destination.gateway"], "tokyo/gw-1");
    }
}
