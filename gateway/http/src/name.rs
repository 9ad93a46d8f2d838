//! Field names: those that a gateway acts on or meets often are one byte.

use std::fmt;

/// The name of a field, as [`Fields`](crate::Fields) hands it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// One of the table.
    Known(Known),
    /// Any other token, in the case in which it came.
    Other(&'a [u8]),
}

impl<'a> Name<'a> {
    /// The bytes, in lower case for known names.
    pub fn as_bytes(self) -> &'a [u8] {
        match self {
            Self::Known(known) => known.as_str().as_bytes(),
            Self::Other(name) => name,
        }
    }
}

macro_rules! known {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// A field name of the table; its discriminant is its place there.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Known { $($(#[$doc])* $variant,)* }

        impl Known {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in lower case.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        const NAMES: [&[u8]; Known::ALL.len()] = [$($text.as_bytes(),)*];
    };
}

known! {
    /// `host`
    Host = "host",
    /// `connection`
    Connection = "connection",
    /// `transfer-encoding`
    TransferEncoding = "transfer-encoding",
    /// `content-length`
    ContentLength = "content-length",
    /// `keep-alive`
    KeepAlive = "keep-alive",
    /// `proxy-connection`
    ProxyConnection = "proxy-connection",
    /// `te`
    Te = "te",
    /// `trailer`
    Trailer = "trailer",
    /// `upgrade`
    Upgrade = "upgrade",
    /// `http2-settings`
    Http2Settings = "http2-settings",
    /// `expect`
    Expect = "expect",
    /// `date`
    Date = "date",
    /// `server`
    Server = "server",
    /// `via`
    Via = "via",
    /// `max-forwards`
    MaxForwards = "max-forwards",
    /// `cookie`
    Cookie = "cookie",
    /// `set-cookie`
    SetCookie = "set-cookie",
    /// `authorization`
    Authorization = "authorization",
    /// `www-authenticate`
    WwwAuthenticate = "www-authenticate",
    /// `proxy-authenticate`
    ProxyAuthenticate = "proxy-authenticate",
    /// `proxy-authorization`
    ProxyAuthorization = "proxy-authorization",
    /// `accept`
    Accept = "accept",
    /// `accept-charset`
    AcceptCharset = "accept-charset",
    /// `accept-encoding`
    AcceptEncoding = "accept-encoding",
    /// `accept-language`
    AcceptLanguage = "accept-language",
    /// `accept-ranges`
    AcceptRanges = "accept-ranges",
    /// `user-agent`
    UserAgent = "user-agent",
    /// `referer`
    Referer = "referer",
    /// `origin`
    Origin = "origin",
    /// `from`
    From = "from",
    /// `dnt`
    Dnt = "dnt",
    /// `priority`
    Priority = "priority",
    /// `upgrade-insecure-requests`
    UpgradeInsecureRequests = "upgrade-insecure-requests",
    /// `sec-fetch-dest`
    SecFetchDest = "sec-fetch-dest",
    /// `sec-fetch-mode`
    SecFetchMode = "sec-fetch-mode",
    /// `sec-fetch-site`
    SecFetchSite = "sec-fetch-site",
    /// `sec-fetch-user`
    SecFetchUser = "sec-fetch-user",
    /// `sec-ch-ua`
    SecChUa = "sec-ch-ua",
    /// `sec-ch-ua-mobile`
    SecChUaMobile = "sec-ch-ua-mobile",
    /// `sec-ch-ua-platform`
    SecChUaPlatform = "sec-ch-ua-platform",
    /// `sec-websocket-key`
    SecWebSocketKey = "sec-websocket-key",
    /// `sec-websocket-version`
    SecWebSocketVersion = "sec-websocket-version",
    /// `sec-websocket-protocol`
    SecWebSocketProtocol = "sec-websocket-protocol",
    /// `sec-websocket-extensions`
    SecWebSocketExtensions = "sec-websocket-extensions",
    /// `sec-websocket-accept`
    SecWebSocketAccept = "sec-websocket-accept",
    /// `range`
    Range = "range",
    /// `if-range`
    IfRange = "if-range",
    /// `if-match`
    IfMatch = "if-match",
    /// `if-none-match`
    IfNoneMatch = "if-none-match",
    /// `if-modified-since`
    IfModifiedSince = "if-modified-since",
    /// `if-unmodified-since`
    IfUnmodifiedSince = "if-unmodified-since",
    /// `cache-control`
    CacheControl = "cache-control",
    /// `pragma`
    Pragma = "pragma",
    /// `age`
    Age = "age",
    /// `expires`
    Expires = "expires",
    /// `etag`
    Etag = "etag",
    /// `last-modified`
    LastModified = "last-modified",
    /// `vary`
    Vary = "vary",
    /// `allow`
    Allow = "allow",
    /// `location`
    Location = "location",
    /// `link`
    Link = "link",
    /// `retry-after`
    RetryAfter = "retry-after",
    /// `content-type`
    ContentType = "content-type",
    /// `content-encoding`
    ContentEncoding = "content-encoding",
    /// `content-language`
    ContentLanguage = "content-language",
    /// `content-location`
    ContentLocation = "content-location",
    /// `content-range`
    ContentRange = "content-range",
    /// `content-disposition`
    ContentDisposition = "content-disposition",
    /// `content-security-policy`
    ContentSecurityPolicy = "content-security-policy",
    /// `strict-transport-security`
    StrictTransportSecurity = "strict-transport-security",
    /// `x-content-type-options`
    XContentTypeOptions = "x-content-type-options",
    /// `x-frame-options`
    XFrameOptions = "x-frame-options",
    /// `access-control-allow-origin`
    AccessControlAllowOrigin = "access-control-allow-origin",
    /// `alt-svc`
    AltSvc = "alt-svc",
    /// `forwarded`
    Forwarded = "forwarded",
    /// `x-forwarded-for`
    XForwardedFor = "x-forwarded-for",
    /// `x-forwarded-host`
    XForwardedHost = "x-forwarded-host",
    /// `x-forwarded-port`
    XForwardedPort = "x-forwarded-port",
    /// `x-forwarded-proto`
    XForwardedProto = "x-forwarded-proto",
    /// `x-forwarded-client-cert`
    XForwardedClientCert = "x-forwarded-client-cert",
    /// `x-real-ip`
    XRealIp = "x-real-ip",
    /// `x-request-id`
    XRequestId = "x-request-id",
    /// `x-requested-with`
    XRequestedWith = "x-requested-with",
    /// `x-api-key`
    XApiKey = "x-api-key",
    /// `traceparent`
    Traceparent = "traceparent",
    /// `tracestate`
    Tracestate = "tracestate",
    /// `baggage`
    Baggage = "baggage",
    /// `b3`
    B3 = "b3",
    /// `x-b3-traceid`
    XB3Traceid = "x-b3-traceid",
    /// `x-b3-spanid`
    XB3Spanid = "x-b3-spanid",
    /// `x-b3-sampled`
    XB3Sampled = "x-b3-sampled",
    /// `grpc-timeout`
    GrpcTimeout = "grpc-timeout",
    /// `grpc-status`
    GrpcStatus = "grpc-status",
    /// `grpc-message`
    GrpcMessage = "grpc-message",
    /// `grpc-encoding`
    GrpcEncoding = "grpc-encoding",
    /// `grpc-accept-encoding`
    GrpcAcceptEncoding = "grpc-accept-encoding",
    /// `mesh-source`
    MeshSource = "mesh-source",
    /// `mesh-cluster`
    MeshCluster = "mesh-cluster",
    /// `mesh-attempt`
    MeshAttempt = "mesh-attempt",
    /// `mesh-sends`
    MeshSends = "mesh-sends",
    /// `mesh-hop`
    MeshHop = "mesh-hop",
    /// `mesh-deadline-ms`
    MeshDeadlineMs = "mesh-deadline-ms",
    /// `mesh-service`
    MeshService = "mesh-service",
    /// `mesh-port`
    MeshPort = "mesh-port",
    /// `mesh-version`
    MeshVersion = "mesh-version",
    /// `mesh-failure`
    MeshFailure = "mesh-failure",
    /// `mesh-served-by`
    MeshServedBy = "mesh-served-by",
    /// `mesh-ledger`
    MeshLedger = "mesh-ledger",
}

