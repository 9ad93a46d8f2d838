//! The standard's `OTEL_*` variables, as far as they are for spans.
//!
//! As the standard asks, a value that cannot be used is told and taken for absent: what is wrong with telemetry keeps nobody from
//! serving. Without an endpoint there is no export.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme, Uri};
use http::{HeaderName, HeaderValue};

use crate::proto::common::v1::KeyValue;
use crate::{Sampler, attribute};

/// Where spans go, which, and how.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// The collector: scheme, host, port, and the path of HTTP.
    pub endpoint: Uri,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// What every request says beside the spans; secrets, mostly.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Until a request is given up.
    pub timeout: Duration,
    /// Roots for `https`; `None`: those of this machine.
    pub certificate: Option<PathBuf>,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// Attributes of the resource, as far as they are configured; the first of a name counts.
    pub resource: Vec<(String, String)>,
    /// How long a span waits for others.
    pub schedule_delay: Duration,
    /// Spans that wait at most.
    pub queue_max: usize,
    /// Spans of one request.
    pub batch_max: usize,
}

/// By what a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `grpc`.
    Grpc,
    /// `http/protobuf`.
    Http,
}

impl Config {
    /// What `variable` says of each name; `None`: nothing is exported. The warnings say what was not understood and what to write.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> (Option<Self>, Vec<String>) {
        let mut reader = Reader { variable: &variable, warnings: Vec::new() };
        let config = reader.config();
        (config, reader.warnings)
    }

    /// As [`Self::read`], of this process's environment.
    pub fn from_env() -> (Option<Self>, Vec<String>) {
        Self::read(|name| std::env::var(name).ok())
    }

    /// The attributes of the resource: those configured, and of `own` those that are not.
    pub fn resource(&self, own: &[(&str, &str)]) -> Vec<KeyValue> {
        let mut all: Vec<(&str, &str)> = Vec::new();
        for (key, value) in self.resource.iter().map(|(key, value)| (&**key, &**value)).chain(own.iter().copied()) {
            if !value.is_empty() && all.iter().all(|(known, _)| *known != key) {
                all.push((key, value));
            }
        }
        all.into_iter().map(|(key, value)| attribute(key, value)).collect()
    }
}

impl fmt::Debug for Config {
    /// Without the headers' values, which are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Config")
            .field("endpoint", &self.endpoint)
            .field("protocol", &self.protocol)
            .field("headers", &names)
            .field("sampler", &self.sampler)
            .field("resource", &self.resource)
            .finish_non_exhaustive()
    }
}

