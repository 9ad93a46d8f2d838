//! Heads as bytes, as what was read of them, and as bytes again.

use archipelago_http::h1::{
    BadResponse, Framing, Limits, Persistence, Progress, Refusal, RequestInfo, ResponseInfo, UpgradeTo, parse_request,
    parse_response, write_request, write_response,
};
use archipelago_http::{Fields, Known, RequestHead, ResponseHead, Scheme};
use http::{Method, StatusCode, Version};

fn request(text: &str) -> Result<(RequestHead, RequestInfo), Refusal> {
    let mut head = RequestHead::new();
    let info = parse_request(text.as_bytes(), &Limits::default(), &mut Progress::new(), &mut head)?;
    Ok((head, info.unwrap_or_else(|| panic!("{text:?} is not whole"))))
}

fn response(to: &Method, text: &str) -> Result<(ResponseHead, ResponseInfo), BadResponse> {
    let mut head = ResponseHead::new();
    let info = parse_response(text.as_bytes(), &Limits::default(), &mut Progress::new(), to, &mut head)?;
    Ok((head, info.unwrap_or_else(|| panic!("{text:?} is not whole"))))
}

fn listed(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|(name, value, _)| (text(name), text(value))).collect()
}

#[test]
fn a_request_is_read_and_written() {
    let text = "\r\nPOST /cart?item=1 HTTP/1.1\r\nHost: Checkout.shop:80\r\nAccept: */*\r\nX-One:1\r\nx-two: \t 2 \r\nContent-Length: 007\r\n\r\nrest";
    let (head, info) = request(text).unwrap();
    assert_eq!(head.method, Method::POST);
    assert_eq!(head.version, Version::HTTP_11);
    assert_eq!(head.path(), b"/cart?item=1");
    assert_eq!(head.authority(), Some(b"Checkout.shop:80".as_slice()));
    assert_eq!(head.fields.get(Known::Accept), Some(b"*/*".as_slice()));
    assert_eq!(head.fields.find("X-ONE"), Some(b"1".as_slice()));
    assert_eq!(head.fields.find("x-two"), Some(b"2".as_slice()));
    assert_eq!(head.fields.get(Known::Host), None);
    assert_eq!(
        info,
        RequestInfo {
            used: text.len() - 4,
            framing: Framing::Length(7),
            persistent: true,
            expects_continue: false,
            upgrade: None
        }
    );
    let mut out = Vec::new();
    write_request(&head, info.framing, b"mesh-hop: 1\r\n", &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "POST /cart?item=1 HTTP/1.1\r\nhost: Checkout.shop:80\r\ncontent-length: 7\r\nAccept: */*\r\nX-One: 1\r\nx-two: 2\r\nmesh-hop: 1\r\n\r\n"
    );
}

#[test]
fn targets() {
    for (line, authority, path) in [
        ("GET / HTTP/1.1", "a", "/"),
        ("GET /^`<>\"{|}\\é%zz//../?# HTTP/1.1", "", ""),
        ("GET /^`<>\"{|}\\é%zz//../?? HTTP/1.1", "a", "/^`<>\"{|}\\é%zz//../??"),
        ("GET http://A/x?y HTTP/1.1", "A", "/x?y"),
        ("GET HTTP://a:80?y HTTP/1.1", "a:80", "/?y"),
        ("GET http://a HTTP/1.1", "a", "/"),
        ("OPTIONS * HTTP/1.1", "a", "*"),
        ("OPTIONS http://a HTTP/1.1", "a", "*"),
    ] {
        let read = request(&format!("{line}\r\nHost: a\r\n\r\n"));
        if path.is_empty() {
            assert_eq!(read.unwrap_err(), Refusal::Target, "{line}");
            continue;
        }
        let (head, _) = read.unwrap_or_else(|refusal| panic!("{line}: {refusal}"));
        assert_eq!(head.authority(), Some(authority.as_bytes()), "{line}");
        assert_eq!(head.path(), path.as_bytes(), "{line}");
        assert_eq!(head.scheme, Scheme::Http);
    }
    let (head, _) = request("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n").unwrap();
    assert_eq!((head.authority(), head.path()), (Some(b"a:443".as_slice()), b"".as_slice()));
}

