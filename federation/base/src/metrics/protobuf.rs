//! Prometheus' own format, `io.prometheus.client.MetricFamily` one after another, each behind its length: the only one that carries native
//! histograms. Made of the OpenMetrics text that everybody else gets, so that all formats say the same.

use std::collections::HashMap;

use prost::Message;

use super::Native;

/// The families of `text`, with exemplars and native histograms where there are such.
pub(super) fn encode(text: &str, exemplars: &HashMap<String, String>, natives: &HashMap<String, Native>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut family = Family::default();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            family.end(&mut out);
            family = Family { name, help, ..Family::default() };
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            if name != family.name {
                family.end(&mut out);
                family = Family { name, ..Family::default() };
            }
            family.kind = kind;
        } else if !line.starts_with('#')
            && let Some(sample) = Sample::read(line)
        {
            family.add(&sample, exemplars, natives);
        }
    }
    family.end(&mut out);
    out
}

/// What has been read of a family.
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    help: &'a str,
    kind: &'a str,
    metrics: Vec<Metric>,
    /// Of a histogram: the labels of the last metric, as they are written.
    last: String,
}

/// One line.
struct Sample<'a> {
    /// Name and labels, as they are written.
    whole: &'a str,
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

impl Family<'_> {
    fn add(&mut self, sample: &Sample<'_>, exemplars: &HashMap<String, String>, natives: &HashMap<String, Native>) {
        let exemplar = || exemplars.get(sample.whole).and_then(|text| Exemplar::read(text));
        let metric = |metric: Metric| Metric { label: labels(&sample.labels), ..metric };
        let value = Some(sample.value);
        match self.kind {
            "counter" => {
                let counter = Some(Counter { value, exemplar: exemplar() });
                self.metrics.push(metric(Metric { counter, ..Metric::default() }));
            }
            "histogram" => self.add_to_histogram(sample, exemplar(), natives),
            "gauge" => self.metrics.push(metric(Metric { gauge: Some(Value { value }), ..Metric::default() })),
            _ => self.metrics.push(metric(Metric { untyped: Some(Value { value }), ..Metric::default() })),
        }
    }

    fn add_to_histogram(&mut self, sample: &Sample<'_>, exemplar: Option<Exemplar>, natives: &HashMap<String, Native>) {
        let upper = sample.labels.iter().find(|(name, _)| *name == "le").and_then(|(_, value)| value.parse().ok());
        let own: Vec<_> = sample.labels.iter().filter(|(name, _)| *name != "le").cloned().collect();
        let key = key(self.name, &own);
        if self.metrics.is_empty() || self.last != key {
            let histogram = natives.get(&key).map(Histogram::native).unwrap_or_default();
            self.metrics.push(Metric { label: labels(&own), histogram: Some(histogram), ..Metric::default() });
            self.last = key;
        }
        let Some(histogram) = self.metrics.last_mut().and_then(|metric| metric.histogram.as_mut()) else { return };
        let is_native = histogram.schema.is_some();
        #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "counts are counts")]
        let count = sample.value as u64;
        match sample.name.strip_prefix(self.name) {
            // Those of a native one were taken with its buckets, and belong to them.
            Some("_sum") if !is_native => histogram.sample_sum = Some(sample.value),
            Some("_count") if !is_native => histogram.sample_count = Some(count),
            Some("_bucket") => {
                histogram.bucket.push(Bucket { cumulative_count: Some(count), upper_bound: upper, exemplar });
            }
            _ => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.metrics.is_empty() {
            return;
        }
        let (suffix, kind) = match self.kind {
            "counter" => ("_total", MetricType::Counter),
            "gauge" => ("", MetricType::Gauge),
            "histogram" => ("", MetricType::Histogram),
            _ => ("", MetricType::Untyped),
        };
        let family = MetricFamily {
            name: Some(format!("{}{suffix}", self.name)),
            help: Some(unescaped(self.help)),
            kind: Some(kind.into()),
            metric: std::mem::take(&mut self.metrics),
        };
        // A vector grows as it must.
        let _ = family.encode_length_delimited(out);
    }
}

