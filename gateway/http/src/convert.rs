//! To and from the types of the `http` crate, which hyper and h2 speak.

use std::borrow::Cow;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Uri, request, response, uri};

use crate::fields::{Fields, InvalidField};
use crate::head::{RequestHead, ResponseHead, Scheme};
use crate::name::Known;
use crate::text;

/// Why a head has no counterpart in the types of the `http` crate, or the other way round.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotHttp {
    /// More distinct names than a `HeaderMap` can hold.
    #[error("a message has at most 24,576 different fields")]
    TooManyFields,
    /// A field that this model does not hold.
    #[error("a field is not valid")]
    Field(#[from] InvalidField),
    /// A target that is no URI.
    #[error("the request target is not one")]
    Target,
    /// An authority that is none.
    #[error("the host name is not valid")]
    Authority,
}

impl Fields {
    /// The same fields as a map. Order is kept among fields of one name.
    ///
    /// # Errors
    /// Too many of them.
    pub fn to_header_map(&self) -> Result<HeaderMap, NotHttp> {
        let mut map = HeaderMap::with_capacity(self.len());
        for (name, value, _) in self.iter() {
            let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else {
                return Err(NotHttp::Field(InvalidField::Name));
            };
            map.try_append(name, value).map_err(|_| NotHttp::TooManyFields)?;
        }
        Ok(map)
    }

    /// Appends the fields of a map.
    ///
    /// # Errors
    /// Values that were made without a check.
    pub fn extend_from(&mut self, map: &HeaderMap) -> Result<(), InvalidField> {
        map.iter().try_for_each(|(name, value)| self.push_named(name.as_str().as_bytes(), value.as_bytes()))
    }
}

impl RequestHead {
    /// The same head for hyper and h2, with an absolute URI where there is an authority.
    ///
    /// Bytes of the path that their `Uri` does not hold (`"`, `<`, `>`, `^`, a backquote, `{`, `|`, `}`, a backslash and what is above
    /// 127) are percent-encoded where it refuses the path as it is, which RFC 3986 §2.1 calls the same resource.
    ///
    /// # Errors
    /// Paths and authorities that are none.
    pub fn to_http(&self) -> Result<request::Parts, NotHttp> {
        let mut request = http::Request::new(());
        *request.method_mut() = self.method.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.fields.to_header_map()?;
        let mut parts = uri::Parts::default();
        if let Some(authority) = self.authority() {
            parts.authority = Some(uri::Authority::try_from(authority).map_err(|_| NotHttp::Authority)?);
        }
        if self.method != Method::CONNECT {
            parts.path_and_query = Some(path(self.path())?);
            if parts.authority.is_some() {
                let https = self.scheme == Scheme::Https;
                parts.scheme = Some(if https { uri::Scheme::HTTPS } else { uri::Scheme::HTTP });
            }
        }
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| NotHttp::Target)?;
        Ok(request.into_parts().0)
    }

    /// The path as `http::Uri` holds it: see [`to_http`](Self::to_http).
    ///
    /// # Errors
    /// Paths that are none.
    pub fn path_of_uri(&self) -> Result<Cow<'_, [u8]>, NotHttp> {
        if self.path().iter().all(|byte| text::is_uri_byte(*byte)) {
            return Ok(Cow::Borrowed(self.path()));
        }
        Ok(Cow::Owned(path(self.path())?.as_str().as_bytes().to_vec()))
    }

    /// The head of a request that hyper or h2 read. `Host` becomes the authority where the URI has none; several cookie fields
    /// become one (RFC 9113 §8.2.3).
    ///
    /// # Errors
    /// Targets and fields that this model does not hold.
    pub fn from_http(parts: &request::Parts) -> Result<Self, NotHttp> {
        let mut head = Self::new();
        head.method = parts.method.clone();
        head.version = parts.version;
        if parts.uri.scheme() == Some(&uri::Scheme::HTTPS) {
            head.scheme = Scheme::Https;
        }
        let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = parts.headers.get(http::header::HOST).map(HeaderValue::as_bytes);
        if let Some(authority) = authority.or(host)
            && !head.set_authority(authority)
        {
            return Err(NotHttp::Authority);
        }
        if parts.method != Method::CONNECT {
            let path = parts.uri.path_and_query().map_or("/", uri::PathAndQuery::as_str);
            if !head.set_path(path.as_bytes()) {
                return Err(NotHttp::Target);
            }
        }
        head.fields.extend_from(&parts.headers)?;
        head.fields.remove(Known::Host);
        head.fields.remove(Known::TransferEncoding);
        head.fields.join_cookies();
        Ok(head)
    }
}

impl ResponseHead {
    /// The same head for hyper and h2. The reason phrase is left out: HTTP/2 has none.
    ///
    /// # Errors
    /// Too many fields.
    pub fn to_http(&self) -> Result<response::Parts, NotHttp> {
        let mut response = http::Response::new(());
        *response.status_mut() = self.status;
        *response.version_mut() = self.version;
        *response.headers_mut() = self.fields.to_header_map()?;
        Ok(response.into_parts().0)
    }

    /// The head of a response that hyper or h2 read.
    ///
    /// # Errors
    /// Fields that this model does not hold.
    pub fn from_http(parts: &response::Parts) -> Result<Self, NotHttp> {
        let mut head = Self::new();
        (head.status, head.version) = (parts.status, parts.version);
        head.fields.extend_from(&parts.headers)?;
        head.fields.remove(Known::TransferEncoding);
        Ok(head)
    }
}

fn path(path: &[u8]) -> Result<uri::PathAndQuery, NotHttp> {
    if let Ok(path) = uri::PathAndQuery::try_from(path) {
        return Ok(path);
    }
    if !text::is_target(path) {
        return Err(NotHttp::Target);
    }
    let mut encoded = Vec::with_capacity(path.len() + 16);
    for byte in path {
        if byte.is_ascii() && !b"\"<>\\^`{|}".contains(byte) {
            encoded.push(*byte);
        } else {
            let hex = |digit: u8| b"0123456789ABCDEF".get(usize::from(digit)).copied().unwrap_or(b'0');
            encoded.extend_from_slice(&[b'%', hex(byte >> 4), hex(byte & 15)]);
        }
    }
    uri::PathAndQuery::try_from(encoded.as_slice()).map_err(|_| NotHttp::Target)
}