#[test]
fn what_follows_a_request() {
    let info = |fields: &str| request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).unwrap().1;
    assert_eq!(info("").framing, Framing::Empty);
    assert_eq!(info("Content-Length: 0\r\n").framing, Framing::Length(0));
    assert_eq!(info("Transfer-Encoding: \tChunked \r\n").framing, Framing::Chunked);
    assert!(info("Connection: x, keep-alive\r\n").persistent);
    assert!(!info("Connection: x\r\nConnection: y , CLOSE\r\n").persistent);
    assert!(info("Expect: 100-Continue\r\nContent-Length: 1\r\n").expects_continue);
    assert!(!info("Expect: 100-continue\r\n").expects_continue);
    assert_eq!(info("Upgrade: websocket\r\n").upgrade, None);
    assert_eq!(info("Upgrade: foo/2, WebSocket\r\nConnection: upgrade\r\n").upgrade, Some(UpgradeTo::WebSocket));
    for other in ["TLS/1.2", "H2C", "h2,h2c", "foo/2"] {
        let fields = format!("Upgrade: {other}\r\nConnection: Upgrade\r\n");
        assert_eq!(info(&fields).upgrade, Some(UpgradeTo::Other));
    }
    let old = |fields: &str| request(&format!("POST / HTTP/1.0\r\n{fields}\r\n")).unwrap();
    assert!(!old("").1.persistent);
    assert!(old("Connection: keep-alive\r\n").1.persistent);
    assert!(!old("Connection: keep-alive, close\r\n").1.persistent);
    assert!(!old("Expect: 100-continue\r\nContent-Length: 1\r\n").1.expects_continue);
    assert_eq!(old("Connection: upgrade\r\nUpgrade: websocket\r\n").1.upgrade, None);
    assert_eq!(old("").0.authority(), None);
}

#[test]
fn a_response_is_read_and_written() {
    let text = "HTTP/1.1 404 Gone Fishing\r\nServer: x\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\nX : y\nConnection: close\r\n\r\nhello";
    let (mut head, info) = response(&Method::GET, text).unwrap();
    assert_eq!((head.status, head.reason()), (StatusCode::NOT_FOUND, b"Gone Fishing".as_slice()));
    assert_eq!(info, ResponseInfo { used: text.len() - 5, framing: Framing::Length(5), persistent: false });
    assert_eq!(head.fields.count(Known::ContentLength), 1);
    assert!(!head.fields.strip_hop_by_hop());
    let mut out = Vec::new();
    write_response(&head, info.framing, Persistence::Implied, b"", &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 404 Gone Fishing\r\ncontent-length: 5\r\nServer: x\r\nX: y\r\n\r\n"
    );
    assert_eq!(response(&Method::GET, "HTTP/1.0 200\r\n\r\n").unwrap().0.reason(), b"OK");
}

