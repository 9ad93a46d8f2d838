use super::*;
use proptest::prelude::*;

fn health(service: &str, version: &str, ready: u32) -> ServiceHealth {
    ServiceHealth { service: service.into(), version: version.into(), ready }
}

fn flat(table: &HealthTable) -> Vec<ServiceHealth> {
    let mut all: Vec<_> = table.values().flatten().cloned().collect();
    all.sort_by(|a, b| (&a.service, &a.version).cmp(&(&b.service, &b.version)));
    all
}

fn feed(reader: &mut HealthReader, messages: &[Bytes]) -> Result<bool, HealthError> {
    messages.iter().for_each(|message| reader.push(message));
    reader.advance()
}

#[test]
fn nothing_published_is_not_the_same_as_no_services() {
    let mut book = HealthBook::default();
    assert_eq!(book.since(0), (vec![], 0));
    assert!(book.publish(vec![]), "the first publication is news");
    assert!(!book.publish(vec![]));
    let (messages, version) = book.since(0);
    assert_eq!((messages.len(), version), (1, 1));
    let mut reader = HealthReader::default();
    assert_eq!(feed(&mut reader, &messages), Ok(true));
    assert_eq!(reader.version, 1);
}

#[test]
fn a_change_of_a_few_services_is_what_publishing_everything_would_be() {
    let (mut whole, mut parts) = (HealthBook::default(), HealthBook::default());
    let mut reader = HealthReader::default();
    let first = vec![health("a", "v1", 1), health("a", "v2", 1), health("ab", "", 1), health("b", "v1", 3)];
    whole.publish(first.clone());
    parts.publish(first);
    feed(&mut reader, &parts.since(0).0).unwrap();
    assert_eq!(reader.take_news(), HealthNews::Everything);
    assert!(!parts.change([("b".to_owned(), vec![("v1".to_owned(), 3)]), ("none".to_owned(), vec![])].into()));
    let versions = |list: &[(&str, u32)]| list.iter().map(|(version, n)| ((*version).to_owned(), *n)).collect();
    assert!(parts.change([("a".to_owned(), versions(&[("v2", 4), ("v3", 1)])), ("b".to_owned(), vec![])].into()));
    whole.publish(vec![health("a", "v2", 4), health("a", "v3", 1), health("ab", "", 1)]);
    assert_eq!(parts.entries, whole.entries);
    let (messages, _) = parts.since(1);
    feed(&mut reader, &messages).unwrap();
    assert_eq!(flat(reader.table()), [health("a", "v2", 4), health("a", "v3", 1), health("ab", "", 1)]);
    assert_eq!(reader.take_news(), HealthNews::Services(["a", "b"].map(str::to_owned).into()));
    assert_eq!(reader.take_news(), HealthNews::Nothing);
    let mut nothing = HealthBook::default();
    assert!(nothing.change(BTreeMap::new()) && !nothing.change(BTreeMap::new()), "the first is news");
}

#[test]
fn ten_thousand_services_in_three_versions() {
    let all = |ready: u32| -> Vec<_> {
        let versions = ["v1", "v2", "preview"];
        let name = |n: usize| format!("namespace-of-a-usual-length/service-of-a-usual-length-{n:05}");
        (0..10_000).flat_map(|n| versions.map(|version| health(&name(n), version, ready))).collect()
    };
    let mut book = HealthBook::default();
    book.publish(all(3));
    let (messages, version) = book.since(0);
    let bytes: usize = messages.iter().map(Bytes::len).sum();
    assert!(bytes > 1 << 20, "beyond what one message held: {bytes}");
    assert!(messages.iter().all(|message| message.len() < 2 * PART_BYTES));
    let mut reader = HealthReader::default();
    assert_eq!(feed(&mut reader, &messages), Ok(true));
    assert_eq!(flat(reader.table()).len(), 30_000);

    let mut one_down = all(3);
    one_down[17].ready = 2;
    book.publish(one_down.clone());
    let (messages, next) = book.since(version);
    let delta: usize = messages.iter().map(Bytes::len).sum();
    assert!(delta < 200, "{delta}");
    println!("30,000 entries: {bytes} bytes; one change: {delta} bytes");
    assert_eq!(feed(&mut reader, &messages), Ok(true));
    assert_eq!(reader.table()[&one_down[17].service].len(), 3);
    assert_eq!(flat(reader.table()).iter().filter(|h| h.ready == 2).count(), 1);

    // Everything at once is a change in many parts; only the last one moves the reader's version.
    book.publish(all(0));
    let (messages, last) = book.since(next);
    assert!(messages.len() > 100);
    for message in &messages[..messages.len() - 1] {
        feed(&mut reader, std::slice::from_ref(message)).unwrap();
        assert_eq!(reader.version, next);
    }
    feed(&mut reader, &messages[messages.len() - 1..]).unwrap();
    assert_eq!(reader.version, last);
    assert!(flat(reader.table()).iter().all(|h| h.ready == 0));
}

