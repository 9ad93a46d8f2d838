//! Heads of responses: as lenient as RFC 9112 lets a proxy be, and never in doubt about where a body ends.

use http::{Method, StatusCode, Version};

use super::lexer::{Fault, Line, Progress, Reading};
use super::{BadResponse, Framing, Limits};
use crate::head::ResponseHead;
use crate::name::Known;
use crate::text;

/// What a response's head says about what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseInfo {
    /// Bytes of the head. Behind them the body begins; behind an interim response (1xx but 101), the next head.
    pub used: usize,
    /// Where the body ends.
    pub framing: Framing,
    /// True when another request can be sent on this connection once the body has ended (RFC 9112 §9.3).
    pub persistent: bool,
}

/// Reads the head of a response to a request of method `to` from the start of `bytes` into `into`; `None` when more bytes are needed.
///
/// Call it again with the same buffer and more bytes at its end; what was looked at is not looked at again.
///
/// # Errors
/// The response cannot be passed on: answer 502, and close the connection it came on.
pub fn parse_response(
    bytes: &[u8],
    limits: &Limits,
    progress: &mut Progress,
    to: &Method,
    into: &mut ResponseHead,
) -> Result<Option<ResponseInfo>, BadResponse> {
    let result = advance(bytes, limits, progress, to, into);
    if !matches!(result, Ok(None)) {
        progress.reset();
    }
    result
}

fn advance(
    bytes: &[u8],
    limits: &Limits,
    progress: &mut Progress,
    to: &Method,
    into: &mut ResponseHead,
) -> Result<Option<ResponseInfo>, BadResponse> {
    let within = |head: usize| if head > limits.head_bytes { Err(BadResponse::HeadTooLarge) } else { Ok(()) };
    while let Some(line) = progress.next_line(bytes) {
        within(progress.taken())?;
        // RFC 9112 §2.2: a recipient may take LF alone for the end of a line; CGI scripts write it.
        match (progress.is_in_head(), line.text.is_empty()) {
            (false, _) => {
                into.clear();
                status_line(line.text, into)?;
                progress.begin_fields();
            }
            (true, false) => field_line(&line, limits, progress, into)?,
            (true, true) => {
                progress.finish(bytes, line.start, &mut into.fields);
                return conclude(progress, to, into).map(Some);
            }
        }
    }
    within(bytes.len())?;
    Ok(None)
}

/// RFC 9112 §4: `HTTP-version SP status-code SP [ reason-phrase ]`; many leave the last space out.
fn status_line(line: &[u8], into: &mut ResponseHead) -> Result<(), BadResponse> {
    let (version, rest) = line.split_at_checked(8).ok_or(BadResponse::StatusLine)?;
    into.version = match version {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        _ => return Err(BadResponse::StatusLine),
    };
    let [b' ', a, b, c, reason @ ..] = rest else { return Err(BadResponse::StatusLine) };
    into.status = StatusCode::from_bytes(&[*a, *b, *c]).map_err(|_| BadResponse::StatusLine)?;
    let reason = match reason {
        [] => reason,
        [b' ', reason @ ..] if text::is_value(reason) => reason,
        _ => return Err(BadResponse::StatusLine),
    };
    into.put_reason(text::trim(reason));
    Ok(())
}

fn field_line(
    line: &Line<'_>,
    limits: &Limits,
    progress: &mut Progress,
    into: &mut ResponseHead,
) -> Result<(), BadResponse> {
    let read = progress.field(line, limits.fields, Reading::Lenient).map_err(|fault| match fault {
        Fault::Folded => BadResponse::FoldedLine,
        Fault::Name => BadResponse::FieldName,
        Fault::Value => BadResponse::FieldValue,
        Fault::TooMany => BadResponse::TooManyFields,
    })?;
    let (notes, value, mut field) = (&mut progress.notes, read.value, read.field);
    match read.known {
        Some(Known::ContentLength) => {
            // RFC 9110 §8.6: the same number again says nothing new, in one field or in several.
            let first = text::list(value).next().and_then(text::decimal).ok_or(BadResponse::ContentLength)?;
            for member in value.split(|byte| *byte == b',') {
                let number = text::decimal(text::trim(member)).ok_or(BadResponse::ContentLength)?;
                if number != notes.length.unwrap_or(first) || number != first {
                    return Err(BadResponse::ContentLengthDiffers);
                }
            }
            if notes.length.replace(first).is_some() {
                return Ok(());
            }
            if let Some(comma) = memchr::memchr(b',', value) {
                field.cut_value(text::trim(value.get(..comma).unwrap_or_default()).len());
            }
        }
        Some(Known::TransferEncoding) => {
            // RFC 9112 §6.1: chunked, once. Any other coding would reach the client without its name.
            if notes.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(BadResponse::TransferEncoding);
            }
            notes.chunked = true;
            return Ok(());
        }
        Some(Known::Connection) if !notes.connection(value) => return Err(BadResponse::Connection),
        _ => {}
    }
    into.fields.note(field);
    Ok(())
}

/// RFC 9112 §6.3, in its order.
fn conclude(progress: &Progress, to: &Method, into: &mut ResponseHead) -> Result<ResponseInfo, BadResponse> {
    let (notes, is_11, status) = (&progress.notes, into.version == Version::HTTP_11, into.status);
    if notes.chunked && !is_11 {
        return Err(BadResponse::TransferEncodingVersion);
    }
    let bodiless = status.is_informational() || status == StatusCode::NO_CONTENT;
    let tunnel = *to == Method::CONNECT && status.is_success();
    let mut persistent = !notes.close && (is_11 || notes.keep_alive);
    let framing = if bodiless || tunnel {
        // RFC 9110 §8.6: no length in these. Who declares a body all the same may also send it, as the next response.
        persistent &= !notes.chunked && notes.length.unwrap_or(0) == 0;
        into.fields.remove(Known::ContentLength);
        Framing::Empty
    } else if *to == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        // Here a length says how long a body would be; beside `chunked` it was never right.
        if notes.chunked {
            into.fields.remove(Known::ContentLength);
        }
        Framing::Empty
    } else if notes.chunked {
        if into.fields.remove(Known::ContentLength) > 0 {
            // Somebody on the way may have read it by the length.
            persistent = false;
        }
        Framing::Chunked
    } else if let Some(length) = notes.length {
        Framing::Length(length)
    } else {
        persistent = false;
        Framing::UntilClose
    };
    Ok(ResponseInfo { used: progress.taken(), framing, persistent })
}