impl<'a> Sample<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let Some(open) = line.find('{') else {
            let (name, value) = line.split_once(' ')?;
            return Some(Self { whole: name, name, labels: Vec::new(), value: value.trim().parse().ok()? });
        };
        let name = line.get(..open)?;
        let (mut rest, mut labels) = (line.get(open + 1..)?, Vec::new());
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"")?;
            let mut is_escaped = false;
            let end = quoted.find(|char: char| {
                let is_end = char == '"' && !is_escaped;
                is_escaped = char == '\\' && !is_escaped;
                is_end
            })?;
            labels.push((label, unescaped(quoted.get(..end)?)));
            rest = quoted.get(end + 1..)?;
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        let value = rest.get(1..)?;
        let whole = line.get(..line.len() - value.len())?;
        Some(Self { whole, name, labels, value: value.trim().parse().ok()? })
    }
}

/// The name of a metric and its labels as they are, not escaped: what [`Native`] ones are found by.
pub(super) fn key<N: AsRef<str>, V: AsRef<str>>(name: &str, labels: &[(N, V)]) -> String {
    let mut key = name.to_owned();
    for (label, value) in labels {
        key.push(if key.len() == name.len() { '{' } else { ',' });
        key.push_str(label.as_ref());
        key.push_str("=\"");
        key.push_str(value.as_ref());
        key.push('"');
    }
    key
}

fn labels(labels: &[(&str, String)]) -> Vec<LabelPair> {
    let pair =
        |(name, value): &(&str, String)| LabelPair { name: Some((*name).to_owned()), value: Some(value.clone()) };
    labels.iter().map(pair).collect()
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            char => out.push(char),
        }
    }
    out
}

impl Exemplar {
    /// Out of `{name="value"} value timestamp`.
    fn read(text: &str) -> Option<Self> {
        let (inner, rest) = text.strip_prefix('{')?.rsplit_once("} ")?;
        let (name, value) = inner.split_once("=\"")?;
        let label = vec![LabelPair { name: Some(name.to_owned()), value: Some(value.strip_suffix('"')?.to_owned()) }];
        let (value, at) = rest.split_once(' ')?;
        let at: f64 = at.parse().ok()?;
        #[allow(clippy::cast_possible_truncation, reason = "seconds since 1970, and less than a second")]
        let timestamp = Timestamp { seconds: at.trunc() as i64, nanos: (at.fract() * 1e9) as i32 };
        Some(Self { label, value: Some(value.parse().ok()?), timestamp: Some(timestamp) })
    }
}

impl Histogram {
    fn native(native: &Native) -> Self {
        let mut this = Self {
            sample_count: Some(native.buckets.iter().map(|(_, count)| count).sum()),
            sample_sum: Some(native.sum),
            schema: Some(Native::SCHEMA),
            // What takes no time at all is in the lowest bucket that there is; this says that it is a native one, whatever is in it.
            zero_threshold: Some(ZERO_THRESHOLD),
            zero_count: Some(0),
            ..Self::default()
        };
        let (mut next, mut before) = (0, 0_i64);
        for (index, count) in &native.buckets {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            match this.positive_span.last_mut() {
                Some(span) if *index == next => span.length = Some(span.length.unwrap_or(0) + 1),
                _ => this.positive_span.push(BucketSpan { offset: Some(index - next), length: Some(1) }),
            }
            this.positive_delta.push(count - before);
            (next, before) = (index + 1, count);
        }
        this
    }
}

/// Of Prometheus' own client: 2^-128.
const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;

