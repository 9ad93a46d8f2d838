//! `tap`: requests, as they end.

use std::collections::BTreeMap;
use std::time::Duration;

use archipelago_proto::v1::{TapGateways, TapRequest, TapTold, tap_said::Said};
use archipelago_telemetry::Filter;
use archipelago_telemetry::filter::Field;
use tokio::time::{Instant, timeout_at};

use super::Context;
use crate::cli::TapArgs;
use crate::client::Client;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, talk};
use crate::views::{MissingView, TapView, qualified};

/// `tap …`.
pub(super) async fn run(context: &Context, args: TapArgs) -> Outcome {
    let filter = filter(&args)?;
    let client = context.client()?;
    super::top::exist(&client, args.service.as_slice()).await?;
    if let Some(cluster) = &args.cluster {
        has_cluster(&client, cluster).await?;
    }
    let request = TapRequest { filter: filter.to_string(), rate_max: args.rate };
    let mut shown = Shown { context, left: args.limit, count: 0, matched: 0, left_out: 0, missing: BTreeMap::new() };
    if matches!(context.output.format(), Format::Table | Format::Wide) {
        let headings = context.output.render(&TapView::headings(context.output.is_wide()));
        if !output::write_part(&headings)? {
            return Ok(());
        }
    }
    let until = args.time.map(|time| Instant::now() + time);
    let ended = tokio::select! {
        ended = look(&client, request, &mut shown) => ended,
        () = at(until) => Ok(()),
        pressed = tokio::signal::ctrl_c() => pressed.map_err(|error| Failure::refused(format!("cannot wait for Ctrl-C: {error}"))),
    };
    talk(shown.sum(args.rate));
    ended
}

/// What is asked for, by all of the flags.
fn filter(args: &TapArgs) -> Outcome<Filter> {
    let asked = args.filter.as_deref().map_or(Ok(Filter::default()), Filter::parse);
    let asked = asked.map_err(|error| {
        Failure::refused(format!("--where:{error}"))
            .hint("write for example --where 'service=shop/checkout status>=500'")
    })?;
    let is = |field, value: &str| Filter::equals(field, value).map_err(Failure::refused);
    let mut filter = asked;
    if let Some(service) = &args.service {
        filter = filter.and(is(Field::Service, &service.to_string())?);
    }
    if let Some(cluster) = &args.cluster {
        filter = filter.and(is(Field::Source, cluster)?.or(is(Field::Destination, cluster)?));
    }
    // Flags may make it longer than it may be.
    Filter::parse(&filter.to_string()).map_err(|error| Failure::refused(format!("--where:{error}")))
}

/// A name that no cluster has is most likely a typing error.
async fn has_cluster(client: &Client, name: &str) -> Outcome {
    let clusters = client.status().await?.clusters;
    let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    match names.contains(&name) {
        true => Ok(()),
        false => {
            Err(Failure::refused(format!("there is no cluster {name}")).hint(format!("there are {}", names.join(", "))))
        }
    }
}

/// Looks through whichever member answers, until enough is shown.
async fn look(client: &Client, request: TapRequest, shown: &mut Shown<'_>) -> Outcome {
    loop {
        let mut said = client.tap(request.clone()).await?;
        let mut has_begun = false;
        let why = loop {
            // Requests may be rare, but a member says every few seconds that it looks.
            let Ok(message) = timeout_at(Instant::now() + SILENT_MAX, said.message()).await else {
                break "the member does not answer any more".to_owned();
            };
            match message.map(|message| message.map(|message| message.said)) {
                Ok(Some(Some(Said::Gateways(gateways)))) => {
                    shown.gateways(gateways, !has_begun);
                    has_begun = true;
                }
                Ok(Some(Some(Said::Told(told)))) => {
                    if !shown.tell(told)? {
                        return Ok(());
                    }
                }
                // Of a newer version.
                Ok(Some(None)) => {}
                Ok(None) => break "the member ended it".to_owned(),
                Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                    return Err(Failure::refused(status.message().to_owned()));
                }
                Err(status) => break status.message().to_owned(),
            }
        };
        // A member that fails at once must not be asked in a loop.
        tokio::time::sleep(PAUSE).await;
        talk(format!("{why}; what ended meanwhile is not shown, another member looks from here on"));
    }
}

/// What has been shown, and what has not.
struct Shown<'a> {
    context: &'a Context,
    /// How many more are to be shown.
    left: Option<u64>,
    count: u64,
    matched: u64,
    left_out: u64,
    /// Gateways that do not tell, and why.
    missing: BTreeMap<String, String>,
}

impl Shown<'_> {
    /// Says who looks, and names those that do not, once.
    fn gateways(&mut self, gateways: TapGateways, begins: bool) {
        if begins {
            let count = gateways.reported;
            talk(format!("looking at the requests of {count} {}", if count == 1 { "gateway" } else { "gateways" }));
        }
        let missing: BTreeMap<String, String> =
            gateways.missing.into_iter().map(MissingView::new).map(|missing| (missing.name, missing.detail)).collect();
        for (name, why) in &missing {
            if self.missing.get(name) != Some(why) {
                talk(format!("not shown: what enters at {name}: {why}"));
            }
        }
        for name in self.missing.keys().filter(|name| !missing.contains_key(*name)) {
            talk(format!("shown again: what enters at {name}"));
        }
        self.missing = missing;
    }

    /// Shows what a gateway told; false when that is enough, or nobody reads it any more.
    fn tell(&mut self, told: TapTold) -> Outcome<bool> {
        let TapTold { cluster, gateway, records, matched, left_out } = told;
        if self.left_out == 0 && left_out > 0 {
            talk(format!("some are left out: {} has more than are shown of a gateway", qualified(&cluster, &gateway)));
        }
        self.matched += matched;
        self.left_out += left_out;
        let (output, wide) = (&self.context.output, self.context.output.is_wide());
        let mut text = String::new();
        for record in records {
            let view = TapView::new(&cluster, &gateway, record);
            match output.format() {
                Format::Json => {
                    let line = serde_json::to_string(&view);
                    text.push_str(&line.map_err(|error| Failure::refused(format!("cannot print a request: {error}")))?);
                    text.push('\n');
                }
                Format::Yaml => {
                    text.push_str("---\n");
                    text.push_str(&output::yaml(&view)?);
                }
                Format::Table | Format::Wide => text.push_str(&output.render(&view.line(wide))),
            }
            self.count += 1;
            if let Some(left) = &mut self.left {
                *left -= 1;
                if *left == 0 {
                    output::write_part(&text)?;
                    return Ok(false);
                }
            }
        }
        Ok(text.is_empty() || output::write_part(&text)?)
    }

    fn sum(&self, rate: u32) -> String {
        let Self { count, matched, left_out, .. } = self;
        let of = format!("{count} of {matched} requests shown");
        match left_out {
            0 => of,
            _ => format!(
                "{of}; {left_out} left out, of gateways with more than {rate} a second: narrow the filter, or raise --rate"
            ),
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A member says so every five seconds, and gives gateways and other members as much.
const SILENT_MAX: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(500);
