use std::task::Waker;

use proptest::prelude::*;

use super::*;

fn poll(body: &mut RequestBody) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

fn read(body: &mut RequestBody, pieces: usize) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..pieces {
        match poll(body) {
            Poll::Ready(Some(Ok(frame))) => all.extend_from_slice(&frame.into_data().unwrap()),
            _ => break,
        }
    }
    all
}

proptest! {
    /// However it is cut into pieces, and wherever the attempts before broke off, the last attempt sends the whole body or says that it cannot.
    #[test]
    fn every_attempt_sends_the_whole_body(
        pieces in prop::collection::vec(prop_oneof![4 => 1_usize..100, 1 => 1_500_usize..3_000, 1 => 20_000_usize..30_000], 1..30),
        stops in prop::collection::vec(0_usize..40, 0..4),
    ) {
        let whole: Vec<u8> = (0..pieces.iter().sum::<usize>()).map(|n| (n % 251) as u8).collect();
        let mut left = Bytes::from(whole.clone());
        let pieces = pieces.iter().map(|n| left.split_to(*n)).collect();
        let body = Replayable::new(Incoming::of(Stream::Listed(pieces), SizeHint::default()), Instant::now());
        for stop in stops {
            let Some(mut attempt) = body.attempt() else {
                prop_assert!(body.bytes() > REPLAY_BYTES_MAX as u64 && !body.can_replay());
                return Ok(());
            };
            let sent = read(&mut attempt, stop);
            prop_assert!(whole.starts_with(&sent));
        }
        match body.attempt() {
            None => prop_assert!(body.bytes() > REPLAY_BYTES_MAX as u64),
            Some(mut attempt) => prop_assert_eq!(read(&mut attempt, usize::MAX), whole.clone()),
        }
        if body.can_replay() {
            let kept: usize = body.0.as_ref().unwrap().borrow().kept.iter().map(Bytes::len).sum();
            prop_assert!(kept <= REPLAY_BYTES_MAX);
        }
    }
}

#[test]
fn many_small_pieces_are_kept_as_few() {
    let pieces = (0..60_000).map(|_| Bytes::from_static(b"x")).collect();
    let body = Replayable::new(Incoming::of(Stream::Listed(pieces), SizeHint::default()), Instant::now());
    let mut none = body.attempt().unwrap();
    let mut first = body.attempt().unwrap();
    assert!(matches!(poll(&mut none), Poll::Ready(Some(Err(_)))), "its time is over");
    assert!(!body.is_taken() && body.is_sending());
    assert_eq!(read(&mut first, usize::MAX).len(), 60_000);
    assert!(body.is_taken() && !body.is_sending());
    let mut second = body.attempt().unwrap();
    assert_eq!(body.0.as_ref().unwrap().borrow().kept.len(), 1);
    assert!(matches!(poll(&mut first), Poll::Ready(None)), "it has had everything");
    assert!(!body.is_taken());
    assert_eq!(read(&mut second, usize::MAX).len(), 60_000);
    assert!(body.is_taken());
}
