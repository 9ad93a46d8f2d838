//! Spans to an OpenTelemetry collector.
//!
//! | module | what | I/O |
//! | --- | --- | --- |
//! | [`config`] | the standard's `OTEL_*` variables, as far as they are for spans | none |
//! | [`sampler`] | which traces are recorded | none |
//! | [`reply`] | what a collector's answer means | none |
//! | [`connection`] | one request to a collector, by HTTP/1.1 or gRPC, over TLS or not | sockets |
//! | [`exporter`] | a bounded queue, batches, and the thread that sends them | through the one above |
//!
//! Whoever has a span hands it to [`Spans::put`], which never waits: a span for which there is no room is counted and gone. A collector
//! that is slow or away costs spans, never the time of a request.

pub mod config;
pub mod connection;
pub mod exporter;
pub mod reply;
pub mod sampler;

pub use config::{Config, Protocol};
pub use exporter::{Counts, Exporter, Spans};
pub use sampler::Sampler;

/// OpenTelemetry's messages.
pub use opentelemetry_proto::tonic as proto;
pub use proto::common::v1::{AnyValue, KeyValue, any_value::Value};
pub use proto::trace::v1::{Span, Status, span, status};

/// An attribute of a span or a resource.
pub fn attribute(key: &str, value: impl Into<Attribute>) -> KeyValue {
    let Attribute(value) = value.into();
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The value of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute(Value);

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Self(Value::StringValue(text.to_owned()))
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self(Value::StringValue(text))
    }
}

impl From<u64> for Attribute {
    fn from(number: u64) -> Self {
        Self(Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX)))
    }
}
