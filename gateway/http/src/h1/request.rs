//! Heads of requests: one way to read each, or a refusal.

use http::{Method, Version};

use super::lexer::{Fault, Line, Progress, Reading};
use super::{Framing, Limits, Refusal, authority};
use crate::head::{RequestHead, Scheme};
use crate::name::Known;
use crate::text;

/// What a request's head says about what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestInfo {
    /// Bytes of the head, empty lines before it included. Behind them the body begins.
    pub used: usize,
    /// Where the body ends.
    pub framing: Framing,
    /// True when the client will send another request on this connection (RFC 9112 §9.3).
    pub persistent: bool,
    /// True when the client waits for 100 before it sends the body (RFC 9110 §10.1.1).
    pub expects_continue: bool,
    /// What the client would rather speak (RFC 9110 §7.8). Nobody has to.
    pub upgrade: Option<UpgradeTo>,
}

/// A protocol that a client offers by `Upgrade`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpgradeTo {
    /// RFC 6455.
    WebSocket,
    /// Any other, `h2c` and `TLS/1.2` among them.
    Other,
}

/// Reads the head of a request from the start of `bytes` into `into`; `None` when more bytes are needed.
///
/// Call it again with the same buffer and more bytes at its end; what was looked at is not looked at again.
///
/// # Errors
/// The request is not taken: answer [`Refusal::status`] with [`Refusal::line`], and close. `into` has what was read until then.
pub fn parse_request(
    bytes: &[u8],
    limits: &Limits,
    progress: &mut Progress,
    into: &mut RequestHead,
) -> Result<Option<RequestInfo>, Refusal> {
    let result = advance(bytes, limits, progress, into);
    if !matches!(result, Ok(None)) {
        progress.reset();
    }
    result
}

fn advance(
    bytes: &[u8],
    limits: &Limits,
    progress: &mut Progress,
    into: &mut RequestHead,
) -> Result<Option<RequestInfo>, Refusal> {
    while let Some(line) = progress.next_line(bytes) {
        let is_start = !progress.is_in_head();
        within(limits, progress.taken(), is_start, line.text.len())?;
        if !line.crlf {
            return Err(Refusal::BareLineFeed);
        }
        match (is_start, line.text.is_empty()) {
            // RFC 9112 §2.2: empty lines before a request line are skipped.
            (true, true) => {}
            (true, false) => {
                into.clear();
                request_line(line.text, limits, into)?;
                progress.begin_fields();
            }
            (false, false) => field_line(&line, limits, progress, into)?,
            (false, true) => {
                progress.finish(bytes, line.start, &mut into.fields);
                return conclude(progress, into).map(Some);
            }
        }
    }
    // A CR at the end may be the half of a line's end.
    let begun = bytes.get(progress.taken()..).map_or(0, |line| line.strip_suffix(b"\r").unwrap_or(line).len());
    within(limits, bytes.len(), !progress.is_in_head(), begun)?;
    Ok(None)
}

/// The same for a line that is whole and for one that is not: a verdict never depends on how bytes arrive.
fn within(limits: &Limits, head: usize, is_start: bool, line: usize) -> Result<(), Refusal> {
    if is_start && line > limits.target_bytes + AROUND_TARGET_BYTES {
        return Err(Refusal::TargetTooLong);
    }
    if head > limits.head_bytes { Err(Refusal::HeadTooLarge) } else { Ok(()) }
}

/// RFC 9112 §3: `method SP request-target SP HTTP-version`, and nothing that a lenient reader might see differently.
fn request_line(line: &[u8], limits: &Limits, into: &mut RequestHead) -> Result<(), Refusal> {
    let (method, rest) = cut(line).ok_or(Refusal::RequestLine)?;
    let (target, version) = cut(rest).ok_or(Refusal::RequestLine)?;
    into.version = match version {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(Refusal::Version);
        }
        _ => return Err(Refusal::RequestLine),
    };
    if target.len() > limits.target_bytes {
        return Err(Refusal::TargetTooLong);
    }
    into.method = match method {
        b"GET" => Method::GET,
        _ => Method::from_bytes(method).map_err(|_| Refusal::RequestLine)?,
    };
    if !text::is_target(target) || memchr::memchr(b'#', target).is_some() {
        return Err(Refusal::Target);
    }
    if into.method == Method::CONNECT {
        // RFC 9112 §3.2.3: a host and a port.
        let has_port = authority::split(target).1.is_some_and(|port| !port.is_empty());
        if !has_port || !authority::is_authority(target) {
            return Err(Refusal::Target);
        }
        into.put_authority(target);
        return Ok(());
    }
    match target {
        [b'/', ..] => into.put_path([target, b""]),
        b"*" if into.method == Method::OPTIONS => into.put_path([target, b""]),
        _ => absolute(target, into)?,
    }
    Ok(())
}

