//! What must hold for any bytes whatsoever: the bodies of the fuzz targets, which `cargo test` runs over their corpora and over
//! bytes by chance.

use archipelago_http::h1::{
    BadBody, BadResponse, BodyDecoder, Framing, Limits, Persistence, Piece, Progress, Refusal, RequestInfo,
    ResponseInfo, chunk_head, last_chunk, parse_request, parse_response, write_interim, write_request, write_response,
};
use archipelago_http::{RequestHead, ResponseHead};
use bytes::{BufMut as _, BytesMut};
use http::Method;

/// A request's head: one verdict however its bytes arrive; what is taken is written so that it is read as the same again.
pub fn request(bytes: &[u8]) {
    let (whole, head) = request_at_once(bytes);
    for step in [1, 7] {
        let (pieces, other) = request_by_pieces(bytes, step);
        assert_eq!(pieces, whole, "by {step}");
        assert!(whole.is_err() || whole == Ok(None) || other == head, "by {step}: {other:?} and {head:?}");
    }
    let Ok(Some(info)) = whole else { return };
    assert!(info.used <= bytes.len());
    // The shortest text that is a head is the head: no byte behind it had a say.
    assert_eq!(request_at_once(&bytes[..info.used]), (whole, head.clone()));
    if head.authority().is_none() {
        // RFC 9112 §3.2 has it written with an empty Host, which is not taken here: there is no service without a name.
        return;
    }
    let mut out = Vec::new();
    write_request(&head, info.framing, b"", &mut out);
    let (again, written) = request_at_once(&out);
    let again = again.unwrap_or_else(|refusal| panic!("{refusal}: {}", out.escape_ascii())).expect("a whole head");
    assert_eq!((again.used, again.framing), (out.len(), info.framing), "{}", out.escape_ascii());
    assert_eq!((&written.method, written.path()), (&head.method, head.path()), "{}", out.escape_ascii());
    assert_eq!(
        written.authority(),
        Some(head.authority().unwrap_or_default()).filter(|authority| !authority.is_empty())
    );
    let mut second = Vec::new();
    write_request(&written, again.framing, b"", &mut second);
    assert_eq!(second.escape_ascii().to_string(), out.escape_ascii().to_string());
    if let Ok(parts) = head.to_http() {
        RequestHead::from_http(&parts).expect("what came out goes in");
    }
}

/// A response's head: the same. `bytes` begin with one that chooses the request's method.
pub fn response(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let to = [Method::GET, Method::HEAD, Method::CONNECT, Method::POST][usize::from(first % 4)].clone();
    let (whole, head) = response_at_once(bytes, &to);
    for step in [1, 7] {
        let (pieces, other) = response_by_pieces(bytes, step, &to);
        assert_eq!(pieces, whole, "by {step}");
        assert!(whole.is_err() || whole == Ok(None) || other == head, "by {step}: {other:?} and {head:?}");
    }
    let Ok(Some(info)) = whole else { return };
    assert_eq!(response_at_once(&bytes[..info.used], &to), (whole, head.clone()));
    let mut out = Vec::new();
    if head.status.is_informational() {
        write_interim(&head, &mut out);
    } else {
        write_response(&head, info.framing, Persistence::Implied, b"", &mut out);
    }
    let (again, written) = response_at_once(&out, &to);
    let again = again.unwrap_or_else(|bad| panic!("{bad}: {}", out.escape_ascii())).expect("a whole head");
    assert_eq!((again.used, again.framing), (out.len(), info.framing), "{}", out.escape_ascii());
    assert_eq!((written.status, written.reason()), (head.status, head.reason()), "{}", out.escape_ascii());
    if let Ok(parts) = head.to_http() {
        ResponseHead::from_http(&parts).expect("what came out goes in");
    }
}

/// A body: one outcome however its bytes arrive, never more than its framing has, and encoded again it is the same.
/// `bytes` begin with one that chooses the framing.
pub fn body(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let framing = match first % 4 {
        0 => Framing::Length(u64::from(*first) * 3),
        1 => Framing::UntilClose,
        _ => Framing::Chunked,
    };
    let whole = decode(framing, &[bytes]);
    for step in [1, 7] {
        let pieces: Vec<&[u8]> = bytes.chunks(step).collect();
        assert_eq!(decode(framing, &pieces), whole, "by {step}");
    }
    let Ok(whole) = whole else { return };
    assert!(whole.data.len() + whole.left.len() <= bytes.len());
    assert!(bytes.ends_with(&whole.left));
    match framing {
        Framing::Length(length) => {
            assert_eq!(whole.ended, whole.data.len() as u64 == length);
            assert!(whole.ended || whole.left.is_empty());
        }
        Framing::UntilClose => assert_eq!(whole.data, bytes),
        _ if whole.ended => {
            let mut out = Vec::new();
            for piece in whole.data.chunks(1000) {
                out.extend_from_slice(chunk_head(piece.len()).as_ref());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            last_chunk(whole.trailers.as_ref(), &mut out);
            out.extend_from_slice(&whole.left);
            assert_eq!(decode(framing, &[&out]), Ok(whole));
        }
        _ => {}
    }
}

/// What came of a body.
#[derive(Debug, PartialEq)]
pub struct Decoded {
    pub data: Vec<u8>,
    pub trailers: Option<archipelago_http::Fields>,
    pub ended: bool,
    pub left: Vec<u8>,
}

pub fn decode(framing: Framing, pieces: &[&[u8]]) -> Result<Decoded, BadBody> {
    let mut decoder = BodyDecoder::new(framing);
    let (mut buf, mut data, mut trailers) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        buf.put_slice(piece);
        loop {
            match decoder.decode(&mut buf)? {
                Piece::More | Piece::End => break,
                Piece::Data(bytes) => {
                    assert!(!bytes.is_empty());
                    data.put_slice(&bytes);
                }
                Piece::Trailers(fields) => assert!(trailers.replace(fields).is_none()),
            }
        }
    }
    let ended = decoder.end_of_input().is_ok();
    // Behind an unfinished chunk there is nothing yet that is not of the body.
    let left = if ended { buf.to_vec() } else { Vec::new() };
    Ok(Decoded { data, trailers, ended, left })
}

pub fn request_at_once(bytes: &[u8]) -> (Result<Option<RequestInfo>, Refusal>, RequestHead) {
    let mut head = RequestHead::new();
    (parse_request(bytes, &Limits::default(), &mut Progress::new(), &mut head), head)
}

fn request_by_pieces(bytes: &[u8], step: usize) -> (Result<Option<RequestInfo>, Refusal>, RequestHead) {
    let (mut head, mut progress, mut result) = (RequestHead::new(), Progress::new(), Ok(None));
    for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
        result = parse_request(&bytes[..end], &Limits::default(), &mut progress, &mut head);
        if result != Ok(None) {
            break;
        }
    }
    (result, head)
}

pub fn response_at_once(bytes: &[u8], to: &Method) -> (Result<Option<ResponseInfo>, BadResponse>, ResponseHead) {
    let mut head = ResponseHead::new();
    (parse_response(bytes, &Limits::default(), &mut Progress::new(), to, &mut head), head)
}

fn response_by_pieces(
    bytes: &[u8],
    step: usize,
    to: &Method,
) -> (Result<Option<ResponseInfo>, BadResponse>, ResponseHead) {
    let (mut head, mut progress, mut result) = (ResponseHead::new(), Progress::new(), Ok(None));
    for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
        result = parse_response(&bytes[..end], &Limits::default(), &mut progress, to, &mut head);
        if result != Ok(None) {
            break;
        }
    }
    (result, head)
}
