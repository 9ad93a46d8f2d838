//! Field sections to and from the gateway's message model, with the rules of RFC 9114 §4.2 and §4.3.
//!
//! What leaves here is fit for HTTP/3: connection-specific fields of an HTTP/1.1 message are left out, as
//! §4.2 asks of an intermediary. What comes in is judged strictly: these are the forms of request smuggling.

use super::{Code, Limits, ProtocolError, qpack, static_table, varint};
use archipelago_http::{Fields, InvalidField, Known, Pooled, RequestHead, ResponseHead, Scheme};
use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version};

/// Appends the HEADERS frame of a request: what `head` has, then the fields of `said`.
///
/// A `host` field never goes on the wire beside `:authority`.
///
/// # Errors
/// A request without authority, a path that no URI has, or a head of more than `bytes_max`; nothing is appended.
pub fn encode_request(
    head: &RequestHead,
    said: &Fields,
    bytes_max: u64,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    let is_plain_connect = head.method == Method::CONNECT && head.protocol.is_none();
    // Whatever it was where it came from (RFC 9220 §3).
    let method = if head.protocol.is_some() { &Method::CONNECT } else { &head.method };
    let authority = head.authority().filter(|text| !text.is_empty()).ok_or(EncodeError::NoAuthority)?;
    // Gateways of earlier versions take what `http::Uri` takes.
    let path = head.path_of_uri().map_err(|_| EncodeError::Path)?;
    frame(out, bytes_max, |lines| {
        lines.put_pseudo(static_table::METHOD, method.as_str().as_bytes());
        if !is_plain_connect {
            lines.put_pseudo(static_table::SCHEME, head.scheme.as_str().as_bytes());
        }
        lines.put_pseudo(static_table::AUTHORITY, authority);
        if !is_plain_connect {
            lines.put_pseudo(static_table::PATH, if path.is_empty() { b"/" } else { &path });
        }
        if let Some(protocol) = &head.protocol {
            lines.put(&[], b":protocol", protocol.as_bytes(), false);
        }
        lines.put_fields(&head.fields);
        lines.put_fields(said);
    })
}

/// Appends the HEADERS frame of a response.
///
/// # Errors
/// A head of more than `bytes_max`; nothing is appended.
pub fn encode_response(head: &ResponseHead, bytes_max: u64, out: &mut BytesMut) -> Result<(), EncodeError> {
    frame(out, bytes_max, |lines| {
        lines.put_pseudo(static_table::STATUS, head.status.as_str().as_bytes());
        lines.put_fields(&head.fields);
    })
}

/// Appends the HEADERS frame of trailers.
///
/// # Errors
/// Trailers of more than `bytes_max`; nothing is appended.
pub fn encode_trailers(trailers: &HeaderMap, bytes_max: u64, out: &mut BytesMut) -> Result<(), EncodeError> {
    frame(out, bytes_max, |lines| {
        for (name, value) in trailers {
            let name = name.as_str().as_bytes();
            lines.put_field(Known::of(name), name, value.as_bytes());
        }
    })
}

/// A message that HTTP/3 has no form for, or that the peer would not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It does not say whom it is for.
    #[error("request names no authority")]
    NoAuthority,
    /// The target is no path.
    #[error("the request target is not a path")]
    Path,
    /// More than the peer accepts.
    #[error("head of {bytes} bytes (names, values and 32 for each field), more than the {max} that the peer accepts")]
    TooLarge {
        /// Its size by RFC 9114 §4.2.2.
        bytes: u64,
        /// What the peer accepts.
        max: u64,
    },
}

