//! Heads of messages, whatever protocol they came by.

use std::fmt;

use http::{Method, StatusCode, Version};

use crate::fields::Fields;
use crate::text;

/// The head of a request.
///
/// Its fields hold neither `Host` nor `Transfer-Encoding` when it came by HTTP/1.1: whom it is for is its authority, how long it
/// is the [`Framing`](crate::h1::Framing) beside it.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// What to do; case-sensitive.
    pub method: Method,
    /// By what it came.
    pub version: Version,
    /// `http` unless the request says otherwise.
    pub scheme: Scheme,
    /// What a CONNECT is for, where it says so (`:protocol`: RFC 8441 §4, RFC 9220 §3).
    pub protocol: Option<Box<str>>,
    /// Everything else.
    pub fields: Fields,
    authority: Vec<u8>,
    has_authority: bool,
    path: Vec<u8>,
}

/// How a target is to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// In the clear.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that an authority without one means.
    pub const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl RequestHead {
    /// `GET /` for nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the request and keeps the memory.
    pub fn clear(&mut self) {
        (self.method, self.version, self.scheme) = (Method::GET, Version::HTTP_11, Scheme::Http);
        self.protocol = None;
        self.fields.clear();
        self.authority.clear();
        self.has_authority = false;
        self.path.clear();
    }

    /// Gives memory back beyond what a request of `bytes` needs.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.fields.shrink_to(bytes);
        self.authority.shrink_to(bytes);
        self.path.shrink_to(bytes);
    }

    /// The path and query as they came, byte for byte; `*` for OPTIONS of a whole server; empty for CONNECT.
    ///
    /// It has no control and no space, and may have every other byte.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The host, and the port where there is one; `None` for HTTP/1.0 without `Host`.
    pub fn authority(&self) -> Option<&[u8]> {
        self.has_authority.then_some(self.authority.as_slice())
    }

    /// Takes a path and query, or `*`, if it has neither controls nor spaces.
    pub fn set_path(&mut self, path: &[u8]) -> bool {
        let good = text::is_target(path);
        if good {
            self.path.clear();
            self.path.extend_from_slice(path);
        }
        good
    }

    /// Takes a host with or without a port, if that is what it is (RFC 3986 §3.2.2, without user information).
    pub fn set_authority(&mut self, authority: &[u8]) -> bool {
        let good = crate::h1::is_authority(authority);
        if good {
            self.put_authority(authority);
        }
        good
    }

    /// Takes one that was checked.
    pub(crate) fn put_authority(&mut self, authority: &[u8]) {
        self.authority.clear();
        self.authority.extend_from_slice(authority);
        self.has_authority = true;
    }

    /// Takes pieces of a target that was checked.
    pub(crate) fn put_path(&mut self, pieces: [&[u8]; 2]) {
        self.path.clear();
        pieces.iter().for_each(|piece| self.path.extend_from_slice(piece));
    }
}

impl Default for RequestHead {
    fn default() -> Self {
        Self {
            method: Method::GET,
            version: Version::HTTP_11,
            scheme: Scheme::Http,
            protocol: None,
            fields: Fields::new(),
            authority: Vec::new(),
            has_authority: false,
            path: Vec::new(),
        }
    }
}

impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &self.method)
            .field("version", &self.version)
            .field("authority", &self.authority().map(String::from_utf8_lossy))
            .field("path", &String::from_utf8_lossy(&self.path))
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}

/// The head of a response.
///
/// Its fields hold no `Transfer-Encoding` when it came by HTTP/1.1. `Content-Length` is there where it may be: also in answers to
/// HEAD and in 304, which have no body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// By what it came.
    pub version: Version,
    /// Everything else.
    pub fields: Fields,
    reason: Vec<u8>,
}

impl ResponseHead {
    /// 200 without anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// A response with this status and nothing else.
    pub fn of(status: StatusCode) -> Self {
        Self { status, ..Self::default() }
    }

    /// Forgets the response and keeps the memory.
    pub fn clear(&mut self) {
        (self.status, self.version) = (StatusCode::OK, Version::HTTP_11);
        self.fields.clear();
        self.reason.clear();
    }

    /// Gives memory back beyond what a response of `bytes` needs.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.fields.shrink_to(bytes);
        self.reason.shrink_to(bytes);
    }

    /// The reason phrase as it came, else the usual one of the status; empty where there is none.
    pub fn reason(&self) -> &[u8] {
        if self.reason.is_empty() { self.usual_reason() } else { &self.reason }
    }

    /// Takes a reason phrase, if it has no controls (RFC 9112 §4).
    pub fn set_reason(&mut self, reason: &[u8]) -> bool {
        let good = text::is_value(reason);
        if good {
            self.put_reason(reason);
        }
        good
    }

    /// Takes one that was checked.
    pub(crate) fn put_reason(&mut self, reason: &[u8]) {
        self.reason.clear();
        if reason != self.usual_reason() {
            self.reason.extend_from_slice(reason);
        }
    }

    fn usual_reason(&self) -> &'static [u8] {
        self.status.canonical_reason().unwrap_or_default().as_bytes()
    }
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self { status: StatusCode::OK, version: Version::HTTP_11, fields: Fields::new(), reason: Vec::new() }
    }
}