/// As in `io/prometheus/client/metrics.proto`, what is used of it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    help: Option<String>,
    #[prost(enumeration = "MetricType", optional, tag = "3")]
    kind: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    pub(super) metric: Vec<Metric>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum MetricType {
    Counter = 0,
    Gauge = 1,
    Untyped = 3,
    Histogram = 4,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Value>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Counter>,
    #[prost(message, optional, tag = "5")]
    untyped: Option<Value>,
    #[prost(message, optional, tag = "7")]
    pub(super) histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

/// Of a gauge, or of something whose type is not known.
#[derive(Clone, Copy, PartialEq, Message)]
struct Value {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Counter {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
    #[prost(message, optional, tag = "2")]
    exemplar: Option<Exemplar>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    pub(super) sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    pub(super) schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    pub(super) positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "13")]
    pub(super) positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    upper_bound: Option<f64>,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<Exemplar>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct BucketSpan {
    #[prost(sint32, optional, tag = "1")]
    pub(super) offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) length: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(double, optional, tag = "2")]
    value: Option<f64>,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Timestamp>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut bytes: &[u8]) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        while !bytes.is_empty() {
            families.push(MetricFamily::decode_length_delimited(&mut bytes).unwrap());
        }
        families
    }

    const TEXT: &str = "# HELP mesh_x X\\\\ of.\n# TYPE mesh_x counter\nmesh_x_total{a=\"b\\\"}\\\\ \\n\",c=\"d\"} 3\n\
        # HELP mesh_g G.\n# TYPE mesh_g gauge\n# UNIT mesh_g s\nmesh_g -1.5\n\
        # HELP mesh_empty None.\n# TYPE mesh_empty gauge\n\
        # HELP mesh_h H.\n# TYPE mesh_h histogram\n\
        mesh_h_sum{a=\"1\"} 2.5\nmesh_h_count{a=\"1\"} 3\nmesh_h_bucket{le=\"0.5\",a=\"1\"} 1\nmesh_h_bucket{le=\"+Inf\",a=\"1\"} 3\n\
        mesh_h_sum{a=\"2\"} 9.0\nmesh_h_count{a=\"2\"} 4\nmesh_h_bucket{le=\"+Inf\",a=\"2\"} 4\n# EOF\n";

    #[test]
    fn it_says_what_the_text_says() {
        let exemplar = ("mesh_h_bucket{le=\"0.5\",a=\"1\"}".to_owned(), "{trace_id=\"ab\"} 0.25 1.500".to_owned());
        let families = read(&encode(TEXT, &[exemplar].into(), &HashMap::new()));
        let names: Vec<_> = families.iter().map(|family| family.name.clone().unwrap()).collect();
        assert_eq!(names, ["mesh_x_total", "mesh_g", "mesh_h"], "a family without metrics is none");
        assert_eq!(families[0].help.as_deref(), Some("X\\ of."));
        let counter = &families[0].metric[0];
        let label = |n: usize| (counter.label[n].name.clone().unwrap(), counter.label[n].value.clone().unwrap());
        assert_eq!([label(0), label(1)], [("a".into(), "b\"}\\ \n".into()), ("c".into(), "d".into())]);
        assert_eq!(counter.counter.as_ref().unwrap().value, Some(3.0));
        assert_eq!(families[1].metric[0].gauge.unwrap().value, Some(-1.5));
        let [one, two] = &families[2].metric[..] else { panic!("{families:?}") };
        let (one, two) = (one.histogram.as_ref().unwrap(), two.histogram.as_ref().unwrap());
        assert_eq!((one.sample_count, one.sample_sum, one.bucket.len()), (Some(3), Some(2.5), 2));
        assert_eq!((one.bucket[1].upper_bound, one.bucket[1].cumulative_count), (Some(f64::INFINITY), Some(3)));
        let exemplar = one.bucket[0].exemplar.as_ref().unwrap();
        assert_eq!((exemplar.value, exemplar.timestamp.unwrap().nanos), (Some(0.25), 500_000_000));
        assert_eq!((two.sample_count, two.schema, two.positive_span.len()), (Some(4), None, 0), "not a native one");
    }

    #[test]
    fn a_native_histogram_is_spans_and_differences() {
        let native = Native { sum: 7.0, buckets: vec![(-3, 5), (-2, 2), (4, 9)] };
        let natives = [(key("mesh_h", &[("a", "1")]), native)].into();
        let families = read(&encode(TEXT, &HashMap::new(), &natives));
        let histogram = families[2].metric[0].histogram.as_ref().unwrap();
        assert_eq!((histogram.sample_count, histogram.sample_sum), (Some(16), Some(7.0)), "as its buckets have it");
        let spans: Vec<_> = histogram.positive_span.iter().map(|s| (s.offset.unwrap(), s.length.unwrap())).collect();
        assert_eq!(spans, [(-3, 2), (5, 1)]);
        assert_eq!(histogram.positive_delta, [5, -3, 7]);
        assert_eq!((histogram.schema, histogram.bucket.len()), (Some(3), 2), "the classic ones stay beside");
    }
}
