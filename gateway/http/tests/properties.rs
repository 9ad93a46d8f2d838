//! What must hold for heads and bodies made by chance, and for bytes by chance.

mod common;

use archipelago_http::h1::{Framing, Persistence, chunk_head, last_chunk, write_request, write_response};
use archipelago_http::{Fields, Known, RequestHead, ResponseHead};
use common::targets;
use common::verdict::{hyper_of_requests, hyper_of_responses, ours_of_requests, ours_of_responses};
use http::{Method, StatusCode};
use proptest::prelude::*;

fn name() -> impl Strategy<Value = String> {
    let known: Vec<&str> = Known::ALL.iter().map(|known| known.as_str()).collect();
    prop_oneof![
        proptest::sample::select(known).prop_map(str::to_owned),
        "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}",
        "[Mm]esh[-_][a-z]{1,5}",
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => 0x20_u8..0x7f, 1 => 0x80_u8.., 1 => Just(b'\t'), 1 => Just(b',')];
    proptest::collection::vec(byte, 0..40)
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => 0x21_u8..0x7f, 1 => 0x80_u8..];
    proptest::collection::vec(byte.prop_filter("no fragment", |byte| *byte != b'#'), 0..40).prop_map(|mut path| {
        path.insert(0, b'/');
        path
    })
}

/// Fields as a decoder of HTTP/2 or HTTP/3 makes them: none that HTTP/1.1 writes itself.
fn fields() -> impl Strategy<Value = Fields> {
    proptest::collection::vec((name(), value()), 0..30).prop_map(|list| {
        let mut fields = Fields::new();
        for (name, value) in &list {
            match Known::of(name.as_bytes()) {
                Some(Known::Host | Known::Connection | Known::TransferEncoding | Known::ContentLength) => {}
                Some(known) => fields.push(known, value),
                None => fields.push_named(name.as_bytes(), value).expect("a token and a value"),
            }
        }
        // A writer names these in a Connection that the fields do not have.
        fields.strip_hop_by_hop();
        fields
    })
}

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![
        Just(Framing::Empty),
        (0_u64..1_000_000_000_000_000_000).prop_map(Framing::Length),
        Just(Framing::Chunked)
    ]
}

/// Text that is nearly a message: what readers disagree about.
fn nearly(parts: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let part = proptest::sample::select(parts).prop_map(|part| part.as_bytes().to_vec());
    let noise = proptest::collection::vec(any::<u8>(), 1..3);
    let sign = proptest::sample::select(b"\r\n\0 \t:;,0a5".as_slice()).prop_map(|byte| vec![byte]);
    proptest::collection::vec(prop_oneof![20 => part, 1 => noise, 2 => sign], 0..14).prop_map(|parts| parts.concat())
}

const REQUEST_PARTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\n",
    "POST /x HTTP/1.0\r\n",
    "Host: a\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Expect: 100-continue\r\n",
    "\r\n",
    "hello",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "0\r\n",
    "A: b\r\n",
    "A:b \r\n",
    " c\r\n",
    "A : b\r\n",
    "\n",
    "\r",
    "1;x=y\r\na\r\n",
    "content-length:\t5 \r\n",
    "GET http://a/y HTTP/1.1\r\nHost: a\r\n",
];