struct Reader<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    /// An empty value is an absent one, says the standard.
    fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The variable for spans, or else the one for everything, and its name.
    fn of_signal(&self, rest: &str) -> Option<(String, String)> {
        let (own, all) = (format!("OTEL_EXPORTER_OTLP_TRACES_{rest}"), format!("OTEL_EXPORTER_OTLP_{rest}"));
        self.get(&own).map(|value| (own, value)).or_else(|| self.get(&all).map(|value| (all, value)))
    }

    fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    fn config(&mut self) -> Option<Config> {
        if self.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        match self.get("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return None,
            Some(_) => self.warn("OTEL_TRACES_EXPORTER must be otlp or none; it is taken for otlp".to_owned()),
        }
        let protocol = match self.of_signal("PROTOCOL") {
            Some((_, value)) if value == "grpc" => Protocol::Grpc,
            Some((_, value)) if value == "http/protobuf" => Protocol::Http,
            None => Protocol::Http,
            Some((name, _)) => {
                self.warn(format!("{name} must be grpc or http/protobuf; it is taken for http/protobuf"));
                Protocol::Http
            }
        };
        let endpoint = self.endpoint(protocol)?;
        let (schedule_delay, timeout) = (self.millis("OTEL_BSP_SCHEDULE_DELAY"), self.timeout());
        let queue_max = self.count("OTEL_BSP_MAX_QUEUE_SIZE").unwrap_or(QUEUE_DEFAULT);
        let batch_max = self.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").unwrap_or(BATCH_DEFAULT);
        if let Some((name, value)) = self.of_signal("COMPRESSION")
            && value != "none"
        {
            self.warn(format!("{name} must be none: spans are sent uncompressed"));
        }
        Some(Config {
            endpoint,
            protocol,
            headers: self.headers(),
            timeout,
            certificate: self.of_signal("CERTIFICATE").map(|(_, path)| path.into()),
            sampler: self.sampler(),
            resource: self.resource(),
            schedule_delay: schedule_delay.unwrap_or(SCHEDULE_DELAY_DEFAULT),
            queue_max,
            batch_max: batch_max.min(queue_max),
        })
    }

    fn endpoint(&mut self, protocol: Protocol) -> Option<Uri> {
        let own = self.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        // Of HTTP the variable for everything names a folder, that for spans the resource itself.
        let is_base = own.is_none();
        let text = own.or_else(|| self.get("OTEL_EXPORTER_OTLP_ENDPOINT"))?;
        let endpoint = self::endpoint(&text, protocol, is_base);
        if endpoint.is_none() {
            self.warn(
                "OTEL_EXPORTER_OTLP_ENDPOINT must be such as http://collector:4318 or https://collector:4317; no spans are \
                 exported"
                    .to_owned(),
            );
        }
        endpoint
    }

    fn timeout(&mut self) -> Duration {
        let name = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
        let name = name.into_iter().find(|name| self.get(name).is_some());
        name.and_then(|name| self.millis(name)).unwrap_or(TIMEOUT_DEFAULT)
    }

    fn headers(&mut self) -> Vec<(HeaderName, HeaderValue)> {
        let Some((name, text)) = self.of_signal("HEADERS") else { return Vec::new() };
        let mut headers = Vec::new();
        for (key, value) in pairs(&text) {
            let header = HeaderName::try_from(key.as_str()).ok().zip(HeaderValue::try_from(value).ok());
            let Some((key, mut value)) = header.filter(|(key, _)| !is_ours(key)) else {
                // Not which: what is misread may be a secret.
                self.warn(format!("{name} must be such as name=value,name=value; one of them is left out"));
                continue;
            };
            value.set_sensitive(true);
            headers.push((key, value));
        }
        headers
    }

    fn sampler(&mut self) -> Sampler {
        let Some(name) = self.get("OTEL_TRACES_SAMPLER") else { return Sampler::default() };
        let argument = self.get("OTEL_TRACES_SAMPLER_ARG");
        Sampler::parse(&name, argument.as_deref()).unwrap_or_else(|error| {
            self.warn(format!("{error}; it is taken for parentbased_always_on"));
            Sampler::default()
        })
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        let named = self.get("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name));
        let more = self.get("OTEL_RESOURCE_ATTRIBUTES").map(|text| pairs(&text)).unwrap_or_default();
        named.into_iter().chain(more).collect()
    }

    fn millis(&mut self, name: &str) -> Option<Duration> {
        self.count(name).map(|millis| Duration::from_millis(millis as u64))
    }

    fn count(&mut self, name: &str) -> Option<usize> {
        let text = self.get(name)?;
        let count = text.parse().ok().filter(|count| (1..=COUNT_MAX).contains(count));
        if count.is_none() {
            self.warn(format!("{name} must be a number from 1 to {COUNT_MAX}; it is left out"));
        }
        count
    }
}

fn endpoint(text: &str, protocol: Protocol, is_base: bool) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let mut parts = uri.into_parts();
    if ![Some(Scheme::HTTP), Some(Scheme::HTTPS)].contains(&parts.scheme) {
        return None;
    }
    // What is before an @ would be sent to whoever reads our logs.
    parts.authority.as_ref().filter(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))?;
    let path = parts.path_and_query.as_ref().map_or("/", |path| path.path()).to_owned();
    let path = match protocol {
        Protocol::Grpc => "/opentelemetry.proto.collector.trace.v1.TraceService/Export".to_owned(),
        Protocol::Http if is_base => format!("{}/v1/traces", path.trim_end_matches('/')),
        Protocol::Http => path,
    };
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