/// Reads the field section of a request.
///
/// # Errors
/// A malformed request (RFC 9114 §4.1.2): reset the stream with [`Code::MESSAGE_ERROR`].
pub fn decode_request(section: &[u8], limits: Limits) -> Result<Pooled<RequestHead>, ProtocolError> {
    let mut reading = ReadingRequest { head: Pooled::new(), seen: 0 };
    decode(section, limits, &mut reading)?;
    let seen = |pseudo| reading.seen & bit(pseudo) != 0;
    if !seen(Pseudo::Method) {
        return Err(malformed("request without :method"));
    }
    let is_connect = reading.head.method == Method::CONNECT;
    if is_connect && !seen(Pseudo::Protocol) {
        if seen(Pseudo::Scheme) || seen(Pseudo::Path) {
            return Err(malformed("CONNECT with :scheme or :path"));
        }
        if !seen(Pseudo::Authority) {
            return Err(malformed("CONNECT without :authority"));
        }
    } else {
        if seen(Pseudo::Protocol) && !is_connect {
            return Err(malformed(":protocol without CONNECT"));
        }
        if !seen(Pseudo::Scheme) {
            return Err(malformed("request without :scheme"));
        }
        if !seen(Pseudo::Path) {
            return Err(malformed("request without :path"));
        }
        let path = reading.head.path();
        if path.first() != Some(&b'/') && !(reading.head.method == Method::OPTIONS && path == b"*") {
            return Err(malformed(":path does not begin with a slash"));
        }
    }
    let mut head = reading.head;
    take_host(&mut head)?;
    head.version = Version::HTTP_3;
    Ok(head)
}

/// Reads the field section of a response.
///
/// # Errors
/// As [`decode_request`].
pub fn decode_response(section: &[u8], limits: Limits) -> Result<Pooled<ResponseHead>, ProtocolError> {
    let mut reading = ReadingResponse { head: Pooled::new(), has_status: false };
    decode(section, limits, &mut reading)?;
    if !reading.has_status {
        return Err(malformed("response without :status"));
    }
    let mut head = reading.head;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(malformed("HTTP/3 has no 101")); // RFC 9114 §4.5
    }
    head.version = Version::HTTP_3;
    Ok(head)
}

/// Reads the field section of trailers.
///
/// # Errors
/// As [`decode_request`]; pseudo-headers have no place in trailers.
pub fn decode_trailers(section: &[u8], limits: Limits) -> Result<HeaderMap, ProtocolError> {
    let mut reading = ReadingTrailers(Fields::new());
    decode(section, limits, &mut reading)?;
    reading.0.to_header_map().map_err(|_| malformed("invalid field value"))
}

/// The declared length of a message's body.
///
/// # Errors
/// Values that are not one number (RFC 9110 §8.6 allows the same number repeated).
pub fn content_length(fields: &Fields) -> Result<Option<u64>, ProtocolError> {
    let mut length = None;
    for value in fields.get_all(Known::ContentLength) {
        for item in value.split(|byte| *byte == b',') {
            let item = item.trim_ascii();
            if item.is_empty() || item.len() > 19 || !item.iter().all(u8::is_ascii_digit) {
                return Err(malformed("invalid content-length"));
            }
            let number = item.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
            if length.is_some_and(|before| before != number) {
                return Err(malformed("content-length given twice, differently"));
            }
            length = Some(number);
        }
    }
    Ok(length)
}

/// A head that is being read.
trait Reading {
    /// Takes a pseudo-header.
    fn take_pseudo(&mut self, pseudo: Pseudo, value: &[u8]) -> Result<(), ProtocolError>;

    /// Where the fields go.
    fn fields(&mut self) -> &mut Fields;
}

struct ReadingRequest {
    head: Pooled<RequestHead>,
    /// A bit for each pseudo-header that was there.
    seen: u8,
}