const RESPONSE_PARTS: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 6\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Connection: close\r\n",
    "\r\n",
    "hello",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "A: b\r\n",
    "A : b\r\n",
    " c\r\n",
    "\n",
    "A: b\n",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_of_any_origin_is_read_as_what_was_written(
        method in proptest::sample::select(vec![Method::GET, Method::POST, Method::OPTIONS, Method::from_bytes(b"a!b").unwrap()]),
        path in path(),
        fields in fields(),
        framing in framing(),
    ) {
        let mut head = RequestHead::new();
        (head.method, head.fields) = (method, fields);
        prop_assert!(head.set_path(&path) && head.set_authority(b"checkout.shop:80"));
        let mut out = Vec::new();
        write_request(&head, framing, b"", &mut out);
        let (info, read) = targets::request_at_once(&out);
        let info = info.unwrap().unwrap();
        prop_assert_eq!((info.used, info.framing), (out.len(), framing));
        let mut read = read;
        read.fields.remove(Known::ContentLength);
        prop_assert_eq!(&read, &head);
        targets::request(&out);
    }

    #[test]
    fn a_response_of_any_origin_is_read_as_what_was_written(status in 200_u16..=999, fields in fields(), framing in framing(), reason in "[ -~]{0,10}") {
        let mut head = ResponseHead::new();
        (head.status, head.fields) = (StatusCode::from_u16(status).unwrap(), fields);
        prop_assert!(head.set_reason(reason.trim().as_bytes()));
        let framing = match (status, framing) {
            (204 | 304, _) => Framing::Empty,
            (_, Framing::Empty) => Framing::UntilClose,
            (_, framing) => framing,
        };
        let mut out = Vec::new();
        write_response(&head, framing, Persistence::Implied, b"", &mut out);
        let (info, mut read) = targets::response_at_once(&out, &Method::GET);
        let info = info.unwrap().unwrap();
        prop_assert_eq!((info.used, info.framing), (out.len(), framing));
        read.fields.remove(Known::ContentLength);
        prop_assert_eq!(&read, &head);
    }

    #[test]
    fn a_body_arrives_whole_whatever_its_chunks(
        chunks in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 1..60), "(;[ -~]{0,10})?"), 0..30),
        cuts in proptest::collection::vec(1_usize..50, 1..20),
        trailers in proptest::collection::vec(value(), 0..3),
    ) {
        let (mut text, mut data, mut sent) = (Vec::new(), Vec::new(), Fields::new());
        for (chunk, extension) in &chunks {
            let head = chunk_head(chunk.len());
            let [digits @ .., _, _] = head.as_ref() else { panic!("a chunk head ends with CR LF") };
            for part in [digits, extension.as_bytes(), b"\r\n", chunk, b"\r\n"] {
                text.extend_from_slice(part);
            }
            data.extend_from_slice(chunk);
        }
        for value in &trailers {
            sent.push_named(b"x-trailer", value).unwrap();
        }
        last_chunk(Some(&sent), &mut text);
        text.extend_from_slice(b"GET /next");
        let (mut pieces, mut rest) = (Vec::new(), text.as_slice());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        let decoded = targets::decode(Framing::Chunked, &pieces).unwrap();
        prop_assert_eq!(decoded.data, data);
        prop_assert_eq!(decoded.trailers, (!sent.is_empty()).then_some(sent));
        prop_assert_eq!((decoded.ended, decoded.left.as_slice()), (true, b"GET /next".as_slice()));
    }

    #[test]
    fn stripping_agrees_with_the_words_of_the_rfc(list in proptest::collection::vec((name(), value()), 0..20), nominated in proptest::collection::vec(name(), 0..5)) {
        let mut fields = Fields::new();
        for (name, value) in &list {
            fields.push_named(name.as_bytes(), value).unwrap();
        }
        fields.push(Known::Connection, nominated.join(" ,").as_bytes());
        let mut options: Vec<Vec<u8>> = Vec::new();
        for value in fields.get_all(Known::Connection) {
            options.extend(value.split(|byte| *byte == b',').map(|option| option.trim_ascii().to_ascii_lowercase()));
        }
        let expected: Vec<_> = fields
            .iter()
            .filter(|(name, _, known)| {
                let named = options.contains(&name.to_ascii_lowercase());
                let is_mesh = name.to_ascii_lowercase().starts_with(b"mesh-") || name.to_ascii_lowercase().starts_with(b"mesh_");
                let kept = is_mesh || known.is_some_and(Known::is_end_to_end);
                !known.is_some_and(Known::is_hop_by_hop) && (kept || !named)
            })
            .map(|(name, value, _)| (name.to_vec(), value.to_vec()))
            .collect();
        fields.strip_hop_by_hop();
        let left: Vec<_> = fields.iter().map(|(name, value, _)| (name.to_vec(), value.to_vec())).collect();
        prop_assert_eq!(left, expected);
    }

    #[test]
    fn any_bytes_have_one_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..300), parts in nearly(REQUEST_PARTS), answer in nearly(RESPONSE_PARTS), first in any::<u8>()) {
        for text in [&bytes, &parts, &answer] {
            targets::request(text);
            let with_first = [&[first], text.as_slice()].concat();
            targets::response(&with_first);
            targets::body(&with_first);
        }
    }

    /// Two readers of one connection: as far as both take it, they see the same requests with the same bodies.
    #[test]
    fn nothing_is_read_otherwise_than_by_hyper(parts in nearly(REQUEST_PARTS)) {
        let (ours, hypers) = (taken(ours_of_requests(&parts)), taken(hyper_of_requests(&parts)));
        let both = ours.len().min(hypers.len());
        prop_assert_eq!(&ours[..both], &hypers[..both], "{}", parts.escape_ascii());
    }

    #[test]
    fn no_answer_is_read_otherwise_than_by_hyper(parts in nearly(RESPONSE_PARTS), to in proptest::sample::select(vec![Method::GET, Method::HEAD])) {
        let ours = ours_of_responses(&parts, &to).pop().filter(|event| !event.contains("refuses") && event != "waits");
        let hypers = hyper_of_responses(&parts, &to).pop().filter(|event| event != "refuses");
        if let (Some(ours), Some(hypers)) = (ours, hypers) {
            let ours = ours.split_once(" bad").map_or(ours.clone(), |(status, _)| format!("{status} bad"));
            prop_assert_eq!(ours, hypers, "{}", parts.escape_ascii());
        }
    }
}

/// The requests that were taken whole.
fn taken(events: Vec<String>) -> Vec<String> {
    events
        .into_iter()
        .take_while(|event| !event.contains("refuses") && !event.contains("bad") && event != "waits")
        .collect()
}