impl Known {
    /// The known name that `name` is, in whatever case.
    #[inline]
    pub fn of(name: &[u8]) -> Option<Self> {
        let known = Self::ALL.get(usize::from(*SLOTS.get(slot(name)?)?))?;
        same(known.as_str().as_bytes(), name).then_some(*known)
    }

    /// True for what the writers of HTTP/1.1 write themselves, from what a message is: the first names of the table.
    pub(crate) const fn is_written_by_framing(id: u8, with_length: bool) -> bool {
        id < Self::ContentLength as u8 || with_length && id == Self::ContentLength as u8
    }

    pub(crate) fn from_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    pub(crate) const fn bit(self) -> u128 {
        1 << self as u8
    }

    /// True for what only gateways may say: `mesh-*`, and the identity of a caller as backends are told it.
    pub const fn is_mesh(self) -> bool {
        MESH & self.bit() != 0
    }

    /// True for what concerns one connection only (RFC 9110 §7.6.1), whether or not `Connection` names it.
    ///
    /// `Trailer` is none: it announces fields of the message, which an intermediary passes on (RFC 9110 §6.6.2).
    pub const fn is_hop_by_hop(self) -> bool {
        HOP_BY_HOP & self.bit() != 0
    }

    /// True for what `Connection` cannot make hop-by-hop: a sender that could take these away from behind a gateway's back would
    /// change where a message goes, where it ends, or who it says it is from.
    pub const fn is_end_to_end(self) -> bool {
        END_TO_END & self.bit() != 0
    }
}