/// RFC 9112 §6.3, case by case: framing, whether the connection can be used again, and the length that is passed on.
#[test]
fn rfc9112_s6_3_where_a_response_ends() {
    let (get, head, connect) = (Method::GET, Method::HEAD, Method::CONNECT);
    for (to, text, framing, persistent, length) in [
        (&get, "1.1 200\r\nContent-Length: 2\r\nTransfer-Encoding: chunked", Framing::Chunked, false, None),
        (&get, "1.1 200\r\nTransfer-Encoding: chunked\r\nContent-Length: 2", Framing::Chunked, false, None),
        (&get, "1.1 200\r\nTransfer-Encoding: chunked", Framing::Chunked, true, None),
        (&get, "1.1 200\r\nContent-Length: 2", Framing::Length(2), true, Some("2")),
        (&get, "1.1 200", Framing::UntilClose, false, None),
        (&get, "1.0 200\r\nContent-Length: 2", Framing::Length(2), false, Some("2")),
        (&get, "1.0 200\r\nContent-Length: 2\r\nConnection: keep-alive", Framing::Length(2), true, Some("2")),
        (&get, "1.1 204", Framing::Empty, true, None),
        (&get, "1.1 204\r\nContent-Length: 2", Framing::Empty, false, None),
        (&get, "1.1 204\r\nTransfer-Encoding: chunked", Framing::Empty, false, None),
        (&get, "1.1 304\r\nContent-Length: 2", Framing::Empty, true, Some("2")),
        (&get, "1.1 304\r\nTransfer-Encoding: chunked", Framing::Empty, true, None),
        (&get, "1.1 103\r\nContent-Length: 2", Framing::Empty, false, None),
        (&get, "1.1 101\r\nUpgrade: x", Framing::Empty, true, None),
        (&head, "1.1 200\r\nContent-Length: 2", Framing::Empty, true, Some("2")),
        (&head, "1.1 200\r\nTransfer-Encoding: chunked", Framing::Empty, true, None),
        (&head, "1.1 200", Framing::Empty, true, None),
        (&connect, "1.1 200\r\nContent-Length: 2", Framing::Empty, false, None),
        (&connect, "1.1 403\r\nContent-Length: 2", Framing::Length(2), true, Some("2")),
    ] {
        let (read, info) = response(to, &format!("HTTP/{text}\r\n\r\n")).unwrap_or_else(|bad| panic!("{text}: {bad}"));
        assert_eq!((info.framing, info.persistent), (framing, persistent), "{to} {text}");
        assert_eq!(read.fields.get(Known::ContentLength), length.map(str::as_bytes), "{to} {text}");
        assert!(!read.fields.contains(Known::TransferEncoding));
    }
    for (text, bad) in [
        ("1.1 200\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", BadResponse::TransferEncoding),
        ("1.1 200\r\nTransfer-Encoding: chunked, chunked", BadResponse::TransferEncoding),
        ("1.1 200\r\nTransfer-Encoding: gzip, chunked", BadResponse::TransferEncoding),
        ("1.1 200\r\nTransfer-Encoding: identity", BadResponse::TransferEncoding),
        ("1.0 200\r\nTransfer-Encoding: chunked", BadResponse::TransferEncodingVersion),
        ("1.1 200\r\nContent-Length: 2\r\nContent-Length: 3", BadResponse::ContentLengthDiffers),
        ("1.1 200\r\nContent-Length: 2, 3", BadResponse::ContentLengthDiffers),
        ("1.1 200\r\nContent-Length: 2,", BadResponse::ContentLength),
        ("1.1 200\r\nContent-Length: ", BadResponse::ContentLength),
        ("1.1 200\r\nContent-Length: -2", BadResponse::ContentLength),
        ("1.1 200\r\nA: b\r\n c", BadResponse::FoldedLine),
        ("1.1 200\r\nno colon", BadResponse::FieldName),
        ("1.1 200\r\nA: b\0", BadResponse::FieldValue),
        ("1.1 20", BadResponse::StatusLine),
        ("1.1 2000", BadResponse::StatusLine),
        ("1.2 200", BadResponse::StatusLine),
        ("2 200", BadResponse::StatusLine),
    ] {
        assert_eq!(response(&get, &format!("HTTP/{text}\r\n\r\n")).unwrap_err(), bad, "{text}");
    }
}

#[test]
fn what_belongs_to_the_connection_stays_there() {
    let (mut head, _) = request(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, X-Private\r\nconnection: host, content-length, mesh-hop, X-Forwarded-For\r\n\
         X-private: 1\r\nkeep-alive: 5\r\nte: gzip, Trailers\r\nupgrade: h2c\r\nhttp2-settings: x\r\nproxy-connection: close\r\n\
         trailer: x-sum\r\ncontent-length: 0\r\nmesh-hop: 1\r\nx-forwarded-for: b\r\nx-privates: kept\r\n\r\n",
    )
    .unwrap();
    assert!(head.fields.strip_hop_by_hop());
    let names: Vec<_> = listed(&head.fields).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["trailer", "content-length", "mesh-hop", "x-forwarded-for", "x-privates"]);
    head.fields.strip_mesh();
    assert_eq!(head.fields.len(), 4);
    assert!(!head.fields.strip_hop_by_hop());
}

