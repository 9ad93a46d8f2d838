//! What is wrong with a message, in one sentence each.

use http::StatusCode;

/// Why a request is not taken. After it the connection is of no use: nobody knows where the next request would begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// RFC 9112 §3.
    RequestLine,
    /// RFC 9112 §2.3.
    Version,
    /// RFC 9112 §3.2.
    Target,
    /// RFC 9112 §3.2.
    TargetTooLong,
    /// RFC 9112 §2.2.
    BareLineFeed,
    /// RFC 9112 §5.2.
    FoldedLine,
    /// RFC 9112 §5.1.
    FieldName,
    /// RFC 9110 §5.5.
    FieldValue,
    /// RFC 6585 §5.
    HeadTooLarge,
    /// RFC 6585 §5.
    TooManyFields,
    /// RFC 9112 §3.2.
    HostMissing,
    /// RFC 9112 §3.2.
    HostRepeated,
    /// RFC 9110 §7.2, RFC 3986 §3.2.2.
    HostInvalid,
    /// RFC 9112 §3.2.2.
    HostDiffers,
    /// RFC 9110 §8.6.
    ContentLength,
    /// RFC 9112 §6.3.
    ContentLengthRepeated,
    /// RFC 9112 §6.1.
    LengthAndEncoding,
    /// RFC 9112 §6.3.
    TransferEncoding,
    /// RFC 9112 §6.1.
    TransferEncodingUnknown,
    /// RFC 9112 §6.1.
    TransferEncodingVersion,
    /// RFC 9110 §7.6.1.
    Connection,
}

impl Refusal {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::RequestLine,
        Self::Version,
        Self::Target,
        Self::TargetTooLong,
        Self::BareLineFeed,
        Self::FoldedLine,
        Self::FieldName,
        Self::FieldValue,
        Self::HeadTooLarge,
        Self::TooManyFields,
        Self::HostMissing,
        Self::HostRepeated,
        Self::HostInvalid,
        Self::HostDiffers,
        Self::ContentLength,
        Self::ContentLengthRepeated,
        Self::LengthAndEncoding,
        Self::TransferEncoding,
        Self::TransferEncodingUnknown,
        Self::TransferEncodingVersion,
        Self::Connection,
    ];

    /// What to answer.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TransferEncodingUnknown => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Bounded label for metrics.
    pub const fn reason(self) -> &'static str {
        self.words().0
    }

    /// What is wrong, and what would be right, for the body of the answer and for logs.
    pub const fn line(self) -> &'static str {
        self.words().1
    }

    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::RequestLine => {
                ("request_line", "the request line is not a method, a target and a version with one space between them")
            }
            Self::Version => ("version", "the version is not HTTP/1.1 or HTTP/1.0"),
            Self::Target => (
                "target",
                "the request target is not a path, an http URI, an authority (CONNECT only) or * (OPTIONS only); it has no spaces, no controls and no fragment",
            ),
            Self::TargetTooLong => ("target_too_long", "the request target is longer than is taken here (32 KiB)"),
            Self::BareLineFeed => ("bare_line_feed", "a line of the head ends with LF alone; lines end with CR LF"),
            Self::FoldedLine => ("folded_line", "a line of the head continues the one before; a field is one line"),
            Self::FieldName => ("field_name", "a line of the head is not a name, a colon right after it, and a value"),
            Self::FieldValue => ("field_value", "a field has a control character in its value; only tab may be there"),
            Self::HeadTooLarge => ("head_too_large", "the head of the request is larger than is taken here (64 KiB)"),
            Self::TooManyFields => {
                ("too_many_fields", "the head of the request has more fields than are taken here (256)")
            }
            Self::HostMissing => ("host_missing", "a request of HTTP/1.1 needs a Host field"),
            Self::HostRepeated => ("host_repeated", "the request has more than one Host field"),
            Self::HostInvalid => ("host_invalid", "the Host field or the target names no valid host and port"),
            Self::HostDiffers => ("host_differs", "the Host field names another host or port than the request target"),
            Self::ContentLength => ("content_length", "Content-Length is not a number of at most 18 digits"),
            Self::ContentLengthRepeated => ("content_length_repeated", "Content-Length is given more than once"),
            Self::LengthAndEncoding => (
                "length_and_encoding",
                "the request has both Content-Length and Transfer-Encoding; only one can be right",
            ),
            Self::TransferEncoding => ("transfer_encoding", "Transfer-Encoding is not exactly one `chunked`"),
            Self::TransferEncodingUnknown => {
                ("transfer_encoding_unknown", "the only Transfer-Encoding that is known here is `chunked`")
            }
            Self::TransferEncodingVersion => {
                ("transfer_encoding_version", "HTTP/1.0 has no Transfer-Encoding; send Content-Length, or HTTP/1.1")
            }
            Self::Connection => ("connection", "the Connection fields are longer than 1 KiB"),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.line())
    }
}

impl std::error::Error for Refusal {}

/// Why a response cannot be passed on. Its connection is of no use afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum BadResponse {
    /// RFC 9112 §4.
    #[error("the answer does not begin with a status line of HTTP/1.1 or HTTP/1.0")]
    StatusLine,
    /// RFC 9112 §5.2: a proxy may answer 502.
    #[error("a line of the response's head continues the one before")]
    FoldedLine,
    /// RFC 9112 §5.1.
    #[error("a line of the response's head is not a name, a colon and a value")]
    FieldName,
    /// RFC 9110 §5.5.
    #[error("a field of the response has a control character in its value")]
    FieldValue,
    /// Larger than any leg takes.
    #[error("the head of the response is larger than is taken here (64 KiB)")]
    HeadTooLarge,
    /// More than any leg takes.
    #[error("the head of the response has more fields than are taken here (256)")]
    TooManyFields,
    /// RFC 9112 §6.3.
    #[error("Content-Length of the response is not one number of at most 18 digits")]
    ContentLength,
    /// RFC 9112 §6.3.
    #[error("the response gives two different lengths")]
    ContentLengthDiffers,
    /// RFC 9112 §6.1.
    #[error("Transfer-Encoding of the response is not exactly one `chunked`")]
    TransferEncoding,
    /// RFC 9112 §6.1.
    #[error("the response has a Transfer-Encoding, which HTTP/1.0 does not know")]
    TransferEncodingVersion,
    /// RFC 9110 §15.2.2: only when it was asked for.
    #[error("the response switches to another protocol, which the request did not ask for")]
    SwitchingProtocols,
    /// Another gateway found it so.
    #[error("another gateway could not read it")]
    Elsewhere,
    /// RFC 9110 §7.6.1.
    #[error("the Connection fields of the response are longer than 1 KiB")]
    Connection,
}

impl BadResponse {
    /// Bounded label for metrics.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::StatusLine => "status_line",
            Self::FoldedLine => "folded_line",
            Self::FieldName => "field_name",
            Self::FieldValue => "field_value",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyFields => "too_many_fields",
            Self::ContentLength => "content_length",
            Self::ContentLengthDiffers => "content_length_differs",
            Self::TransferEncoding => "transfer_encoding",
            Self::TransferEncodingVersion => "transfer_encoding_version",
            Self::SwitchingProtocols => "switching_protocols",
            Self::Elsewhere => "elsewhere",
            Self::Connection => "connection",
        }
    }
}