impl Known {
    /// True for what may be in trailers (RFC 9110 §6.5.1): nothing that says where a message goes, how long it is, how it is read, or who
    /// sent it. A recipient that merges trailers into its header fields would believe it.
    pub const fn may_trail(self) -> bool {
        (HOP_BY_HOP | END_TO_END | NEVER_IN_TRAILERS) & self.bit() == 0
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// True when `name` is `known` in whatever case. `known` has lower-case letters, digits and hyphens only, so a byte with 0x40 is a letter,
/// and the bit in which the cases of a letter differ may differ exactly there.
#[inline]
fn same(known: &[u8], name: &[u8]) -> bool {
    let same_word = |known: &[u8; 8], name: &[u8; 8]| {
        let (known, name) = (u64::from_le_bytes(*known), u64::from_le_bytes(*name));
        (known ^ name) & !((known & LETTERS) >> 1) == 0
    };
    if known.len() != name.len() {
        return false;
    }
    match (known.last_chunk(), name.last_chunk()) {
        (Some(known_end), Some(name_end)) => {
            let mut words = known.as_chunks().0.iter().zip(name.as_chunks().0);
            words.all(|(known, name)| same_word(known, name)) && same_word(known_end, name_end)
        }
        _ => known.iter().zip(name).all(|(known, name)| (known ^ name) & !((known & 0x40) >> 1) == 0),
    }
}

const LETTERS: u64 = u64::MAX / 255 * 0x40;

/// True for names that only gateways may say.
///
/// CGI, WSGI and their kin show `mesh_source` to an application under the name of `mesh-source`: an underscore counts as a hyphen.
pub(crate) fn is_mesh(name: &[u8]) -> bool {
    let dashed = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    let begins = |with: &[u8]| name.len() >= with.len() && name.iter().map(dashed).zip(with).all(|(a, b)| a == *b);
    begins(b"mesh-") || name.len() == XFCC.len() && begins(XFCC)
}

const XFCC: &[u8] = Known::XForwardedClientCert.as_str().as_bytes();

const fn mask(names: &[Known]) -> u128 {
    let (mut mask, mut at) = (0, 0);
    while at < names.len() {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, bounded by the loop")]
        let known = names[at];
        mask |= known.bit();
        at += 1;
    }
    mask
}

pub(crate) const HOP_BY_HOP: u128 = mask(&[
    Known::Connection,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::TransferEncoding,
    Known::Te,
    Known::Upgrade,
    Known::Http2Settings,
]);

/// In a set of names: one that only gateways may say and that is not in the table.
pub(crate) const OTHER_MESH: u128 = 1 << 127;

pub(crate) const MESH: u128 = mask(&[
    Known::XForwardedClientCert,
    Known::MeshSource,
    Known::MeshCluster,
    Known::MeshAttempt,
    Known::MeshSends,
    Known::MeshHop,
    Known::MeshDeadlineMs,
    Known::MeshService,
    Known::MeshPort,
    Known::MeshVersion,
    Known::MeshFailure,
    Known::MeshServedBy,
    Known::MeshLedger,
]);

const END_TO_END: u128 = MESH
    | mask(&[
        Known::Host,
        Known::ContentLength,
        Known::Forwarded,
        Known::XForwardedFor,
        Known::XForwardedHost,
        Known::XForwardedPort,
        Known::XForwardedProto,
        Known::XRequestId,
        Known::Traceparent,
        Known::Tracestate,
        Known::GrpcTimeout,
        Known::Via,
    ]);

const NEVER_IN_TRAILERS: u128 = mask(&[
    Known::Trailer,
    Known::Expect,
    Known::MaxForwards,
    Known::Authorization,
    Known::ProxyAuthorization,
    Known::ProxyAuthenticate,
    Known::WwwAuthenticate,
    Known::Cookie,
    Known::SetCookie,
    Known::ContentType,
    Known::ContentEncoding,
    Known::ContentRange,
    Known::CacheControl,
    Known::Range,
    Known::XRealIp,
]);

/// Where a name is in [`SLOTS`] if it is known: a hash that is perfect over the table, of the length and three letters.
#[inline]
const fn slot(name: &[u8]) -> Option<usize> {
    let length = name.len();
    if length == 0 {
        return None;
    }
    #[expect(clippy::indexing_slicing, reason = "0, length - 1 and length * 3 / 4 are below a length that is not 0")]
    let (first, last, inner) = (name[0] | 0x20, name[length - 1] | 0x20, name[length * 3 / 4] | 0x20);
    let [a, b, c, d] = FACTORS;
    Some((length.wrapping_mul(a) + first as usize * b + last as usize * c + inner as usize * d) & (SLOTS.len() - 1))
}

/// Found by trial; [`slots`] stops the build when a new name makes two of them meet, and other odd numbers below 1,024 must be tried.
const FACTORS: [usize; 4] = [483, 846, 587, 703];

static SLOTS: [u8; 1024] = slots();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler: an index out of bounds is a build that fails")]
const fn slots() -> [u8; 1024] {
    assert!(NAMES.len() <= 127, "a set of known names is 127 bits, and one for unknown names of gateways");
    let mut slots = [u8::MAX; 1024];
    let mut at = 0;
    while at < NAMES.len() {
        let Some(slot) = slot(NAMES[at]) else { panic!("an empty name") };
        assert!(slots[slot] == u8::MAX, "two known names meet in one slot: choose other FACTORS");
        slots[slot] = at as u8;
        at += 1;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case_and_nothing_else_is() {
        for known in Known::ALL {
            let name = known.as_str();
            assert_eq!(Known::of(name.as_bytes()), Some(*known));
            assert_eq!(Known::of(name.to_ascii_uppercase().as_bytes()), Some(*known));
            assert_eq!(Known::from_id(*known as u8), Some(*known));
            for at in 0..name.len() {
                for byte in 0..=u8::MAX {
                    let mut other = name.as_bytes().to_vec();
                    other[at] = byte;
                    let same = byte.eq_ignore_ascii_case(&name.as_bytes()[at]);
                    if same {
                        assert_eq!(Known::of(&other), Some(*known), "{other:?}");
                    } else {
                        assert_ne!(Known::of(&other), Some(*known), "{other:?}");
                    }
                }
            }
            assert_ne!(Known::of(format!("{name}x").as_bytes()), Some(*known));
            assert_ne!(Known::of(&name.as_bytes()[1..]), Some(*known));
        }
        assert_eq!(Known::of(b""), None);
        assert_eq!(Known::from_id(u8::MAX), None);
    }

    #[test]
    fn what_gateways_say() {
        for name in [
            "mesh-source",
            "Mesh-Hop",
            "mesh_anything",
            "MESH_HOP",
            "x_forwarded_client-cert",
            "X-Forwarded-Client-Cert",
        ] {
            assert!(is_mesh(name.as_bytes()), "{name}");
        }
        for name in ["meshes", "mesh", "x-forwarded-client", "x-forwarded-client-certs", ""] {
            assert!(!is_mesh(name.as_bytes()), "{name}");
        }
        for known in Known::ALL {
            assert_eq!(known.is_mesh(), is_mesh(known.as_str().as_bytes()), "{known}");
            assert!(!(known.is_hop_by_hop() && known.is_end_to_end()), "{known}");
        }
    }
}