/// `key=value,key=value`, values with `%` and two digits for what would end them.
fn pairs(text: &str) -> Vec<(String, String)> {
    let members = text.split(',').filter_map(|member| member.split_once('='));
    let decoded = members.map(|(key, value)| (key.trim().to_owned(), decoded(value.trim())));
    decoded.filter(|(key, _)| !key.is_empty()).take(PAIRS_MAX).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = more.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Those that an export sets itself.
fn is_ours(name: &HeaderName) -> bool {
    ["content-type", "content-length", "host", "te", "transfer-encoding", "connection"].contains(&name.as_str())
}

/// The standard's, as are the next three.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const SCHEDULE_DELAY_DEFAULT: Duration = Duration::from_secs(5);
const QUEUE_DEFAULT: usize = 2_048;
const BATCH_DEFAULT: usize = 512;
/// A million spans are a gigabyte.
const COUNT_MAX: usize = 1_000_000;
const PAIRS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (Option<Config>, Vec<String>) {
        Config::read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn nothing_is_exported_without_an_endpoint_or_when_it_is_switched_off() {
        let of = |variables: &[(&str, &str)]| read(variables).0.is_some();
        assert!(!of(&[]) && !of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]));
        assert!(of(&[ENDPOINT]) && of(&[ENDPOINT, ("OTEL_SDK_DISABLED", "false")]));
        assert!(!of(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]));
        assert!(!of(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]));
    }

    #[test]
    fn endpoints() {
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let own = |value| ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value);
        let call = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        for (variables, expected) in [
            (vec![ENDPOINT], "http://collector:4318/v1/traces".to_owned()),
            (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:1/base/")], "https://c:1/base/v1/traces".to_owned()),
            (vec![ENDPOINT, own("http://traces:1")], "http://traces:1/".to_owned()),
            (vec![own("http://traces:1/v1/traces")], "http://traces:1/v1/traces".to_owned()),
            (vec![ENDPOINT, grpc], format!("http://collector:4318{call}")),
            (vec![own("http://[::1]:4317/"), grpc], format!("http://[::1]:4317{call}")),
        ] {
            let (config, warnings) = read(&variables);
            assert_eq!(config.map(|config| config.endpoint.to_string()), Some(expected), "{variables:?}");
            assert!(warnings.is_empty(), "{warnings:?}");
        }
        for bad in ["collector:4318", "ftp://collector", "http://", "http://user:secret@collector", "/v1", "http://a b"]
        {
            let (config, warnings) = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", bad)]);
            assert!(config.is_none() && warnings.len() == 1, "{bad}: {warnings:?}");
            assert!(!warnings[0].contains("secret"));
        }
    }

    #[test]
    fn the_rest_of_the_variables() {
        let (config, warnings) = read(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a%2Cb, x-team = mesh"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.01"),
            ("OTEL_SERVICE_NAME", "edge"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,k8s.pod.name=gw-%C3%A9"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ]);
        assert!(warnings.is_empty(), "{warnings:?}");
        let config = config.unwrap();
        let headers: Vec<_> =
            config.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(headers, [("authorization", "Bearer a,b"), ("x-team", "mesh")]);
        assert!(!format!("{config:?}").contains("Bearer"), "no secret in a log");
        assert_eq!((config.timeout, config.schedule_delay), (Duration::from_millis(1500), Duration::from_millis(200)));
        assert_eq!((config.queue_max, config.batch_max), (100, 100));
        assert_eq!(config.certificate, Some("/ca.pem".into()));
        assert_eq!(config.sampler, Sampler::parse("parentbased_traceidratio", Some("0.01")).unwrap());
        let resource = config.resource(&[("service.name", "gateway"), ("mesh.cluster", "paris"), ("absent", "")]);
        let pairs =
            [attribute("service.name", "edge"), attribute("k8s.pod.name", "gw-é"), attribute("mesh.cluster", "paris")];
        assert_eq!(resource, pairs);
    }

    #[test]
    fn what_is_not_understood_is_told_and_left_out() {
        let bad = [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=secret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "-1"),
        ];
        for one in bad {
            let (config, warnings) = read(&[ENDPOINT, one]);
            assert_eq!(config, read(&[ENDPOINT]).0, "{one:?}");
            assert!(warnings.len() == 1 && warnings[0].contains("must be"), "{one:?}: {warnings:?}");
            assert!(!warnings[0].contains("secret"));
        }
    }
}
