//! Field sections to and from [`http`] types, with the rules of RFC 9114 §4.2 and §4.3.
//!
//! What leaves here is fit for HTTP/3: connection-specific fields of an HTTP/1.1 message are left out, as
//! §4.2 asks of an intermediary. What comes in is judged strictly: these are the forms of request smuggling.

use super::{Code, Limits, ProtocolError, qpack, varint};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri};

/// The `:protocol` of an extended CONNECT (RFC 9220), in the extensions of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol(pub HeaderValue);

/// Appends the HEADERS frame of a request.
///
/// `:authority` is the URI's, else the `host` field's; a `host` field never goes on the wire beside it.
/// `:scheme` is the URI's, else `http`, because what a gateway carries arrived in clear text.
///
/// # Errors
/// A CONNECT without authority, any request without a way to name its host, or a head of more than `bytes_max`; nothing is appended.
pub fn encode_request<B>(request: &Request<B>, bytes_max: u64, out: &mut BytesMut) -> Result<(), EncodeError> {
    let uri = request.uri();
    let host = request.headers().get(header::HOST);
    let authority = match uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => host.map(HeaderValue::as_bytes),
    };
    let protocol = request.extensions().get::<Protocol>();
    let is_plain_connect = request.method() == Method::CONNECT && protocol.is_none();
    let authority = authority.filter(|text| !text.is_empty()).ok_or(EncodeError::NoAuthority)?;
    frame(out, bytes_max, |lines| {
        lines.put(":method", request.method().as_str().as_bytes(), false);
        if !is_plain_connect {
            lines.put(":scheme", uri.scheme_str().unwrap_or("http").as_bytes(), false);
        }
        lines.put(":authority", authority, false);
        if !is_plain_connect {
            let path = uri.path_and_query().map_or("/", uri::PathAndQuery::as_str);
            let path = if path.is_empty() { "/" } else { path };
            lines.put(":path", path.as_bytes(), false);
        }
        if let Some(Protocol(protocol)) = protocol {
            lines.put(":protocol", protocol.as_bytes(), false);
        }
        encode_headers(request.headers(), Some(&header::HOST), lines);
    })
}

/// Appends the HEADERS frame of a response.
///
/// # Errors
/// A head of more than `bytes_max`; nothing is appended.
pub fn encode_response<B>(response: &Response<B>, bytes_max: u64, out: &mut BytesMut) -> Result<(), EncodeError> {
    frame(out, bytes_max, |lines| {
        lines.put(":status", response.status().as_str().as_bytes(), false);
        encode_headers(response.headers(), None, lines);
    })
}

/// Appends the HEADERS frame of trailers.
///
/// # Errors
/// Trailers of more than `bytes_max`; nothing is appended.
pub fn encode_trailers(trailers: &HeaderMap, bytes_max: u64, out: &mut BytesMut) -> Result<(), EncodeError> {
    frame(out, bytes_max, |lines| encode_headers(trailers, None, lines))
}

/// A message that HTTP/3 has no form for, or that the peer would not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Neither the URI nor `host` names an authority.
    #[error("request names no authority")]
    NoAuthority,
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
pub fn decode_request(section: Bytes, limits: Limits) -> Result<Request<()>, ProtocolError> {
    let Head { pseudo, headers } = decode(section, limits)?;
    let method = pseudo.method.ok_or(malformed("request without :method"))?;
    let method = Method::from_bytes(&method).map_err(|_| malformed(":method is not a token"))?;
    if pseudo.status.is_some() {
        return Err(malformed(":status in a request"));
    }
    let authority = pseudo
        .authority
        .map(|text| uri::Authority::from_maybe_shared(text).map_err(|_| malformed("invalid :authority")))
        .transpose()?;
    let mut parts = uri::Parts::default();
    if method == Method::CONNECT && pseudo.protocol.is_none() {
        if pseudo.scheme.is_some() || pseudo.path.is_some() {
            return Err(malformed("CONNECT with :scheme or :path"));
        }
        parts.authority = Some(authority.ok_or(malformed("CONNECT without :authority"))?);
    } else {
        if pseudo.protocol.is_some() && method != Method::CONNECT {
            return Err(malformed(":protocol without CONNECT"));
        }
        let scheme = pseudo.scheme.ok_or(malformed("request without :scheme"))?;
        let path = pseudo.path.ok_or(malformed("request without :path"))?;
        let asterisk = method == Method::OPTIONS && &path[..] == b"*";
        if path.first() != Some(&b'/') && !asterisk {
            return Err(malformed(":path does not begin with a slash"));
        }
        check_host(authority.as_ref(), &headers)?;
        parts.scheme = Some(uri::Scheme::try_from(&scheme[..]).map_err(|_| malformed("invalid :scheme"))?);
        parts.path_and_query =
            Some(uri::PathAndQuery::from_maybe_shared(path).map_err(|_| malformed("invalid :path"))?);
        // A URI with scheme needs an authority; a peer that sent `host` alone means the same.
        parts.authority = match authority {
            Some(authority) => Some(authority),
            None => headers.get(header::HOST).and_then(|host| uri::Authority::try_from(host.as_bytes()).ok()),
        };
        if parts.authority.is_none() {
            return Err(malformed("request without authority"));
        }
    }
    let mut request = Request::new(());
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| malformed("pseudo-headers make no URI"))?;
    *request.method_mut() = method;
    *request.version_mut() = Version::HTTP_3;
    *request.headers_mut() = headers;
    if let Some(protocol) = pseudo.protocol {
        request.extensions_mut().insert(Protocol(value(protocol)?));
    }
    Ok(request)
}

