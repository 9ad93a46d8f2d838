//! Round trips, rules and arbitrary bytes. The second implementation is in `tests/oracle.rs`.

use super::*;
use archipelago_http::{Fields, Known, RequestHead, ResponseHead};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method};
use proptest::prelude::*;

/// A section of literal fields, whatever they say.
fn section(fields: &[(&str, &str)]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u16(0);
    for (name, value) in fields {
        assert!(name.len() < 127 && value.len() < 127);
        if name.len() < 7 {
            out.put_u8(0x20 | name.len() as u8);
        } else {
            out.put_slice(&[0x27, name.len() as u8 - 7]);
        }
        out.put_slice(name.as_bytes());
        out.put_u8(value.len() as u8);
        out.put_slice(value.as_bytes());
    }
    out.freeze()
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "a.b"), (":path", "/x?y")];

fn get_with(extra: &[(&str, &str)]) -> Bytes {
    section(&[&GET, extra].concat())
}

fn payload(frame: &BytesMut) -> Bytes {
    let mut decoder = FrameDecoder::new(StreamRole::Request, Limits::default());
    decoder.push(Bytes::copy_from_slice(frame));
    let Ok(Some(Frame::Headers(section))) = decoder.next_frame() else { panic!("not a HEADERS frame") };
    assert!(decoder.is_at_boundary());
    section
}

