//! `Telemetry.Tap`: asks all gateways every so often about requests that have ended, and hands on what each tells.
//!
//! Each gateway's records have numbers, and the next question says which have arrived: an answer that was lost is in the next one. Counts are
//! since the gateway began to look, so that what is handed on is what they have grown by.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_proto::v1::{
    MissingGateway, NoAnswer, NoAnswerReason, TapAnswer, TapGateways, TapQuestion, TapRequest, TapSaid, TapTold,
    answer, gateway_answer::Outcome, question, tap_said::Said,
};
use archipelago_telemetry::Filter;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{MissedTickBehavior, interval_at},
};
use tonic::Status;

use super::Context;

/// What an operator looks at.
#[derive(Debug)]
pub(super) struct Look {
    tap: u64,
    filter: String,
    rate_max: u32,
    /// By cluster and gateway.
    cursors: BTreeMap<(String, String), Cursor>,
    /// As it was last said, and when.
    gateways: Option<(TapGateways, Instant)>,
}

/// What has arrived of a gateway.
#[derive(Debug, Default)]
struct Cursor {
    incarnation: u64,
    after: u64,
    matched: u64,
    left_out: u64,
}

impl Look {
    /// Checks what was asked for.
    pub(super) fn new(request: TapRequest) -> Result<Self, Status> {
        let TapRequest { filter, rate_max } = request;
        Filter::parse(&filter).map_err(|error| Status::invalid_argument(format!("the filter: {error}")))?;
        let rate_max = if rate_max == 0 { RATE } else { rate_max };
        if rate_max > RATE_MAX {
            return Err(Status::invalid_argument(format!("a gateway tells of {RATE_MAX} requests a second at most")));
        }
        Ok(Self { tap: rand::random(), filter, rate_max, cursors: BTreeMap::new(), gateways: None })
    }

    /// Looks until nobody takes it any more.
    pub(super) async fn run(
        mut self,
        context: Arc<Context>,
        said: mpsc::Sender<Result<TapSaid, Status>>,
        _permit: OwnedSemaphorePermit,
    ) {
        let mut due = interval_at(Instant::now().into(), INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = Instant::now();
        loop {
            tokio::select! {
                () = said.closed() => return,
                () = context.stopping.cancelled() => {
                    let status = Status::unavailable("this member is shutting down, ask another");
                    drop(said.try_send(Err(status)));
                    return;
                }
                _ = due.tick() => {}
            }
            match self.ask(&context, &said).await {
                Ok(()) => asked = Instant::now(),
                // Others ask at this moment: gateways keep what they have to tell.
                Err(Refused::Status(_)) if asked.elapsed() < UNASKED_MAX => {}
                Err(Refused::Status(status)) => return drop(said.send(Err(status)).await),
                Err(Refused::NobodyListens) => return,
            }
        }
    }

    /// Asks every gateway, and hands on what each tells as it comes.
    async fn ask(
        &mut self,
        context: &Arc<Context>,
        said: &mpsc::Sender<Result<TapSaid, Status>>,
    ) -> Result<(), Refused> {
        let inquiry = context.inquire(|cluster, gateway| {
            let key = (cluster.to_owned(), gateway.to_owned());
            let cursor = self.cursors.get(&key);
            let (incarnation, after) = cursor.map_or((0, 0), |cursor| (cursor.incarnation, cursor.after));
            let filter = self.filter.clone();
            Some(question::Body::Tap(TapQuestion {
                tap: self.tap,
                filter,
                rate_max: self.rate_max,
                incarnation,
                after,
            }))
        });
        let inquiry = inquiry.map_err(Refused::Status)?;
        let (sender, mut answers) = mpsc::channel(super::ANSWERS_QUEUED_MAX);
        // Ends when nobody takes its answers.
        tokio::spawn(inquiry.run(move |answer| {
            let sender = sender.clone();
            async move { sender.send(answer).await }
        }));
        let mut gateways = TapGateways::default();
        while let Some(answer) = answers.recv().await {
            let (cluster, gateway) = (answer.cluster, answer.gateway);
            let why = match answer.outcome {
                Some(Outcome::Answer(told)) => match told.body {
                    Some(answer::Body::Tap(told)) => {
                        gateways.reported += 1;
                        if let Some(told) = self.take(cluster, gateway, told) {
                            hand_on(said, Said::Told(told)).await?;
                        }
                        continue;
                    }
                    _ => no_answer("answered something else than was asked"),
                },
                Some(Outcome::Missing(why)) => why,
                None => no_answer("said nothing"),
            };
            gateways.missing.push(MissingGateway { cluster, gateway, why: Some(why) });
        }
        gateways.missing.sort_by(|a, b| (&a.cluster, &a.gateway).cmp(&(&b.cluster, &b.gateway)));
        let is_known = |(said, at): &(TapGateways, Instant)| *said == gateways && at.elapsed() < SILENT_MAX;
        if !self.gateways.as_ref().is_some_and(is_known) {
            self.gateways = Some((gateways.clone(), Instant::now()));
            hand_on(said, Said::Gateways(gateways)).await?;
        }
        Ok(())
    }

    /// What is new in an answer, if anything is.
    fn take(&mut self, cluster: String, gateway: String, told: TapAnswer) -> Option<TapTold> {
        let TapAnswer { incarnation, mut records, matched, left_out } = told;
        let key = (cluster, gateway);
        let cursor = self.cursors.entry(key.clone()).or_default();
        if cursor.incarnation != incarnation {
            *cursor = Cursor { incarnation, ..Cursor::default() };
        }
        // A gateway that tells again what has arrived is not believed twice.
        records.retain(|record| record.sequence > cursor.after);
        cursor.after = records.iter().map(|record| record.sequence).max().unwrap_or(cursor.after);
        let grown = |before: &mut u64, now: u64| now.saturating_sub(std::mem::replace(before, now.max(*before)));
        let (matched, left_out) = (grown(&mut cursor.matched, matched), grown(&mut cursor.left_out, left_out));
        let (cluster, gateway) = key;
        let is_new = !records.is_empty() || matched > 0 || left_out > 0;
        is_new.then_some(TapTold { cluster, gateway, records, matched, left_out })
    }
}

/// Why gateways are not asked.
#[derive(Debug)]
enum Refused {
    Status(Status),
    NobodyListens,
}

async fn hand_on(said: &mpsc::Sender<Result<TapSaid, Status>>, what: Said) -> Result<(), Refused> {
    said.send(Ok(TapSaid { said: Some(what) })).await.map_err(|_| Refused::NobodyListens)
}

fn no_answer(detail: &str) -> NoAnswer {
    NoAnswer { reason: NoAnswerReason::Failed.into(), detail: detail.to_owned() }
}

/// Quick enough to be live, slow enough to cost a gateway nothing.
const INTERVAL: Duration = Duration::from_millis(500);
/// Who listens knows by this that the member is there.
const SILENT_MAX: Duration = Duration::from_secs(5);
/// As much as scrolls by and can be read.
const RATE: u32 = 50;
/// As gateways have it.
const RATE_MAX: u32 = 250;
/// Gateways forget a look that nobody asks about for 15 s.
const UNASKED_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::TapRecord;

