//! The command line: `chaos load` and `chaos link`.

use std::{
    io::{self, BufRead as _, Write as _},
    net::SocketAddr,
    num::NonZeroU64,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    link::{LinkConfig, LinkControl, QUEUE_BYTES, Shape, TcpLink, UdpLink},
    load::{self, Arrivals, Expect, LoadError, Plan, Protocol, Running},
    units,
};

/// Load and broken networks, for tests and benchmarks
#[derive(Debug, Parser)]
#[command(name = "chaos", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send HTTP requests at a fixed rate and say what became of them
    #[command(after_help = LOAD_HELP)]
    Load(Box<Load>),
    /// Carry UDP or TCP between two addresses with delay, loss, or not at all
    #[command(after_help = LINK_HELP)]
    Link(Link),
}

#[derive(Debug, Args)]
struct Load {
    /// Where to send requests: http://host:port/path
    url: String,
    /// Arrivals a second
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How long arrivals go on
    #[arg(long, default_value = "10s", value_parser = units::duration)]
    duration: Duration,
    /// Go on until SIGINT or SIGTERM (a day at most) instead of for a duration
    #[arg(long, conflicts_with = "duration")]
    until_signal: bool,
    /// Spacing of arrivals
    #[arg(long, value_enum, default_value_t)]
    arrivals: Arrivals,
    /// Seed of the Poisson spacing
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Host header, where it differs from the URL's
    #[arg(long)]
    host: Option<String>,
    /// Use HTTP/2 by prior knowledge
    #[arg(long)]
    http2: bool,
    /// Request method
    #[arg(long, default_value = "GET")]
    method: http::Method,
    /// Request header; {n} in the value becomes the number of the request
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Let {n} start again after this many requests
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    cycle: u64,
    /// Bytes of every request body
    #[arg(long, value_name = "N", default_value_t = 0)]
    body_bytes: usize,
    /// From the intended send time to the last byte of the response
    #[arg(long, default_value = "10s", value_parser = units::duration)]
    timeout: Duration,
    /// Statuses that count as success
    #[arg(long, value_name = "LIST", default_value = "2xx,3xx")]
    expect_status: Expect,
    /// Connections at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    connections: usize,
    /// Concurrent requests on one HTTP/2 connection at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    streams: usize,
    /// Threads that send
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Form of the report on standard output
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// No progress on standard error
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct Link {
    /// Address that clients use instead of the real one
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// The real address
    #[arg(long, value_name = "ADDR")]
    to: SocketAddr,
    /// What to carry
    #[arg(long, value_enum, default_value_t = Carried::Udp)]
    protocol: Carried,
    /// Delay of each direction
    #[arg(long, default_value = "0ms", value_parser = units::duration)]
    delay: Duration,
    /// Variation of the delay, either way
    #[arg(long, default_value = "0ms", value_parser = units::duration)]
    jitter: Duration,
    /// Share of packets lost in each direction
    #[arg(long, default_value = "0%", value_parser = units::share)]
    loss: f64,
    /// Bandwidth of each direction, such as 10mbit; without limit by default
    #[arg(long, value_parser = units::bandwidth)]
    bandwidth: Option<NonZeroU64>,
    /// Bytes on their way in each direction at most
    #[arg(long, value_name = "BYTES", default_value_t = QUEUE_BYTES)]
    queue: usize,
    /// Seed of jitter and loss
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Carried {
    Udp,
    Tcp,
}

/// Runs a command. Exit codes: 0 done and no request failed; 1 a request failed, or none was
/// answered; 2 the command could not be run.
pub fn run(cli: Cli) -> ExitCode {
    let outcome =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("building the runtime").and_then(
            |runtime| {
                let outcome = match cli.command {
                    Command::Load(load) => runtime.block_on(run_load(*load)),
                    Command::Link(link) => runtime.block_on(run_link(link)),
                };
                // The reader of standard input blocks in a read that may never return.
                runtime.shutdown_background();
                outcome
            },
        );
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run_load(args: Load) -> anyhow::Result<ExitCode> {
    let (output, quiet) = (args.output, args.quiet);
    let running = load::start(args.plan().map_err(LoadError::from)?)?;
    let stopper = running.stopper();
    let on_signal = async {
        if ended().await.is_ok() {
            stopper.cancel();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = watch(&running, quiet) => {}
        () = on_signal => {}
    }
    let report = running.finish().await?;
    let text = match output {
        Output::Text => report.to_string(),
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    io::stdout().write_all(text.as_bytes())?;
    if report.is_success() {
        return Ok(ExitCode::SUCCESS);
    }
    let summary = if report.sent == 0 {
        "no request was sent".to_owned()
    } else {
        format!("{} of {} requests failed", report.failed, report.sent)
    };
    eprintln!("error: {summary}");
    Ok(ExitCode::from(1))
}

/// Prints a line each second until the run is over.
async fn watch(running: &Running, quiet: bool) {
    let over = running.until(|_| false);
    let mut over = std::pin::pin!(over);
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.tick().await;
    loop {
        tokio::select! {
            _ = &mut over => return,
            _ = seconds.tick() => {}
        }
        if quiet {
            continue;
        }
        let counters = running.counters();
        let p99 = running.last_second().and_then(|second| second.p99_micros);
        eprintln!(
            "{:>5} s  sent {}  ok {}  failed {}  under way {}  p99 {}",
            running.elapsed().as_secs(),
            counters.sent,
            counters.ok,
            counters.failed,
            counters.in_flight,
            p99.map_or_else(|| "-".to_owned(), load::micros),
        );
    }
}

impl Load {
    fn plan(self) -> Result<Plan, load::PlanError> {
        let duration = Some(self.duration).filter(|_| !self.until_signal);
        Ok(Plan {
            host: self.host,
            protocol: if self.http2 { Protocol::Http2 } else { Protocol::Http1 },
            method: self.method,
            headers: self.headers,
            body_bytes: self.body_bytes,
            arrivals: self.arrivals,
            seed: self.seed,
            connections: self.connections,
            streams: self.streams,
            timeout: self.timeout,
            expect: self.expect_status,
            workers: self.threads,
            cycle: self.cycle,
            ..Plan::new(&self.url, self.rate, duration)?
        })
    }
}

async fn run_link(args: Link) -> anyhow::Result<ExitCode> {
    let config = LinkConfig {
        listen: args.listen,
        to: args.to,
        shape: Shape {
            delay: args.delay,
            jitter: args.jitter,
            loss: args.loss,
            bandwidth: args.bandwidth,
            queue_bytes: args.queue,
        },
        seed: args.seed,
    };
    let listening = || format!("listening on {}", args.listen);
    // Held to the end of this function: a link carries until it is dropped.
    let (_udp, _tcp, control, local) = match args.protocol {
        Carried::Udp => {
            let link = UdpLink::start(config).with_context(listening)?;
            let (control, local) = (link.control(), link.local_addr());
            (Some(link), None, control, local)
        }
        Carried::Tcp => {
            let link = TcpLink::start(config).with_context(listening)?;
            let (control, local) = (link.control(), link.local_addr());
            (None, Some(link), control, local)
        }
    };
    eprintln!("carrying {local} to {}; commands: {COMMANDS}", args.to);
    let commands = control.clone();
    std::thread::Builder::new()
        .name("chaos-commands".to_owned())
        .spawn(move || obey(&commands))
        .context("starting the reader of commands")?;
    ended().await?;
    println!("{}", serde_json::to_string_pretty(&control.stats())?);
    Ok(ExitCode::SUCCESS)
}

/// Carries out commands from standard input, one a line, until its end.
fn obey(control: &LinkControl) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Err(error) = obey_one(control, &words) {
            eprintln!("error: {error}");
        }
    }
}

fn obey_one(control: &LinkControl, words: &[&str]) -> Result<(), String> {
    match *words {
        [] => {}
        ["cut"] => control.cut(),
        ["heal"] => control.heal(),
        ["delay", delay] => control.set_delay(units::duration(delay)?),
        ["loss", loss] => control.set_loss(units::share(loss)?),
        ["stats"] => match serde_json::to_string(&control.stats()) {
            Ok(stats) => println!("{stats}"),
            Err(error) => return Err(error.to_string()),
        },
        _ => return Err(format!("expected one of: {COMMANDS}")),
    }
    Ok(())
}

/// Returns at the first SIGINT or SIGTERM.
async fn ended() -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn header(text: &str) -> Result<(String, String), String> {
    text.split_once(':')
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| "expected NAME: VALUE".to_owned())
}

const COMMANDS: &str = "cut, heal, delay 20ms, loss 1%, stats";

const LOAD_HELP: &str = "\
Latencies count from when a request was due, not from when it could be sent: a stall of the target shows in full.

Examples:
  chaos load http://127.0.0.1:15080/ --host checkout.shop --rate 1000 --duration 30s
  chaos load http://127.0.0.1:15080/ --host catalog.shop --http2 --rate 500 --until-signal -o json
  chaos load http://127.0.0.1:15080/ --host checkout.shop --header 'x-user: user-{n}' --cycle 1000

Exit codes: 0 no request failed; 1 some failed, or none was answered; 2 the command could not be run.";

const LINK_HELP: &str = "\
Commands on standard input, one a line: cut, heal, delay 20ms, loss 1%, stats. Statistics are printed at the end.

Example:
  chaos link --listen 127.0.0.1:25443 --to 127.0.0.1:15443 --delay 20ms --jitter 2ms --loss 1%";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn load(arguments: &[&str]) -> Plan {
        let all = ["chaos", "load", "http://127.0.0.1:1/"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Load(load) => load.plan().unwrap(),
            Command::Link(_) => panic!("not a load"),
        }
    }