/// Every form that two parsers could read differently, and what is said about it.
#[test]
fn requests_that_are_refused() {
    let start = "POST / HTTP/1.1\r\nHost: a\r\n";
    for (fields, refusal) in [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked", Refusal::LengthAndEncoding),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4", Refusal::LengthAndEncoding),
        ("Content-Length: 4\r\nContent-Length: 4", Refusal::ContentLengthRepeated),
        ("Content-Length: 4, 4", Refusal::ContentLength),
        ("Content-Length: +4", Refusal::ContentLength),
        ("Content-Length: ", Refusal::ContentLength),
        ("Content-Length: 0x4", Refusal::ContentLength),
        ("Content-Length: 1 2", Refusal::ContentLength),
        ("Content-Length: 9999999999999999999", Refusal::ContentLength),
        ("Transfer-Encoding: gzip, chunked", Refusal::TransferEncodingUnknown),
        ("Transfer-Encoding: chunked, chunked", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", Refusal::TransferEncoding),
        ("Transfer-Encoding: xchunked", Refusal::TransferEncoding),
        ("Transfer-Encoding: identity", Refusal::TransferEncoding),
        ("Transfer-Encoding: \"chunked\"", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked;a=b", Refusal::TransferEncoding),
        ("Transfer-Encoding:", Refusal::TransferEncoding),
        ("Transfer-Encoding : chunked", Refusal::FieldName),
        ("Transfer-Encoding\t: chunked", Refusal::FieldName),
        ("Transfer_Encoding: chunked\r\n\tX: y", Refusal::FoldedLine),
        (" Host: b", Refusal::FoldedLine),
        ("A: b\r\n Content-Length: 5", Refusal::FoldedLine),
        ("A: b\nContent-Length: 5", Refusal::BareLineFeed),
        ("A: b\rContent-Length: 5", Refusal::FieldValue),
        ("A: b\0", Refusal::FieldValue),
        ("A: b\x7f", Refusal::FieldValue),
        ("A: b\x0b", Refusal::FieldValue),
        ("no colon", Refusal::FieldName),
        (": no name", Refusal::FieldName),
        ("a b: c", Refusal::FieldName),
        ("a\0: c", Refusal::FieldName),
        ("é: c", Refusal::FieldName),
        ("Host: a", Refusal::HostRepeated),
    ] {
        assert_eq!(request(&format!("{start}{fields}\r\n\r\n")).unwrap_err(), refusal, "{fields:?}");
    }
    for (text, refusal) in [
        ("GET / HTTP/1.1\r\n\r\n", Refusal::HostMissing),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Refusal::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Refusal::HostInvalid),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::HostDiffers),
        ("GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::HostDiffers),
        ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::HostInvalid),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", Refusal::Target),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("GET /\t HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("GET /# HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("CONNECT a:80 HTTP/1.1\r\nHost: b:80\r\n\r\n", Refusal::HostDiffers),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("GET / a HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Refusal::RequestLine),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("GET /\r\n\r\n", Refusal::RequestLine),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refusal::Version),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Refusal::Version),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", Refusal::BareLineFeed),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::BareLineFeed),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::TransferEncodingVersion),
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            Refusal::TransferEncodingVersion,
        ),
    ] {
        assert_eq!(request(text).unwrap_err(), refusal, "{text:?}");
    }
}

#[test]
fn limits() {
    let limits = Limits { head_bytes: 200, fields: 4, target_bytes: 50 };
    let verdict = |text: &[u8]| parse_request(text, &limits, &mut Progress::new(), &mut RequestHead::new());
    let sized = |bytes: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(bytes - 32));
    assert!(verdict(sized(200).as_bytes()).unwrap().is_some());
    assert_eq!(verdict(sized(201).as_bytes()), Err(Refusal::HeadTooLarge));
    assert_eq!(verdict(&sized(300).as_bytes()[..201]), Err(Refusal::HeadTooLarge));
    let fields = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(n - 1));
    assert!(verdict(fields(4).as_bytes()).unwrap().is_some());
    assert_eq!(verdict(fields(5).as_bytes()), Err(Refusal::TooManyFields));
    let target = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(n - 1));
    assert!(verdict(target(50).as_bytes()).unwrap().is_some());
    assert_eq!(verdict(target(51).as_bytes()), Err(Refusal::TargetTooLong));
    assert_eq!(verdict(&[b'x'; 115]), Err(Refusal::TargetTooLong));
    assert_eq!(verdict(&[b'x'; 114]), Ok(None));
    assert_eq!(verdict(&[[b'x'; 114].as_slice(), b"\r"].concat()), Ok(None));
    assert_eq!(verdict(&[[b'x'; 114].as_slice(), b"\r\n"].concat()), Err(Refusal::RequestLine));
    // What a client is told are the limits that hold.
    let Limits { head_bytes, fields, target_bytes } = Limits::default();
    assert!(Refusal::HeadTooLarge.line().contains(&format!("({} KiB)", head_bytes / 1024)));
    assert!(Refusal::TooManyFields.line().contains(&format!("({fields})")));
    assert!(Refusal::TargetTooLong.line().contains(&format!("({} KiB)", target_bytes / 1024)));
    for refusal in Refusal::ALL {
        assert!(refusal.status().is_client_error() || refusal.status().is_server_error());
        assert!(refusal.line().len() > 20 && !refusal.reason().is_empty());
    }
}
