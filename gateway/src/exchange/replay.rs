//! When a request may be sent again, as one table.
//!
//! | what became of the attempt | any method | idempotent (RFC 9110 §9.2.2) | paid by |
//! | --- | --- | --- | --- |
//! | provably not processed: refused, never sent, rejected | again | again | failover |
//! | the gateway that had it is dead or unreachable | no | again | failover |
//! | the exchange broke after it was sent | no | again, once, by anybody | retry |
//! | its endpoint hangs ([`patience`](crate::balance::patience)) and has had all of it | no | again, once, by anybody, beside it: the first answer counts | retry |
//! | answered, in a way that cannot be passed on; the sender's own fault | no | no | |
//!
//! Always: only while nothing of a response has gone downstream, while the body can be sent whole, and at most [`ATTEMPTS_MAX`]
//! times. The rows that retries pay have their limit because a request can be what kills its handler: sent to every endpoint of every
//! cluster it would take them all down. What counts is how many endpoints *may have acted* on it, here and elsewhere, so
//! gateways tell each other (`mesh-sends`).

use http::Method;

use crate::balance::budget::Purpose;

/// What has become of a request so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct History {
    /// Attempts begun here.
    pub attempts: u32,
    /// Endpoints that may have acted on it, here or behind other gateways.
    pub acted: u32,
}

/// What became of one attempt that gave no response to pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// No endpoint can have acted on it.
    NotProcessed,
    /// The gateway that had it is dead, or cannot be reached: whoever acts on it does so unheard.
    Lost,
    /// So many endpoints may have acted on it, and none answered.
    Broken {
        /// Since the attempt began.
        acted: u32,
    },
    /// Nothing that another attempt would mend.
    Final,
}

/// Whether to send a request again that ended like this; `None`: no.
pub fn again(history: &mut History, ending: Ending, idempotent: bool, whole: bool) -> Option<Purpose> {
    if let Ending::Broken { acted } = ending {
        history.acted = history.acted.saturating_add(acted.max(1));
    }
    if !whole || history.attempts >= ATTEMPTS_MAX {
        return None;
    }
    match ending {
        Ending::NotProcessed => Some(Purpose::Failover),
        Ending::Lost if idempotent => Some(Purpose::Failover),
        Ending::Broken { .. } if idempotent && history.acted < ACTED_MAX => Some(Purpose::Retry),
        Ending::Lost | Ending::Broken { .. } | Ending::Final => None,
    }
}

/// Whether to ask another as well while one hangs. `whole`: the body can be sent whole, and the one that hangs has had all of it, so
/// that its exchange needs nothing more of the sender. If so, the one that hangs counts as one that may have acted.
pub fn hedge(history: &mut History, idempotent: bool, whole: bool) -> bool {
    let mut next = *history;
    let hedges = again(&mut next, Ending::Broken { acted: 1 }, idempotent, whole).is_some();
    if hedges {
        *history = next;
    }
    hedges
}

/// Methods whose repetition has the effect of one (RFC 9110 §9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// Two gateways and two clusters can fail under one request before it gives up.
const ATTEMPTS_MAX: u32 = 5;
/// The first, and one more.
const ACTED_MAX: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_table() {
        let broken = |acted| Ending::Broken { acted };
        let (failover, retry) = (Some(Purpose::Failover), Some(Purpose::Retry));
        type Case = (Ending, u32, u32, [Option<Purpose>; 2], u32);
        // Ending, attempts and actions before; what follows for any method and for idempotent ones; actions after.
        let cases: &[Case] = &[
            (Ending::NotProcessed, 1, 0, [failover, failover], 0),
            (Ending::NotProcessed, 4, 2, [failover, failover], 2),
            (Ending::NotProcessed, 5, 0, [None, None], 0),
            (Ending::Lost, 1, 0, [None, failover], 0),
            (Ending::Lost, 4, 2, [None, failover], 2),
            (Ending::Lost, 5, 0, [None, None], 0),
            (broken(1), 1, 0, [None, retry], 1),
            (broken(0), 1, 0, [None, retry], 1),
            (broken(2), 1, 0, [None, None], 2),
            (broken(1), 2, 1, [None, None], 2),
            (broken(1), 5, 0, [None, None], 1),
            (Ending::Final, 1, 0, [None, None], 0),
        ];
        for (ending, attempts, acted, expected, after) in cases {
            for (idempotent, expected) in [false, true].into_iter().zip(expected) {
                let mut history = History { attempts: *attempts, acted: *acted };
                assert_eq!(again(&mut history, *ending, idempotent, true), *expected, "{ending:?} {idempotent}");
                assert_eq!(history.acted, *after, "{ending:?}");
                let mut history = History { attempts: *attempts, acted: *acted };
                assert_eq!(again(&mut history, *ending, idempotent, false), None, "bytes of the body are gone");
            }
        }
    }

    #[test]
    fn what_is_asked_of_a_second_while_the_first_hangs() {
        // Attempts and actions before, idempotent, whole; hedged; actions after.
        let cases = [
            ((1, 0), true, true, true, 1),
            // A retry, or one that failed over, is hedged as long as nobody else may have acted.
            ((4, 0), true, true, true, 1),
            ((5, 0), true, true, false, 0),
            ((2, 1), true, true, false, 1),
            ((1, 1), true, true, false, 1),
            ((1, 0), false, true, false, 0),
            ((1, 0), true, false, false, 0),
            ((1, 0), false, false, false, 0),
        ];
        for (before, idempotent, whole, hedged, acted) in cases {
            let mut history = History { attempts: before.0, acted: before.1 };
            assert_eq!(hedge(&mut history, idempotent, whole), hedged, "{before:?} {idempotent} {whole}");
            assert_eq!((history.attempts, history.acted), (before.0, acted), "{before:?}");
        }
        // Both may have acted then: nobody is asked a third time, whatever becomes of them.
        let mut history = History { attempts: 1, acted: 0 };
        assert!(hedge(&mut history, true, true));
        history.attempts += 1;
        assert!(!hedge(&mut history, true, true));
        assert_eq!(again(&mut history, Ending::Broken { acted: 1 }, true, true), None);
    }

    fn ending() -> impl Strategy<Value = Ending> {
        prop_oneof![
            Just(Ending::NotProcessed),
            Just(Ending::Lost),
            (0_u32..3).prop_map(|acted| Ending::Broken { acted }),
            Just(Ending::Final),
        ]
    }

    proptest! {
        /// Whatever happens: no more than two endpoints break over one request, and what is not idempotent is sent once.
        #[test]
        fn any_sequence_of_attempts_obeys_the_table(endings in prop::collection::vec(ending(), 1..10), idempotent: bool) {
            let (mut history, mut broke, mut unsure) = (History::default(), 0, 0);
            for ending in endings {
                history.attempts += 1;
                unsure += u32::from(ending != Ending::NotProcessed);
                broke += u32::from(matches!(ending, Ending::Broken { .. }));
                if again(&mut history, ending, idempotent, true).is_none() {
                    break;
                }
            }
            prop_assert!(history.attempts <= ATTEMPTS_MAX);
            prop_assert!(broke <= ACTED_MAX);
            prop_assert!(idempotent || unsure <= 1);
        }
    }
}