    use super::*;

    fn answer(incarnation: u64, sequences: &[u64], matched: u64, left_out: u64) -> TapAnswer {
        let records = sequences.iter().map(|sequence| TapRecord { sequence: *sequence, ..TapRecord::default() });
        TapAnswer { incarnation, records: records.collect(), matched, left_out }
    }

    #[test]
    fn each_record_is_handed_on_once_and_counts_as_far_as_they_have_grown() {
        let mut look = Look::new(TapRequest::default()).unwrap();
        let mut take = |told| {
            let told = look.take("paris".into(), "gw-1".into(), told)?;
            let sequences: Vec<u64> = told.records.iter().map(|record| record.sequence).collect();
            Some((sequences, told.matched, told.left_out))
        };
        assert_eq!(take(answer(7, &[], 0, 0)), None);
        assert_eq!(take(answer(7, &[1, 2], 5, 3)), Some((vec![1, 2], 5, 3)));
        assert_eq!(take(answer(7, &[1, 2], 5, 3)), None, "the question that said so was lost");
        assert_eq!(take(answer(7, &[2, 3], 6, 3)), Some((vec![3], 1, 0)));
        assert_eq!(take(answer(7, &[], 5, 2)), None, "a count that shrinks within one beginning is not believed");
        assert_eq!(take(answer(7, &[], 8, 5)), Some((vec![], 2, 2)));
        assert_eq!(take(answer(9, &[1], 1, 0)), Some((vec![1], 1, 0)), "it began again");
        assert_eq!(look.cursors.len(), 1);
    }

    #[test]
    fn what_is_asked_is_checked() {
        let refused = |filter: &str, rate_max| {
            let request = TapRequest { filter: filter.to_owned(), rate_max };
            Look::new(request).unwrap_err().message().to_owned()
        };
        assert!(refused("status>=", 0).starts_with("the filter: 1:9: "));
        assert_eq!(refused("", 251), "a gateway tells of 250 requests a second at most");
    }
}
