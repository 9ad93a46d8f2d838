//! Fields and heads as other protocols make them, and what HTTP/1.1 makes of them.

use archipelago_http::h1::{Framing, Persistence, write_interim, write_request, write_response};
use archipelago_http::{Fields, InvalidField, Known, Name, RequestHead, ResponseHead, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};

fn text(fields: &Fields) -> String {
    let lines = fields.iter().map(|(name, value, _)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn fields_are_kept_in_order_and_found_in_any_case() {
    let mut fields = Fields::new();
    fields.push(Known::Accept, b"a");
    fields.push_named(b"X-One", b" 1\t").unwrap();
    fields.push_named(b"ACCEPT", b"b").unwrap();
    fields.push_named(b"x-one", b"").unwrap();
    assert_eq!(text(&fields), "accept=a X-One=1 ACCEPT=b x-one=");
    assert_eq!((fields.len(), fields.count(Known::Accept), fields.find_all("X-ONE").count()), (4, 2, 2));
    assert_eq!(fields.bytes(), 4 * 32 + 7 + 6 + 7 + 5);
    assert_eq!(fields.get(Known::Accept), Some(b"a".as_slice()));
    fields.set(Known::Accept, b"c");
    assert_eq!(text(&fields), "X-One=1 x-one= accept=c");
    assert_eq!(fields.remove_named(b"x-ONE"), 2);
    assert_eq!(fields.remove(Known::Accept), 1);
    assert_eq!(fields.remove(Known::Accept), 0);
    assert!(fields.is_empty() && !fields.contains(Known::Accept));
    fields.push(Known::Via, b"1.1 a");
    fields.push(Known::Server, b"b");
    fields.retain(|name, value| name != Name::Known(Known::Via) || value.is_empty());
    assert_eq!(text(&fields), "server=b");
    assert!(!fields.contains(Known::Via));
    fields.clear();
    assert_eq!(fields, Fields::new());
}

#[test]
fn nothing_can_be_smuggled_into_a_field() {
    let mut fields = Fields::new();
    fields.push(Known::MeshSource, b"\ra\r\nmesh-hop: 0\n");
    assert_eq!(text(&fields), "mesh-source=a  mesh-hop: 0");
    for (name, value, why) in [
        (b"a".as_slice(), b"b\r\nc: d".as_slice(), InvalidField::Value),
        (b"a", b"b\0", InvalidField::Value),
        (b"a:", b"b", InvalidField::Name),
        (b"a b", b"b", InvalidField::Name),
        (b"", b"b", InvalidField::Name),
        (b"\xc3\xa9", b"b", InvalidField::Name),
        (&[b'a'; 65_536], b"b", InvalidField::Name),
    ] {
        assert_eq!(fields.push_named(name, value), Err(why));
    }
    assert_eq!(fields.len(), 1);
    let mut head = RequestHead::new();
    assert!(!head.set_path(b"/ HTTP/1.1\r\n") && !head.set_authority(b"a\r\nb") && !head.set_authority(b""));
    assert!(!ResponseHead::new().set_reason(b"OK\r\n"));
}

/// RFC 9113 §8.2.3, RFC 9114 §4.2.1.
#[test]
fn cookies_of_http2_become_one_line() {
    let request = Request::builder()
        .version(Version::HTTP_2)
        .uri("https://checkout.shop/cart?x")
        .header("cookie", "a=1")
        .header("x", "y")
        .header("cookie", "b=2")
        .header("cookie", "c=3");
    let head = RequestHead::from_http(&request.body(()).unwrap().into_parts().0).unwrap();
    assert_eq!(
        (head.scheme, head.authority(), head.path()),
        (Scheme::Https, Some(b"checkout.shop".as_slice()), b"/cart?x".as_slice())
    );
    let mut out = Vec::new();
    write_request(&head, Framing::Empty, b"", &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "GET /cart?x HTTP/1.1\r\nhost: checkout.shop\r\nx: y\r\ncookie: a=1; b=2; c=3\r\n\r\n"
    );
}

#[test]
fn heads_for_hyper_and_back() {
    let mut head = RequestHead::new();
    head.method = Method::POST;
    assert!(head.set_path(b"/a?b=%20") && head.set_authority(b"a:81"));
    head.fields.push(Known::Accept, b"\xe9");
    let parts = head.to_http().unwrap();
    assert_eq!((parts.uri.to_string().as_str(), &parts.method), ("http://a:81/a?b=%20", &Method::POST));
    assert_eq!(RequestHead::from_http(&parts).unwrap(), head);
    // What a URI of the http crate does not hold is encoded, as RFC 3986 §2.1 has it.
    assert!(head.set_path(b"/\xe9^\"x"));
    assert_eq!(head.to_http().unwrap().uri.path(), "/%E9%5E%22x");
    let mut connect = RequestHead::new();
    connect.method = Method::CONNECT;
    assert!(connect.set_authority(b"a:443"));
    assert_eq!(connect.to_http().unwrap().uri.to_string(), "a:443");
    assert_eq!(RequestHead::from_http(&connect.to_http().unwrap()).unwrap(), connect);

    let host = Request::builder().uri("/x").header("host", "b").header("transfer-encoding", "chunked");
    let head = RequestHead::from_http(&host.body(()).unwrap().into_parts().0).unwrap();
    assert_eq!((head.authority(), head.fields.len()), (Some(b"b".as_slice()), 0));
    let user = Request::builder().uri("http://u@b/").body(()).unwrap().into_parts().0;
    assert!(RequestHead::from_http(&user).is_err());

    let response = Response::builder().status(418).header("server", "x").body(()).unwrap().into_parts().0;
    let head = ResponseHead::from_http(&response).unwrap();
    assert_eq!((head.status, head.reason()), (StatusCode::IM_A_TEAPOT, b"I'm a teapot".as_slice()));
    assert_eq!(
        head.to_http().unwrap().headers,
        HeaderMap::from_iter([(http::header::SERVER, HeaderValue::from_static("x"))])
    );
}

#[test]
fn connection_is_said_by_the_writers_alone() {
    let mut head = RequestHead::new();
    assert!(head.set_path(b"/") && head.set_authority(b"a"));
    for (name, value) in [
        (Known::Host, "b"),
        (Known::Connection, "close"),
        (Known::TransferEncoding, "gzip"),
        (Known::ContentLength, "7"),
        (Known::Te, "trailers"),
        (Known::Upgrade, "websocket"),
    ] {
        head.fields.push(name, value.as_bytes());
    }
    let mut out = Vec::new();
    write_request(&head, Framing::Chunked, b"", &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nte: trailers\r\nupgrade: websocket\r\nconnection: te, upgrade\r\n\r\n"
    );
    let mut head = ResponseHead::new();
    head.fields.push(Known::Connection, b"x");
    head.fields.push(Known::ContentLength, b"5");
    for (framing, persistent, client, expected) in [
        (Framing::Empty, true, Version::HTTP_11, "content-length: 5\r\n"),
        (Framing::Length(3), true, Version::HTTP_10, "content-length: 3\r\nconnection: keep-alive\r\n"),
        (Framing::Chunked, false, Version::HTTP_11, "transfer-encoding: chunked\r\nconnection: close\r\n"),
        (Framing::UntilClose, false, Version::HTTP_10, "connection: close\r\n"),
    ] {
        let mut out = Vec::new();
        write_response(&head, framing, Persistence::of(persistent, client), b"", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("HTTP/1.1 200 OK\r\n{expected}\r\n"));
    }
    head.status = StatusCode::EARLY_HINTS;
    head.fields.push(Known::Link, b"</a>");
    let mut out = Vec::new();
    write_interim(&head, &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
}

#[test]
fn what_was_pushed_can_be_told_from_what_may_trail() {
    let mut fields = Fields::new();
    for name in Known::ALL {
        fields.push(*name, b"x");
    }
    fields.push_named(b"x-sum", b"x").unwrap();
    fields.push_named(b"mesh_other", b"x").unwrap();
    fields.strip_trailers();
    for bad in [
        "host",
        "content-length",
        "transfer-encoding",
        "mesh-hop",
        "mesh_other",
        "authorization",
        "connection",
        "set-cookie",
    ] {
        assert_eq!(fields.find(bad), None, "{bad}");
    }
    for good in ["x-sum", "grpc-status", "grpc-message", "etag"] {
        assert!(fields.find(good).is_some(), "{good}");
    }
    // A value is no secret, but a log is no place for it.
    fields.push(Known::XApiKey, b"hunter2");
    assert!(!format!("{fields:?}").contains("hunter2"));
}
