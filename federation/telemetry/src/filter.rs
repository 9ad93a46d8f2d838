//! Which requests somebody looks at, in a small language: `service=shop/checkout status>=500`.
//!
//! [`Filter::parse`] reads it, with the place of what it does not understand; [`Filter::takes`] asks it about a request, whose facts the
//! caller knows. Operators' programs and members parse it to say what is wrong, gateways to run it: its text is what goes over the wire, and
//! [`Display`](fmt::Display) writes it so that it parses to the same again.
//!
//! ```text
//! filter  = { all "or" } all          all   = { one | "and" } one        one = "not" one | "(" filter ")" | test
//! test    = field operator value      value = word | '"' text '"', in which \" and \\ stand for themselves
//! ```

mod parse;
mod test;

#[cfg(test)]
mod golden;

use std::borrow::Cow;
use std::fmt;

pub use self::parse::FilterError;
use self::test::Test;

/// Which requests are meant; the default: all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(Option<Node>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// At least two.
    All(Vec<Node>),
    /// At least two.
    Any(Vec<Node>),
    Not(Box<Node>),
    Is(Field, Test),
}

/// What is known of a request under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact<'a> {
    /// It is not known, or there is none: equal to nothing, neither more nor less than anything.
    Unknown,
    /// A name, a path, an address.
    Text(Cow<'a, str>),
    /// A status, a count, or microseconds.
    Number(u64),
}

/// What can be asked of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// "namespace/name", with ":port" for other ports than the first; without a port all of them are meant.
    Service,
    /// The cluster at which it entered.
    Source,
    /// The cluster that served it, or was last tried.
    Destination,
    /// "cluster/name" of the gateway at which it entered.
    Gateway,
    /// "cluster/name" of the gateway behind the tunnel.
    Peer,
    /// Address of the endpoint.
    Endpoint,
    /// Its version, where it is in the cluster at which the request entered.
    Version,
    /// Name of the rule by which it was sent.
    Rule,
    /// SPIFFE id of the workload that sent it.
    Workload,
    /// Method.
    Method,
    /// Host that was asked for.
    Host,
    /// Path, without its query.
    Path,
    /// "HTTP/1.1" or "HTTP/2.0".
    Protocol,
    /// Status of the response.
    Status,
    /// Envoy's response flags, of which it may have several.
    Flags,
    /// Attempts made where it entered.
    Attempts,
    /// Microseconds from its head to the last byte of its response.
    Duration,
    /// Bytes of the request's body.
    Received,
    /// Bytes of the response's body.
    Sent,
    /// `x-request-id`.
    RequestId,
    /// The id in `traceparent`.
    TraceId,
}

impl Filter {
    /// Both hold.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let parts = |filter: Self| match filter.0 {
            None => Vec::new(),
            Some(Node::All(parts)) => parts,
            Some(node) => vec![node],
        };
        let mut all = parts(self);
        all.extend(parts(other));
        Self(match all.len() {
            0 => None,
            1 => all.pop(),
            _ => Some(Node::All(all)),
        })
    }

    /// Either holds.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(one), Some(other)) => Self(Some(Node::Any(vec![one, other]))),
            _ => Self::default(),
        }
    }

    /// The field has this value.
    ///
    /// # Errors
    /// The value is none for this field.
    pub fn equals(field: Field, value: &str) -> Result<Self, String> {
        Test::read(field, test::Operator::Equal, value).map(|test| Self(Some(Node::Is(field, test))))
    }

    /// Whether it takes a request of which `fact` tells what is known.
    pub fn takes<'a>(&self, fact: &impl Fn(Field) -> Fact<'a>) -> bool {
        self.0.as_ref().is_none_or(|node| node.takes(fact))
    }
}

impl Node {
    fn takes<'a>(&self, fact: &impl Fn(Field) -> Fact<'a>) -> bool {
        match self {
            Self::All(nodes) => nodes.iter().all(|node| node.takes(fact)),
            Self::Any(nodes) => nodes.iter().any(|node| node.takes(fact)),
            Self::Not(node) => !node.takes(fact),
            Self::Is(field, test) => test.takes(&fact(*field)),
        }
    }

    fn write(&self, inside: Inside, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, between) = match self {
            Self::Not(node) => {
                f.write_str("not ")?;
                return node.write(Inside::Not, f);
            }
            Self::Is(field, test) => return write!(f, "{}{test}", field.name()),
            Self::All(nodes) => (nodes, " "),
            Self::Any(nodes) => (nodes, " or "),
        };
        let needs_parentheses = match inside {
            Inside::Nothing => false,
            Inside::Any => matches!(self, Self::Any(_)),
            Inside::All | Inside::Not => true,
        };
        if needs_parentheses {
            f.write_str("(")?;
        }
        let inner = if matches!(self, Self::All(_)) { Inside::All } else { Inside::Any };
        for (index, node) in nodes.iter().enumerate() {
            if index > 0 {
                f.write_str(between)?;
            }
            node.write(inner, f)?;
        }
        if needs_parentheses { f.write_str(")") } else { Ok(()) }
    }
}

/// What is around a part that is written.
#[derive(Clone, Copy)]
enum Inside {
    Nothing,
    All,
    Any,
    Not,
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |node| node.write(Inside::Nothing, f))
    }
}

impl Field {
    /// All of them, with their names and what they are.
    pub const ALL: [(Self, &'static str, &'static str); 21] = [
        (Self::Service, "service", "namespace/name, of all its ports; with :port of one"),
        (Self::Source, "source", "cluster at which it entered"),
        (Self::Destination, "destination", "cluster that served it, or was last tried"),
        (Self::Gateway, "gateway", "cluster/name of the gateway at which it entered"),
        (Self::Peer, "peer", "cluster/name of the gateway behind the tunnel"),
        (Self::Endpoint, "endpoint", "address of the endpoint"),
        (Self::Version, "version", "of the endpoint, where that is in the cluster at which it entered"),
        (Self::Rule, "rule", "name of the rule by which it was sent"),
        (Self::Workload, "workload", "SPIFFE id of who sent it, as far as that is known"),
        (Self::Method, "method", "in any case"),
        (Self::Host, "host", "in any case"),
        (Self::Path, "path", "without its query"),
        (Self::Protocol, "protocol", "HTTP/1.1 or HTTP/2.0"),
        (Self::Status, "status", "a number, or a class such as 5xx"),
        (Self::Flags, "flags", "Envoy's response flags: = one of them is this"),
        (Self::Attempts, "attempts", "made where it entered"),
        (Self::Duration, "duration", "to the last byte of the response, with its unit: us, ms, s or m"),
        (Self::Received, "received", "bytes of the request's body"),
        (Self::Sent, "sent", "bytes of the response's body"),
        (Self::RequestId, "request-id", "x-request-id"),
        (Self::TraceId, "trace-id", "of traceparent"),
    ];

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(field, ..)| *field == self).map_or("", |(_, name, _)| name)
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(field, ..)| *field)
    }
}