    #[test]
    fn arguments_reach_the_plan() {
        let plan = load(&[
            "--rate",
            "500",
            "--duration",
            "30s",
            "--host",
            "checkout.shop",
            "--http2",
            "--method",
            "POST",
            "--header",
            "x-a: b",
            "--header",
            "x-a:c",
            "--body-bytes",
            "7",
            "--timeout",
            "2s",
            "--expect-status",
            "201",
            "--arrivals",
            "poisson",
        ]);
        assert_eq!(plan.rate, 500.0);
        assert_eq!(plan.duration, Some(Duration::from_secs(30)));
        assert_eq!(plan.host.as_deref(), Some("checkout.shop"));
        assert_eq!((plan.protocol, plan.method), (Protocol::Http2, http::Method::POST));
        assert_eq!(plan.headers, [("x-a".into(), "b".into()), ("x-a".into(), "c".into())]);
        assert_eq!((plan.body_bytes, plan.timeout), (7, Duration::from_secs(2)));
        assert_eq!(plan.arrivals, Arrivals::Poisson);
        assert!(plan.expect.allows(http::StatusCode::CREATED));
        assert!(!plan.expect.allows(http::StatusCode::OK));
        assert_eq!(load(&["--until-signal"]).duration, None);
    }

    #[test]
    fn link_commands_steer() {
        let control = LinkControl::for_tests();
        obey_one(&control, &["delay", "20ms"]).unwrap();
        obey_one(&control, &["loss", "1%"]).unwrap();
        let shape = control.shape(crate::link::Direction::Back);
        assert_eq!((shape.delay, shape.loss), (Duration::from_millis(20), 0.01));
        for wrong in [&["cut", "now"][..], &["delay", "x"], &["fly"]] {
            assert!(obey_one(&control, wrong).is_err());
        }
    }
}