#[test]
fn whoever_is_too_far_behind_gets_everything() {
    let mut book = HealthBook::default();
    for ready in 0..1000 {
        book.publish(vec![health("shop/checkout", "", ready)]);
    }
    assert!(book.recent.len() <= RECENT_MAX);
    let flags = |messages: &[Bytes]| messages[0][1];
    assert_eq!(flags(&book.since(1).0) & FULL, FULL);
    assert_eq!(flags(&book.since(999).0) & FULL, 0);
    assert_eq!(book.since(990).0.len(), 10);
    assert_eq!(flags(&book.since(u64::MAX).0) & FULL, FULL, "a version that never was");
}

#[test]
fn a_gap_is_noticed_and_everything_heals_it() {
    let mut book = HealthBook::default();
    book.publish(vec![health("a/a", "", 1)]);
    let mut reader = HealthReader::default();
    feed(&mut reader, &book.since(0).0).unwrap();
    book.publish(vec![health("a/a", "", 2)]);
    let missed = book.version();
    book.publish(vec![health("a/a", "", 3)]);
    assert_eq!(feed(&mut reader, &book.since(missed).0), Err(HealthError::Gap));
    let mut reader = HealthReader::default();
    assert_eq!(feed(&mut reader, &book.since(missed).0), Err(HealthError::Gap), "changes before everything");
    let mut reader = HealthReader::default();
    assert_eq!(feed(&mut reader, &book.since(0).0), Ok(true));
    assert_eq!(flat(reader.table()), [health("a/a", "", 3)]);
}

#[test]
fn bounded() {
    let mut reader = HealthReader::default();
    reader.push(&[0xbf, 0xff, 0xff, 0xff]);
    assert_eq!(reader.advance(), Err(HealthError::Invalid));
    let mut reader = HealthReader::default();
    let mut book = HealthBook::default();
    book.publish((0..=ENTRIES_MAX).map(|n| health(&n.to_string(), "", 1)).collect());
    assert_eq!(feed(&mut reader, &book.since(0).0), Err(HealthError::Invalid));
}

proptest! {
    /// Publications in any order, read at any of them, cut anywhere: the reader ends where the book is.
    #[test]
    fn a_reader_follows(
        steps in proptest::collection::vec((proptest::collection::vec((0u8..6, 0u8..3, 0u32..4), 0..12), any::<bool>()), 1..30),
        cuts in proptest::collection::vec(any::<u16>(), 1..30),
    ) {
        let mut book = HealthBook::default();
        let mut reader = HealthReader::default();
        let (mut sent, mut cuts) = (0, cuts.into_iter().cycle());
        let read = |reader: &mut HealthReader, book: &HealthBook, sent: &mut u64, cut: u16| {
            let (messages, version) = book.since(*sent);
            *sent = version;
            let wire = messages.concat();
            let at = usize::from(cut) % (wire.len() + 1);
            reader.push(&wire[..at]);
            reader.advance().unwrap();
            reader.push(&wire[at..]);
            reader.advance().unwrap();
        };
        for (services, reads) in steps {
            let services: BTreeMap<_, _> = services.into_iter().map(|(s, v, ready)| ((s, v), ready)).collect();
            book.publish(services.into_iter().map(|((s, v), ready)| health(&format!("n/{s}"), &format!("v{v}"), ready)).collect());
            if reads {
                read(&mut reader, &book, &mut sent, cuts.next().unwrap());
            }
        }
        read(&mut reader, &book, &mut sent, 3);
        let published: Vec<_> = book.entries.iter().map(|((s, v), ready)| health(s, v, *ready)).collect();
        prop_assert_eq!(flat(reader.table()), published);
        prop_assert_eq!(reader.entries, book.entries.len());
    }

    #[test]
    fn arbitrary_bytes(bytes: Vec<u8>) {
        let mut reader = HealthReader::default();
        reader.push(&bytes);
        let _ = reader.advance();
    }

    /// Messages whose frame is right and whose content is anything.
    #[test]
    fn arbitrary_messages(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..20)) {
        let mut reader = HealthReader::default();
        for message in messages {
            let mut out = BytesMut::new();
            varint::encode(message.len() as u64, &mut out);
            reader.push(&out);
            reader.push(&message);
            if reader.advance() == Err(HealthError::Invalid) {
                break;
            }
        }
        prop_assert!(reader.entries <= ENTRIES_MAX);
    }
}