#[test]
fn rfc9114_s4_3_1_request() {
    let request =
        fields::decode_request(&get_with(&[("x-a", "1"), ("x-a", "2"), ("te", "trailers")]), Limits::default())
            .unwrap();
    assert_eq!(
        (request.scheme.as_str(), request.authority(), request.path()),
        ("http", Some(&b"a.b"[..]), &b"/x?y"[..])
    );
    assert_eq!(request.fields.find_all("x-a").collect::<Vec<_>>(), [b"1", b"2"]);
    let connect =
        fields::decode_request(&section(&[(":method", "CONNECT"), (":authority", "db.shop:5432")]), Limits::default())
            .unwrap();
    assert_eq!((connect.authority(), connect.path()), (Some(&b"db.shop:5432"[..]), &b""[..]));
    let extended =
        [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/"), (":authority", "a")];
    let extended = fields::decode_request(&section(&extended), Limits::default()).unwrap();
    assert_eq!(extended.protocol.as_deref(), Some("websocket"));
    let asterisk = [(":method", "OPTIONS"), (":scheme", "http"), (":authority", "a"), (":path", "*")];
    assert!(fields::decode_request(&section(&asterisk), Limits::default()).is_ok());
    let both = fields::decode_request(&get_with(&[("host", "A.B")]), Limits::default()).unwrap();
    assert!(!both.fields.contains(Known::Host), "who it is for is said once");
    let host_only = [GET[0], GET[1], GET[3], ("host", "a.b")];
    let host_only = fields::decode_request(&section(&host_only), Limits::default()).unwrap();
    assert_eq!((host_only.authority(), host_only.fields.len()), (Some(&b"a.b"[..]), 0));
}

#[test]
fn malformed_requests() {
    for (fields, why) in [
        (get_with(&[("X-Upper", "1")]), "invalid field name"),
        (get_with(&[("x a", "1")]), "invalid field name"),
        (get_with(&[("", "1")]), "invalid field name"),
        (get_with(&[("x", "a\r\nb: c")]), "invalid field value"),
        (get_with(&[("x", "a\0")]), "invalid field value"),
        (get_with(&[("x", " a")]), "white space around a field value"),
        (get_with(&[("connection", "close")]), "connection-specific field"),
        (get_with(&[("transfer-encoding", "chunked")]), "connection-specific field"),
        (get_with(&[("upgrade", "h2c")]), "connection-specific field"),
        (get_with(&[("te", "gzip")]), "connection-specific field"),
        (get_with(&[("host", "other")]), "host differs from :authority"),
        (get_with(&[("host", "a.b"), ("host", "a.b")]), "host given twice"),
        (get_with(&[(":path", "/")]), "pseudo-header given twice"),
        (get_with(&[("x", "1"), (":protocol", "x")]), "pseudo-header after a field"),
        (get_with(&[(":protocol", "x")]), ":protocol without CONNECT"),
        (get_with(&[(":status", "200")]), ":status in a request"),
        (get_with(&[(":made-up", "x")]), "unknown pseudo-header"),
        (section(&GET[1..]), "request without :method"),
        (section(&[GET[0], GET[2], GET[3]]), "request without :scheme"),
        (section(&GET[..3]), "request without :path"),
        (section(&[GET[0], GET[1], GET[3]]), "request without authority"),
        (section(&[GET[0], GET[1], GET[2], (":path", "x")]), ":path does not begin with a slash"),
        (section(&[(":method", "CONNECT")]), "CONNECT without :authority"),
        (section(&[(":method", "CONNECT"), GET[2], GET[3]]), "CONNECT with :scheme or :path"),
        (section(&[(":method", "G ET"), GET[1], GET[2], GET[3]]), ":method is not a token"),
    ] {
        let error = fields::decode_request(&fields, Limits::default()).unwrap_err();
        assert_eq!((error.what, error.code, error.scope), (why, Code::MESSAGE_ERROR, Scope::Stream));
    }
}

#[test]
fn malformed_responses_and_trailers() {
    for fields in
        [&[("x", "1")][..], &[(":status", "20")], &[(":status", "101")], &[(":status", "200"), (":path", "/")]]
    {
        assert!(fields::decode_response(&section(fields), Limits::default()).is_err(), "{fields:?}");
    }
    assert!(fields::decode_trailers(&section(&[(":status", "200")]), Limits::default()).is_err());
    assert!(fields::decode_trailers(&section(&[("grpc-status", "0")]), Limits::default()).is_ok());
}

#[test]
fn bounds_on_field_sections() {
    let many: Vec<(&str, &str)> = std::iter::repeat_n(("x", "y"), 509).collect();
    let error = fields::decode_request(&get_with(&many), Limits::default()).unwrap_err();
    assert_eq!(error.code, Code::EXCESSIVE_LOAD);
    let tight = Limits { field_section_bytes_max: 200, ..Limits::default() };
    assert_eq!(
        fields::decode_request(&get_with(&[("x", &"y".repeat(60))]), tight).unwrap_err().code,
        Code::EXCESSIVE_LOAD
    );
}

#[test]
fn rfc9204_dynamic_references_fail() {
    for bytes in [
        &[0x02, 0x00][..],
        &[0, 0, 0x80],
        &[0, 0, 0x10],
        &[0, 0, 0x40, 0],
        &[0, 0, 0x00, 0],
        &[0, 0, 0xff, 0x24],
        &[0],
        &[],
    ] {
        let error = fields::decode_request(&Bytes::copy_from_slice(bytes), Limits::default()).unwrap_err();
        assert_eq!(error.code, Code::QPACK_DECOMPRESSION_FAILED, "{bytes:02x?}");
    }
    // RFC 9204 §B.1: literal with static name reference.
    let block = b"\x00\x00\x51\x0b/index.html";
    let error = fields::decode_request(&Bytes::from_static(block), Limits::default()).unwrap_err();
    assert_eq!(error.what, "request without :method");
}

#[test]
fn content_lengths() {
    let of = |values: &[&str]| {
        let mut fields = Fields::new();
        values.iter().for_each(|value| fields.push(Known::ContentLength, value.as_bytes()));
        fields::content_length(&fields)
    };
    assert_eq!(of(&[]), Ok(None));
    assert_eq!(of(&["42"]), Ok(Some(42)));
    assert_eq!(of(&["42, 42", "42"]), Ok(Some(42)));
    for bad in [&["+1"][..], &["1", "2"], &["0x1"], &[""], &["1,"], &["99999999999999999999"]] {
        assert!(of(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn encoding_drops_what_is_about_the_connection() {
    let mut head = RequestHead::new();
    assert!(head.set_path(b"/p") && head.set_authority(b"a.b"));
    for (name, value) in
        [("host", "other"), ("connection", "close"), ("te", "gzip"), ("X-Upper", "1"), ("upgrade", "h2c")]
    {
        head.fields.push_named(name.as_bytes(), value.as_bytes()).unwrap();
    }
    let mut said = Fields::new();
    said.push(Known::MeshHop, b"1");
    let mut out = BytesMut::new();
    fields::encode_request(&head, &said, u64::MAX, &mut out).unwrap();
    let back = fields::decode_request(&payload(&out), Limits::default()).unwrap();
    assert_eq!((back.authority(), back.path()), (Some(&b"a.b"[..]), &b"/p"[..]));
    let fields: Vec<_> = back.fields.iter().map(|(name, value, _)| (name, value)).collect();
    assert_eq!(fields, [(&b"x-upper"[..], &b"1"[..]), (b"mesh-hop", b"1")]);
}

#[test]
fn what_has_no_form_is_not_sent() {
    let encode = |head: &RequestHead, max| {
        let mut out = BytesMut::from(&b"before"[..]);
        let encoded = fields::encode_request(head, &Fields::new(), max, &mut out);
        assert!(encoded.is_ok() || out == "before", "half a frame");
        encoded
    };
    let mut head = RequestHead::new();
    assert!(head.set_path(b"/"));
    assert_eq!(encode(&head, u64::MAX), Err(fields::EncodeError::NoAuthority));
    assert!(head.set_authority(b"a.b"));
    assert_eq!(encode(&head, 100), Err(fields::EncodeError::TooLarge { bytes: 168, max: 100 }));
    assert_eq!(encode(&head, 168), Ok(()));
}

/// Earlier versions read paths as `http::Uri` does, and reset streams with others.
#[test]
fn paths_are_sent_as_uris_hold_them() {
    for (path, sent) in [
        (&b"/a%20b?x=%22"[..], &b"/a%20b?x=%22"[..]),
        (b"/a|b", b"/a|b"),
        (b"/<a>^`", b"/%3Ca%3E%5E%60"),
        (b"/\xff", b"/%FF"),
    ] {
        let mut head = RequestHead::new();
        assert!(head.set_path(path) && head.set_authority(b"a"));
        let mut out = BytesMut::new();
        fields::encode_request(&head, &Fields::new(), u64::MAX, &mut out).unwrap();
        let back = fields::decode_request(&payload(&out), Limits::default()).unwrap();
        assert_eq!(String::from_utf8_lossy(back.path()), String::from_utf8_lossy(sent));
        http::uri::PathAndQuery::try_from(back.path()).unwrap();
    }
}

#[test]
fn message_sequences() {
    // (frames as bytes, FIN, what comes out after the head)
    let head = {
        let mut out = BytesMut::new();
        fields::encode_response(&ResponseHead::new(), u64::MAX, &mut out).unwrap();
        out.freeze()
    };
    let run = |tail: &[u8], fin: bool, length: Option<u64>| {
        let mut decoder = MessageDecoder::new(Limits::default());
        decoder.push(head.clone());
        decoder.push(Bytes::copy_from_slice(tail));
        if fin {
            decoder.finish();
        }
        let mut data = 0;
        loop {
            match decoder.next_event() {
                Ok(MessageEvent::Head(_)) => decoder.expect_body(length),
                Ok(MessageEvent::Data(piece)) => data += piece.len(),
                Ok(MessageEvent::Trailers(_)) => {}
                Ok(MessageEvent::NeedMore) => return Ok((data, false)),
                Ok(MessageEvent::End) => {
                    assert!(decoder.is_complete());
                    return Ok((data, true));
                }
                Err(error) => return Err(error.code),
            }
        }
    };
    assert_eq!(run(&[], true, None), Ok((0, true)));
    assert_eq!(run(&[], false, None), Ok((0, false)));
    assert_eq!(run(&[0, 3, 1, 2, 3], true, Some(3)), Ok((3, true)));
    assert_eq!(run(&[0, 3, 1, 2, 3, 0, 0, 0x21, 2, 9, 9], true, None), Ok((3, true)));
    assert_eq!(run(&[0, 3, 1, 2, 3, 1, 2, 0, 0], true, Some(3)), Ok((3, true)));
    assert_eq!(run(&[0, 3, 1, 2], true, None), Err(Code::FRAME_ERROR));
    assert_eq!(run(&[0, 3, 1, 2, 3], true, Some(4)), Err(Code::MESSAGE_ERROR));
    assert_eq!(run(&[0, 3, 1, 2, 3], true, Some(2)), Err(Code::MESSAGE_ERROR));
    assert_eq!(run(&[1, 2, 0, 0], true, Some(4)), Err(Code::MESSAGE_ERROR));
    assert_eq!(run(&[1, 2, 0, 0, 0, 1, 7], true, None), Err(Code::FRAME_UNEXPECTED));
    assert_eq!(run(&[1, 2, 0, 0, 1, 2, 0, 0], true, None), Err(Code::FRAME_UNEXPECTED));
    assert_eq!(run(&[4, 0], true, None), Err(Code::FRAME_UNEXPECTED));
    assert_eq!(run(&[5, 0], true, None), Err(Code::FRAME_UNEXPECTED));
    assert_eq!(run(&[9, 0], true, None), Err(Code::FRAME_UNEXPECTED));
    let mut early = MessageDecoder::new(Limits::default());
    early.finish();
    assert_eq!(early.next_event().unwrap_err().code, Code::REQUEST_INCOMPLETE);
}

#[test]
fn data_is_not_copied() {
    let mut frame = BytesMut::new();
    data_header(1000, &mut frame);
    frame.put_bytes(7, 1000);
    let chunk = frame.freeze();
    let mut decoder = FrameDecoder::new(StreamRole::Request, Limits::default());
    decoder.push(chunk.clone());
    let Ok(Some(Frame::Data(piece))) = decoder.next_frame() else { panic!("no DATA") };
    assert_eq!(piece.as_ptr(), chunk[3..].as_ptr());
}

/// Drives every decoder over `bytes`, cut at `cut`; they may refuse, they may not panic or loop.
fn devour(bytes: &[u8], cut: usize) {
    let cut = cut.min(bytes.len());
    let mut message = MessageDecoder::new(Limits::default());
    message.push(Bytes::copy_from_slice(&bytes[..cut]));
    message.push(Bytes::copy_from_slice(&bytes[cut..]));
    message.finish();
    loop {
        match message.next_event() {
            Ok(MessageEvent::Head(section)) => match fields::decode_request(&section, Limits::default()) {
                Ok(request) => match fields::content_length(&request.fields) {
                    Ok(length) => message.expect_body(length),
                    Err(_) => break,
                },
                Err(_) => message.expect_head(),
            },
            Ok(MessageEvent::End | MessageEvent::NeedMore) | Err(_) => break,
            Ok(_) => {}
        }
    }
    let mut control = ControlDecoder::default();
    control.push(Bytes::copy_from_slice(bytes));
    while let Ok(Some(_)) = control.next_event() {}
    let _ = fields::decode_request(bytes, Limits::default());
    let _ = fields::decode_response(bytes, Limits::default());
    let _ = fields::decode_trailers(bytes, Limits::default());
    let _ = varint::decode(bytes);
    let _ = huffman::decode(bytes, &mut Vec::new());
}

/// Inputs that were interesting once: each line of the corpus is hexadecimal.
#[test]
fn corpus_replays() {
    for line in include_str!("../../tests/corpus/codec.hex").lines() {
        let hex = line.split('#').next().unwrap_or_default().trim();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        for cut in 0..=bytes.len() {
            devour(&bytes, cut);
        }
    }
}

fn some_fields() -> impl Strategy<Value = Fields> {
    let name = prop_oneof![
        "[a-z][a-z0-9-]{0,20}",
        "[A-Z][a-zA-Z0-9_-]{0,20}",
        Just("Content-Type".to_owned()),
        Just("accept".to_owned()),
        Just("access-control-allow-methods".to_owned())
    ];
    let value =
        prop_oneof!["[!-~]{0,40}", "[!-~][ -~\u{e9}]{0,200}[!-~]", Just("*/*".to_owned()), Just("get".to_owned())];
    proptest::collection::vec((name, value), 0..20).prop_map(|list| {
        let mut fields = Fields::new();
        for (name, value) in list {
            let known = Known::of(name.as_bytes());
            if known.is_some_and(|known| known.is_hop_by_hop() || known == Known::Host) {
                continue;
            }
            fields.push_named(name.as_bytes(), value.as_bytes()).unwrap();
        }
        fields
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes(bytes: Vec<u8>, cut: usize) {
        devour(&bytes, cut);
    }

    // Random bytes seldom look like frames: this puts them inside the frames they belong to.
    #[test]
    fn arbitrary_frames(frames: Vec<(u8, Vec<u8>)>, cut: usize) {
        let mut bytes = Vec::new();
        for (kind, payload) in frames {
            bytes.push(kind % 16);
            varint::encode(payload.len() as u64, &mut bytes);
            if kind % 16 == 1 {
                bytes.extend([0, 0]);
            }
            bytes.extend(payload);
        }
        devour(&bytes, cut);
    }

    #[test]
    fn requests_round_trip(fields in some_fields(), said in some_fields(), path in "/[a-z0-9/]{0,30}(\\?[a-z=&]{0,20})?", post: bool) {
        let mut head = RequestHead::new();
        head.method = if post { Method::POST } else { Method::from_bytes(b"PURGE").unwrap() };
        head.scheme = archipelago_http::Scheme::Https;
        assert!(head.set_authority(b"h.example:8443") && head.set_path(path.as_bytes()));
        head.fields = fields;
        let mut out = BytesMut::new();
        fields::encode_request(&head, &said, u64::MAX, &mut out).unwrap();
        let back = fields::decode_request(&payload(&out), Limits::default()).unwrap();
        prop_assert_eq!((&back.method, back.scheme, back.authority(), back.path()), (&head.method, head.scheme, head.authority(), head.path()));
        for (name, value, _) in said.iter() {
            head.fields.push_named(name, value).unwrap();
        }
        prop_assert_eq!(&back.fields, &head.fields);
        prop_assert!(back.fields.iter().all(|(name, ..)| !name.iter().any(u8::is_ascii_uppercase)));
    }

    #[test]
    fn responses_round_trip(fields in some_fields(), status in 200u16..600) {
        let mut head = ResponseHead::of(http::StatusCode::from_u16(status).unwrap());
        head.fields = fields;
        let mut out = BytesMut::new();
        fields::encode_response(&head, u64::MAX, &mut out).unwrap();
        let back = fields::decode_response(&payload(&out), Limits::default()).unwrap();
        prop_assert_eq!(back.status, head.status);
        prop_assert_eq!(&back.fields, &head.fields);
    }

    // However the network cuts a message, what comes out is the same.
    #[test]
    fn cuts_do_not_matter(body in proptest::collection::vec(any::<u8>(), 0..3000), cuts in proptest::collection::vec(0usize..4000, 0..20)) {
        let mut wire = BytesMut::new();
        fields::encode_response(&ResponseHead::new(), u64::MAX, &mut wire).unwrap();
        for piece in body.chunks(700) {
            data_header(piece.len(), &mut wire);
            wire.put_slice(piece);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        fields::encode_trailers(&trailers, u64::MAX, &mut wire).unwrap();
        let mut wire = wire.freeze();
        let mut decoder = MessageDecoder::new(Limits::default());
        let (mut got, mut trailed) = (Vec::new(), false);
        let mut cuts = cuts.into_iter();
        loop {
            match decoder.next_event().unwrap() {
                MessageEvent::NeedMore if wire.is_empty() => decoder.finish(),
                MessageEvent::NeedMore => {
                    let cut = cuts.next().map_or(wire.len(), |cut| cut % wire.len() + 1).min(wire.len());
                    decoder.push(wire.split_to(cut));
                }
                MessageEvent::Head(_) => decoder.expect_body(Some(body.len() as u64)),
                MessageEvent::Data(piece) => got.extend_from_slice(&piece),
                MessageEvent::Trailers(map) => trailed = map == trailers,
                MessageEvent::End => break,
            }
        }
        prop_assert!(trailed);
        prop_assert_eq!(got, body);
    }
}
