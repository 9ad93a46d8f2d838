//! What every process says of itself: its version, and what it takes of the machine, by the names that Prometheus's own clients use.

use std::{
    fmt, fs,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

/// Declares `mesh_build_info` and the process's own figures in `registry`; `component` is what the process is.
pub fn register(registry: &mut Registry, component: &'static str) {
    registry.register_collector(Box::new(Process { component }));
}

/// Declares when certificates run out; `expiries` is asked at each scrape, and says which kinds of them there are.
pub fn register_expiries<F>(registry: &mut Registry, expiries: F)
where
    F: Fn() -> Vec<(&'static str, SystemTime)> + Send + Sync + 'static,
{
    registry.register_collector(Box::new(Expiries(expiries)));
}

struct Expiries<F>(F);

impl<F> fmt::Debug for Expiries<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Expiries")
    }
}

impl<F: Fn() -> Vec<(&'static str, SystemTime)> + Send + Sync + 'static> Collector for Expiries<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let name = "mesh_certificate_not_after_timestamp_seconds";
        let help =
            "When a certificate in use here runs out, seconds since 1970, by what it is: its own, an issuer, the root";
        let mut times = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (kind, time) in (self.0)() {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            ConstGauge::new(since.as_secs()).encode(times.encode_family(&[("kind", kind)])?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Process {
    component: &'static str,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let labels = [("component", self.component), ("version", env!("CARGO_PKG_VERSION"))];
        let help = "1, with what this process is and its version as labels";
        let mut info = encoder.encode_descriptor("mesh_build_info", help, None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(info.encode_family(&labels)?)?;
        // Elsewhere than on Linux, and where /proc is hidden, the rest is absent rather than zero.
        if let Some(stat) = Stat::read() {
            let help = "User and system CPU time spent";
            let cpu = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(stat.cpu.as_secs_f64()).encode(cpu)?;
            gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory", stat.resident_bytes)?;
            gauge(&mut encoder, "process_virtual_memory_bytes", "Virtual memory", stat.virtual_bytes)?;
            gauge(&mut encoder, "process_threads", "Threads", stat.threads)?;
            if let Some(start) = stat.start_seconds() {
                let help = "Start of the process, seconds since 1970";
                let started = encoder.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?;
                ConstGauge::new(start).encode(started)?;
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is the listing itself.
            let open = open.count().saturating_sub(1) as u64;
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", open)?;
        }
        if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            gauge(&mut encoder, "process_max_fds", "Open file descriptors that it may have", limit)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// From `/proc/self/stat`, see proc(5).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu: Duration,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        let page = u64::try_from(rustix::param::page_size()).ok()?;
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?, rustix::param::clock_ticks_per_second(), page)
    }

    fn parse(text: &str, ticks_per_second: u64, page_bytes: u64) -> Option<Self> {
        // The name of the program comes second, in brackets, and may hold anything; the state is the third field.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu: seconds(field(14)?.checked_add(field(15)?)?, ticks_per_second)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)?.checked_mul(page_bytes)?,
        })
    }

    fn start_seconds(&self) -> Option<f64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let boot: u64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let since = seconds(self.start_ticks, rustix::param::clock_ticks_per_second())?;
        Some((Duration::from_secs(boot) + since).as_secs_f64())
    }
}

fn seconds(ticks: u64, per_second: u64) -> Option<Duration> {
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(per_second.max(1));
    Some(Duration::from_nanos(u64::try_from(nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_program_may_hold_anything() {
        let text =
            "7 (a) R 1 (b)) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 12 0 5000 1048576 300 18446744073709551615";
        assert_eq!(
            Stat::parse(text, 100, 4096),
            Some(Stat {
                cpu: Duration::from_secs(3),
                threads: 12,
                start_ticks: 5000,
                virtual_bytes: 1_048_576,
                resident_bytes: 300 * 4096,
            })
        );
        assert_eq!(Stat::parse("7 (cut off) S 1 7", 100, 4096), None);
    }

    #[test]
    fn a_process_knows_itself() {
        let mut registry = Registry::default();
        register(&mut registry, "test");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")))
                .unwrap_or_else(|| panic!("{name} in\n{text}"));
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        // /proc counts in hundredths of a second, and the boot time in seconds.
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
        assert!(
            text.contains(&format!(
                "mesh_build_info{{component=\"test\",version=\"{}\"}} 1",
                env!("CARGO_PKG_VERSION")
            ))
        );
    }
}