/// RFC 9112 §3.2.2: `http://authority/path?query`.
fn absolute(target: &[u8], into: &mut RequestHead) -> Result<(), Refusal> {
    let colon = memchr::memchr(b':', target).ok_or(Refusal::Target)?;
    let (scheme, rest) = target.split_at_checked(colon).ok_or(Refusal::Target)?;
    into.scheme = match () {
        () if scheme.eq_ignore_ascii_case(b"http") => Scheme::Http,
        () if scheme.eq_ignore_ascii_case(b"https") => Scheme::Https,
        () => return Err(Refusal::Target),
    };
    let rest = rest.strip_prefix(b"://").ok_or(Refusal::Target)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).ok_or(Refusal::Target)?;
    if !authority::is_authority(authority) {
        return Err(Refusal::HostInvalid);
    }
    into.put_authority(authority);
    match path {
        // RFC 9112 §3.2.4.
        [] if into.method == Method::OPTIONS => into.put_path([b"*", b""]),
        [b'/', ..] => into.put_path([path, b""]),
        _ => into.put_path([b"/", path]),
    }
    Ok(())
}

fn field_line(
    line: &Line<'_>,
    limits: &Limits,
    progress: &mut Progress,
    into: &mut RequestHead,
) -> Result<(), Refusal> {
    let read = progress.field(line, limits.fields, Reading::Strict).map_err(|fault| match fault {
        Fault::Folded => Refusal::FoldedLine,
        Fault::Name => Refusal::FieldName,
        Fault::Value => Refusal::FieldValue,
        Fault::TooMany => Refusal::TooManyFields,
    })?;
    let (notes, value) = (&mut progress.notes, read.value);
    match read.known {
        Some(Known::Host) => {
            if std::mem::replace(&mut notes.host, true) {
                return Err(Refusal::HostRepeated);
            }
            return host(value, into);
        }
        Some(Known::ContentLength) => {
            if notes.length.is_some() {
                return Err(Refusal::ContentLengthRepeated);
            }
            notes.length = Some(text::decimal(value).ok_or(Refusal::ContentLength)?);
        }
        Some(Known::TransferEncoding) => {
            if notes.chunked {
                return Err(Refusal::TransferEncoding);
            }
            notes.chunked = true;
            return transfer_encoding(value);
        }
        Some(Known::Connection) if !notes.connection(value) => return Err(Refusal::Connection),
        Some(Known::Expect) => notes.expects_continue |= value.eq_ignore_ascii_case(b"100-continue"),
        Some(Known::Upgrade) => notes.protocols(value),
        _ => {}
    }
    into.fields.note(read.field);
    Ok(())
}

/// RFC 9112 §3.2: one, and the same as in an absolute target. RFC 9112 §3.2.2 would have the target win; whoever looks at `Host` alone,
/// behind us or in front of us, would not know.
fn host(value: &[u8], into: &mut RequestHead) -> Result<(), Refusal> {
    if !authority::is_authority(value) {
        return Err(Refusal::HostInvalid);
    }
    match into.authority() {
        None => into.put_authority(value),
        Some(target) if into.method == Method::CONNECT => {
            let ((target, port), (host, host_port)) = (authority::split(target), authority::split(value));
            if !host.eq_ignore_ascii_case(target) || host_port.is_some_and(|host_port| Some(host_port) != port) {
                return Err(Refusal::HostDiffers);
            }
        }
        Some(target) if !authority::same(target, value, into.scheme.port()) => return Err(Refusal::HostDiffers),
        Some(_) => {}
    }
    Ok(())
}

/// RFC 9112 §6.1, §6.3: `chunked`, once.
fn transfer_encoding(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let last = text::list(value).last();
    let ends_chunked = last.is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    let repeated = text::list(value).filter(|coding| coding.eq_ignore_ascii_case(b"chunked")).count() > 1;
    // With `chunked` last the end is certain and only the coding is not known; else nobody knows where the body ends.
    let unknown = ends_chunked && !repeated && text::list(value).count() > 1;
    Err(if unknown { Refusal::TransferEncodingUnknown } else { Refusal::TransferEncoding })
}

fn conclude(progress: &Progress, into: &RequestHead) -> Result<RequestInfo, Refusal> {
    let (notes, is_11) = (&progress.notes, into.version == Version::HTTP_11);
    if is_11 && !notes.host {
        return Err(Refusal::HostMissing);
    }
    let framing = match (notes.chunked, notes.length) {
        // RFC 9112 §6.1: whatever a Content-Length beside it says, the framing of such a message is faulty.
        (true, _) if !is_11 => return Err(Refusal::TransferEncodingVersion),
        (true, Some(_)) => return Err(Refusal::LengthAndEncoding),
        (true, None) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Empty,
    };
    let upgrade = (is_11 && notes.upgrade && notes.some_protocol).then_some(if notes.websocket {
        UpgradeTo::WebSocket
    } else {
        UpgradeTo::Other
    });
    Ok(RequestInfo {
        used: progress.taken(),
        framing,
        persistent: !notes.close && (is_11 || notes.keep_alive),
        expects_continue: is_11 && notes.expects_continue && framing.has_body(),
        upgrade,
    })
}

/// What is before the first space and what is behind it.
#[inline]
fn cut(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr::memchr(b' ', line)?;
    Some((line.get(..space)?, line.get(space + 1..)?))
}

/// Method, version and spaces.
const AROUND_TARGET_BYTES: usize = 64;