/// Reads the field section of a response.
///
/// # Errors
/// As [`decode_request`].
pub fn decode_response(section: Bytes, limits: Limits) -> Result<Response<()>, ProtocolError> {
    let Head { pseudo, headers } = decode(section, limits)?;
    if pseudo.method.is_some() || pseudo.scheme.is_some() || pseudo.authority.is_some() || pseudo.path.is_some() {
        return Err(malformed("request pseudo-header in a response"));
    }
    let status = pseudo.status.ok_or(malformed("response without :status"))?;
    let status = StatusCode::from_bytes(&status).map_err(|_| malformed("invalid :status"))?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(malformed("HTTP/3 has no 101")); // RFC 9114 §4.5
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_3;
    *response.headers_mut() = headers;
    Ok(response)
}

/// Reads the field section of trailers.
///
/// # Errors
/// As [`decode_request`]; pseudo-headers have no place in trailers.
pub fn decode_trailers(section: Bytes, limits: Limits) -> Result<HeaderMap, ProtocolError> {
    let Head { pseudo, headers } = decode(section, limits)?;
    if pseudo.is_empty() { Ok(headers) } else { Err(malformed("pseudo-header in trailers")) }
}

/// The declared length of a message's body.
///
/// # Errors
/// Values that are not one number (RFC 9110 §8.6 allows the same number repeated).
pub fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ProtocolError> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for item in value.as_bytes().split(|byte| *byte == b',') {
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

struct Head {
    pseudo: Pseudo,
    headers: HeaderMap,
}

#[derive(Default)]
struct Pseudo {
    method: Option<Bytes>,
    scheme: Option<Bytes>,
    authority: Option<Bytes>,
    path: Option<Bytes>,
    protocol: Option<Bytes>,
    status: Option<Bytes>,
}

impl Pseudo {
    fn is_empty(&self) -> bool {
        let Self { method, scheme, authority, path, protocol, status } = self;
        [method, scheme, authority, path, protocol, status].iter().all(|field| field.is_none())
    }

    fn set(&mut self, name: &[u8], value: Bytes) -> Result<(), ProtocolError> {
        let field = match name {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":authority" => &mut self.authority,
            b":path" => &mut self.path,
            b":protocol" => &mut self.protocol,
            b":status" => &mut self.status,
            _ => return Err(malformed("unknown pseudo-header")),
        };
        if field.replace(value).is_some() {
            return Err(malformed("pseudo-header given twice"));
        }
        Ok(())
    }
}

fn decode(section: Bytes, limits: Limits) -> Result<Head, ProtocolError> {
    let mut section = qpack::Section::new(section)?;
    let mut head = Head { pseudo: Pseudo::default(), headers: HeaderMap::with_capacity(16) };
    let (mut bytes, mut count) = (0usize, 0usize);
    while let Some(field) = section.next_field()? {
        count += 1;
        bytes = bytes.saturating_add(field.name.as_bytes().len() + field.value.as_bytes().len() + 32);
        if bytes > limits.field_section_bytes_max || count > limits.fields_max {
            return Err(ProtocolError::stream(Code::EXCESSIVE_LOAD, "too many header fields"));
        }
        if field.name.as_bytes().first() == Some(&b':') {
            if !head.headers.is_empty() {
                return Err(malformed("pseudo-header after a field"));
            }
            head.pseudo.set(field.name.as_bytes(), field.value.into_bytes())?;
            continue;
        }
        let name = match field.name {
            qpack::Text::Static(name) => HeaderName::from_static(name),
            // Refuses upper case, and with it everything that is not a token.
            qpack::Text::Owned(name) => {
                HeaderName::from_lowercase(&name).map_err(|_| malformed("invalid field name"))?
            }
        };
        let value = value(field.value.into_bytes())?;
        if is_connection_specific(&name, &value) {
            return Err(malformed("connection-specific field"));
        }
        head.headers.append(name, value);
    }
    Ok(head)
}

/// A field value: no CR, LF, NUL or other control, no white space around it (RFC 9114 §10.3, RFC 9110 §5.5).
fn value(bytes: Bytes) -> Result<HeaderValue, ProtocolError> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if blank(bytes.first()) || blank(bytes.last()) {
        return Err(malformed("white space around a field value"));
    }
    HeaderValue::from_maybe_shared(bytes).map_err(|_| malformed("invalid field value"))
}

/// RFC 9114 §4.3.1: with `host` and `:authority` both present, they say the same.
fn check_host(authority: Option<&uri::Authority>, headers: &HeaderMap) -> Result<(), ProtocolError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return Ok(()) };
    if hosts.next().is_some() {
        return Err(malformed("host given twice"));
    }
    match authority {
        Some(authority) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(malformed("host differs from :authority"))
        }
        _ => Ok(()),
    }
}

/// RFC 9114 §4.2: fields about a connection, which HTTP/3 says otherwise.
fn is_connection_specific(name: &HeaderName, value: &HeaderValue) -> bool {
    match name.as_str() {
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => true,
        "te" => !value.as_bytes().eq_ignore_ascii_case(b"trailers"),
        _ => false,
    }
}

fn encode_headers(headers: &HeaderMap, skip: Option<&HeaderName>, lines: &mut Lines<'_>) {
    for (name, value) in headers {
        if Some(name) == skip || is_connection_specific(name, value) {
            continue;
        }
        // HTTP/1.1 parsers trim, but a value made by hand may not be.
        lines.put(name.as_str(), value.as_bytes().trim_ascii(), value.is_sensitive());
    }
}

/// The lines of a section, and their size by RFC 9114 §4.2.2.
struct Lines<'a> {
    out: &'a mut BytesMut,
    bytes: u64,
}

impl Lines<'_> {
    fn put(&mut self, name: &str, value: &[u8], sensitive: bool) {
        self.bytes += (name.len() + value.len() + 32) as u64;
        qpack::encode_field(name, value, sensitive, self.out);
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