impl Reading for ReadingRequest {
    fn take_pseudo(&mut self, pseudo: Pseudo, value: &[u8]) -> Result<(), ProtocolError> {
        if self.seen & bit(pseudo) != 0 {
            return Err(TWICE);
        }
        self.seen |= bit(pseudo);
        let head = &mut self.head;
        match pseudo {
            Pseudo::Method => {
                head.method = Method::from_bytes(value).map_err(|_| malformed(":method is not a token"))?;
            }
            Pseudo::Scheme => {
                let known = [Scheme::Http, Scheme::Https];
                let known = known.into_iter().find(|known| value.eq_ignore_ascii_case(known.as_str().as_bytes()));
                head.scheme = known.ok_or(malformed("invalid :scheme"))?;
            }
            Pseudo::Authority if !head.set_authority(value) => return Err(malformed("invalid :authority")),
            Pseudo::Path if !head.set_path(value) => return Err(malformed("invalid :path")),
            Pseudo::Authority | Pseudo::Path => {}
            Pseudo::Protocol => {
                let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_graphic()));
                head.protocol = Some(text.ok_or(malformed("invalid :protocol"))?.into());
            }
            Pseudo::Status => return Err(malformed(":status in a request")),
        }
        Ok(())
    }

    fn fields(&mut self) -> &mut Fields {
        &mut self.head.fields
    }
}

struct ReadingResponse {
    head: Pooled<ResponseHead>,
    has_status: bool,
}

impl Reading for ReadingResponse {
    fn take_pseudo(&mut self, pseudo: Pseudo, value: &[u8]) -> Result<(), ProtocolError> {
        if pseudo != Pseudo::Status {
            return Err(malformed("request pseudo-header in a response"));
        }
        if std::mem::replace(&mut self.has_status, true) {
            return Err(TWICE);
        }
        self.head.status = StatusCode::from_bytes(value).map_err(|_| malformed("invalid :status"))?;
        Ok(())
    }

    fn fields(&mut self) -> &mut Fields {
        &mut self.head.fields
    }
}

struct ReadingTrailers(Fields);

impl Reading for ReadingTrailers {
    fn take_pseudo(&mut self, _: Pseudo, _: &[u8]) -> Result<(), ProtocolError> {
        Err(malformed("pseudo-header in trailers"))
    }

    fn fields(&mut self) -> &mut Fields {
        &mut self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

impl Pseudo {
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b":protocol" => Self::Protocol,
            b":status" => Self::Status,
            _ => return None,
        })
    }
}

const fn bit(pseudo: Pseudo) -> u8 {
    1 << pseudo as u8
}

fn decode(section: &[u8], limits: Limits, reading: &mut impl Reading) -> Result<(), ProtocolError> {
    let (mut bytes, mut count) = (0usize, 0usize);
    // Static names are longer than their indices, values rarely shorter than what they take here.
    reading.fields().reserve(section.len() + section.len() / 2);
    let mut section = qpack::Section::new(section)?;
    while let Some(field) = section.next_field()? {
        let qpack::Field { name, value, index } = field;
        count += 1;
        bytes = bytes.saturating_add(name.len() + value.len() + 32);
        if bytes > limits.field_section_bytes_max || count > limits.fields_max {
            return Err(ProtocolError::stream(Code::EXCESSIVE_LOAD, "too many header fields"));
        }
        if name.first() == Some(&b':') {
            if !reading.fields().is_empty() {
                return Err(malformed("pseudo-header after a field"));
            }
            reading.take_pseudo(Pseudo::of(name).ok_or(malformed("unknown pseudo-header"))?, value)?;
            continue;
        }
        let known = match index {
            Some(index) => static_table::known(index),
            None if name.iter().any(u8::is_ascii_uppercase) => return Err(malformed("invalid field name")),
            None => Known::of(name),
        };
        let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if blank(value.first()) || blank(value.last()) {
            return Err(malformed("white space around a field value")); // RFC 9114 §10.3
        }
        if is_connection_specific(known, value) {
            return Err(malformed("connection-specific field"));
        }
        let taken = match known {
            Some(known) => reading.fields().push_known(known, value),
            None => reading.fields().push_named(name, value),
        };
        taken.map_err(|invalid| match invalid {
            InvalidField::Name => malformed("invalid field name"),
            _ => malformed("invalid field value"),
        })?;
    }
    Ok(())
}

/// RFC 9114 §4.3.1: with `host` and `:authority` both present, they say the same; one is enough. The model has only the authority.
fn take_host(head: &mut RequestHead) -> Result<(), ProtocolError> {
    let host = match head.fields.count(Known::Host) {
        0 if head.authority().is_none() => return Err(malformed("request without authority")),
        0 => return Ok(()),
        1 => head.fields.get(Known::Host).unwrap_or_default(),
        _ => return Err(malformed("host given twice")),
    };
    match head.authority() {
        Some(authority) if !authority.eq_ignore_ascii_case(host) => {
            return Err(malformed("host differs from :authority"));
        }
        Some(_) => {}
        None => {
            let host = host.to_vec();
            if !head.set_authority(&host) {
                return Err(malformed("request without authority"));
            }
        }
    }
    head.fields.remove(Known::Host);
    Ok(())
}

/// RFC 9114 §4.2: fields about a connection, which HTTP/3 says otherwise.
fn is_connection_specific(known: Option<Known>, value: &[u8]) -> bool {
    match known {
        Some(
            Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::TransferEncoding | Known::Upgrade,
        ) => true,
        Some(Known::Te) => !value.eq_ignore_ascii_case(b"trailers"),
        _ => false,
    }
}

/// What nobody on the way may keep in a table (RFC 9204 §7.1.3).
fn is_sensitive(known: Option<Known>) -> bool {
    matches!(known, Some(Known::Authorization | Known::ProxyAuthorization | Known::Cookie | Known::SetCookie))
}

/// The lines of a section, and their size by RFC 9114 §4.2.2.
struct Lines<'a> {
    out: &'a mut BytesMut,
    bytes: u64,
}

impl Lines<'_> {
    fn put_pseudo(&mut self, entries: &'static [u8], value: &[u8]) {
        let name =
            entries.first().and_then(|index| static_table::entry(u64::from(*index))).map_or("", |(name, _)| name);
        self.put(entries, name.as_bytes(), value, false);
    }

    fn put_fields(&mut self, fields: &Fields) {
        for (name, value, known) in fields.iter() {
            self.put_field(known, name, value);
        }
    }

    fn put_field(&mut self, known: Option<Known>, name: &[u8], value: &[u8]) {
        if known == Some(Known::Host) || is_connection_specific(known, value) {
            return;
        }
        match known {
            Some(known) => {
                let entries = static_table::of_known(known);
                self.put(entries, known.as_str().as_bytes(), value, is_sensitive(Some(known)));
            }
            None => self.put(static_table::indices(std::str::from_utf8(name).unwrap_or_default()), name, value, false),
        }
    }

    /// `entries`: those of the static table that have the name.
    fn put(&mut self, entries: &[u8], name: &[u8], value: &[u8], sensitive: bool) {
        self.bytes += (name.len() + value.len() + 32) as u64;
        qpack::encode_field(entries, name, value, sensitive, self.out);
    }
}

/// Writes a HEADERS frame around what `fill` appends, unless that is more than `bytes_max`.
fn frame(out: &mut BytesMut, bytes_max: u64, fill: impl FnOnce(&mut Lines<'_>)) -> Result<(), EncodeError> {
    // Nearly every section fits a two-byte length: leave room for one and fill it in afterwards.
    let start = out.len();
    out.put_slice(&[0x01, 0, 0]);
    qpack::begin(out);
    let mut lines = Lines { out, bytes: 0 };
    fill(&mut lines);
    let bytes = lines.bytes;
    if bytes > bytes_max {
        out.truncate(start);
        return Err(EncodeError::TooLarge { bytes, max: bytes_max });
    }
    let length = out.len() - start - 3;
    if length < 0x4000 {
        let [high, low] = (length as u16 | 0x4000).to_be_bytes();
        if let Some([_, first, second, ..]) = out.get_mut(start..) {
            (*first, *second) = (high, low);
        }
        return Ok(());
    }
    let section = out.split_off(start + 3);
    out.truncate(start);
    out.put_u8(0x01);
    varint::encode(length as u64, out);
    out.put(section);
    Ok(())
}

const fn malformed(what: &'static str) -> ProtocolError {
    ProtocolError::stream(Code::MESSAGE_ERROR, what)
}

const TWICE: ProtocolError = malformed("pseudo-header given twice");
