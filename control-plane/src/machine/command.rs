//! What is written to the replicated log, and what applying it answers: both prost messages.
//!
//! Key bytes, nonces, serial numbers and times are made by the proposer and travel inside the command, so that every
//! member that applies it reaches the same state. Field numbers are part of the on-disk format: never reuse one.

use archipelago_proto::v1;
use prost::{Message, Oneof};

/// One entry of the replicated log.
#[derive(Clone, PartialEq, Message)]
pub struct Command {
    /// Names the request: the same id by the same actor commits once. Empty: no deduplication (the command is
    /// idempotent by its content).
    #[prost(string, tag = "1")]
    pub request_id: String,
    /// SPIFFE id of the caller, or `token:<id>` for a join.
    #[prost(string, tag = "2")]
    pub actor: String,
    /// Wall clock of the proposer, Unix milliseconds. The only time that apply may read.
    #[prost(int64, tag = "3")]
    pub proposed_unix_ms: i64,
    /// What to do.
    #[prost(oneof = "Action", tags = "10, 11, 12, 13, 14, 15, 16")]
    pub action: Option<Action>,
}

/// The kinds of command.
#[derive(Clone, PartialEq, Oneof)]
pub enum Action {
    /// Creates, updates and deletes resources, all or none.
    #[prost(message, tag = "10")]
    ApplyResources(ApplyResources),
    /// Replaces what a cluster's agent says about the services of its cluster.
    #[prost(message, tag = "11")]
    ReportExports(ReportExports),
    /// Records a gateway and where it can be reached.
    #[prost(message, tag = "12")]
    RegisterGateway(RegisterGateway),
    /// Installs the certificate authority; once.
    #[prost(message, tag = "13")]
    CaInit(CaInit),
    /// Records a join token by the hash of its secret.
    #[prost(message, tag = "14")]
    TokenCreate(TokenCreate),
    /// Uses a join token up.
    #[prost(message, tag = "15")]
    TokenConsume(TokenConsume),
    /// Adds issued certificates to the bounded audit list.
    #[prost(message, tag = "16")]
    RecordIssued(RecordIssued),
}

/// See [`Action::ApplyResources`].
#[derive(Clone, PartialEq, Message)]
pub struct ApplyResources {
    /// Resources to create or replace.
    #[prost(message, repeated, tag = "1")]
    pub upserts: Vec<ResourceText>,
    /// Resources to delete; naming one that does not exist refuses the command.
    #[prost(message, repeated, tag = "2")]
    pub deletes: Vec<v1::ResourceKey>,
}

/// One resource as canonical JSON.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceText {
    /// Canonical JSON of the whole resource; its key is inside.
    #[prost(string, tag = "1")]
    pub json: String,
}

/// See [`Action::ReportExports`].
#[derive(Clone, PartialEq, Message)]
pub struct ReportExports {
    /// The reporting cluster.
    #[prost(string, tag = "1")]
    pub cluster: String,
    /// Complete list. Endpoint counts are dropped: they are soft state.
    #[prost(message, repeated, tag = "2")]
    pub services: Vec<v1::ServiceReport>,
}

/// See [`Action::RegisterGateway`].
#[derive(Clone, PartialEq, Message)]
pub struct RegisterGateway {
    /// Cluster of the gateway.
    #[prost(string, tag = "1")]
    pub cluster: String,
    /// Name within the cluster.
    #[prost(string, tag = "2")]
    pub name: String,
    /// SPIFFE id it proved.
    #[prost(string, tag = "3")]
    pub spiffe_id: String,
    /// Where it listens.
    #[prost(message, optional, tag = "4")]
    pub addresses: Option<v1::GatewayAddresses>,
    /// Its worker count.
    #[prost(uint32, tag = "5")]
    pub workers: u32,
}

/// The certificate authority: certificates in the clear, keys sealed. See [`crate::ca`].
#[derive(Clone, PartialEq, Message)]
pub struct CaInit {
    /// Trust domain, without scheme.
    #[prost(string, tag = "1")]
    pub trust_domain: String,
    /// Root certificate, DER.
    #[prost(bytes = "vec", tag = "2")]
    pub root_der: Vec<u8>,
    /// Issuing certificate, DER, signed by the root.
    #[prost(bytes = "vec", tag = "3")]
    pub issuer_der: Vec<u8>,
    /// PKCS#8 of the root key under the data key.
    #[prost(message, optional, tag = "4")]
    pub root_key: Option<Sealed>,
    /// PKCS#8 of the issuing key under the data key.
    #[prost(message, optional, tag = "5")]
    pub issuer_key: Option<Sealed>,
    /// The data key, once per member, each under that member's seal key.
    #[prost(message, repeated, tag = "6")]
    pub data_keys: Vec<WrappedKey>,
}

/// An AES-256-GCM ciphertext with its nonce; the tag is its last 16 bytes.
#[derive(Clone, PartialEq, Message)]
pub struct Sealed {
    /// 12 bytes, never used twice under one key.
    #[prost(bytes = "vec", tag = "1")]
    pub nonce: Vec<u8>,
    /// Ciphertext and tag.
    #[prost(bytes = "vec", tag = "2")]
    pub ciphertext: Vec<u8>,
}

/// The data key under one member's seal key.
#[derive(Clone, PartialEq, Message)]
pub struct WrappedKey {
    /// Raft id of the member.
    #[prost(uint64, tag = "1")]
    pub member: u64,
    /// The data key.
    #[prost(message, optional, tag = "2")]
    pub key: Option<Sealed>,
}

/// See [`Action::TokenCreate`].
#[derive(Clone, PartialEq, Message)]
pub struct TokenCreate {
    /// SHA-256 of the secret, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub secret_sha256: Vec<u8>,
    /// Cluster the holder joins.
    #[prost(string, tag = "2")]
    pub cluster: String,
    /// What the holder becomes.
    #[prost(enumeration = "v1::JoinRole", tag = "3")]
    pub role: i32,
    /// Its name within the cluster.
    #[prost(string, tag = "4")]
    pub name: String,
    /// Life from the proposer's time on, milliseconds. Not an end: a retry would name another one.
    #[prost(int64, tag = "5")]
    pub ttl_ms: i64,
}

/// See [`Action::TokenConsume`].
#[derive(Clone, PartialEq, Message)]
pub struct TokenConsume {
    /// SHA-256 of the secret, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub secret_sha256: Vec<u8>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo) in the request: a retry may only be for the same key.
    #[prost(bytes = "vec", tag = "2")]
    pub public_key_sha256: Vec<u8>,
}

/// See [`Action::RecordIssued`].
#[derive(Clone, PartialEq, Message)]
pub struct RecordIssued {
    /// Oldest first.
    #[prost(message, repeated, tag = "1")]
    pub certificates: Vec<IssuedRecord>,
}

/// One issued certificate, for audit.
#[derive(Clone, PartialEq, Message)]
pub struct IssuedRecord {
    /// Serial number, big endian.
    #[prost(bytes = "vec", tag = "1")]
    pub serial: Vec<u8>,
    /// Identity in it.
    #[prost(string, tag = "2")]
    pub spiffe_id: String,
    /// SHA-256 of the public key.
    #[prost(bytes = "vec", tag = "3")]
    pub public_key_sha256: Vec<u8>,
    /// End of validity, Unix seconds.
    #[prost(int64, tag = "4")]
    pub not_after_unix: i64,
    /// Member that issued it.
    #[prost(uint64, tag = "5")]
    pub member: u64,
    /// When, Unix milliseconds.
    #[prost(int64, tag = "6")]
    pub issued_unix_ms: i64,
}

/// What applying a [`Command`] answers; the same bytes for every retry of one request id.
#[derive(Clone, PartialEq, Message)]
pub struct Outcome {
    /// Global revision after the command.
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// The answer proper.
    #[prost(oneof = "Answer", tags = "10, 11, 12, 13")]
    pub answer: Option<Answer>,
}

/// The kinds of [`Outcome`].
#[derive(Clone, PartialEq, Oneof)]
pub enum Answer {
    /// Resources changed, or were already as asked.
    #[prost(message, tag = "10")]
    Applied(Applied),
    /// Nothing to tell but that it is done.
    #[prost(message, tag = "11")]
    Done(Done),
    /// The token was good, and is now used.
    #[prost(message, tag = "12")]
    Consumed(Consumed),
    /// Nothing changed.
    #[prost(message, tag = "13")]
    Refused(Refused),
}

/// See [`Answer::Applied`].
#[derive(Clone, PartialEq, Message)]
pub struct Applied {
    /// One per named resource, in the order of the command: upserts, then deletes.
    #[prost(message, repeated, tag = "1")]
    pub changes: Vec<v1::Change>,
}

/// See [`Answer::Done`].
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Done {}

/// The identity a token stands for.
#[derive(Clone, PartialEq, Message)]
pub struct Consumed {
    /// Cluster of the token.
    #[prost(string, tag = "1")]
    pub cluster: String,
    /// Role of the token.
    #[prost(enumeration = "v1::JoinRole", tag = "2")]
    pub role: i32,
    /// Name of the token.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// See [`Answer::Refused`].
#[derive(Clone, PartialEq, Message)]
pub struct Refused {
    /// Why, for the caller's next step.
    #[prost(enumeration = "RefusalKind", tag = "1")]
    pub kind: i32,
    /// Complete sentences for the operator, several at once.
    #[prost(string, repeated, tag = "2")]
    pub reasons: Vec<String>,
}

/// Classes of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RefusalKind {
    /// The command cannot be understood.
    Malformed = 0,
    /// The resources would contradict each other.
    Inconsistent = 1,
    /// It names something that does not exist.
    NotFound = 2,
    /// It exists already, or the request id stood for something else.
    Conflict = 3,
    /// No token with this secret.
    TokenUnknown = 4,
    /// The token was used before.
    TokenUsed = 5,
    /// The token's time is over.
    TokenExpired = 6,
    /// A bound of the state machine is reached.
    Full = 7,
}

impl Outcome {
    /// A refusal with one reason.
    #[must_use]
    pub fn refused(revision: u64, kind: RefusalKind, reason: impl Into<String>) -> Self {
        Self { revision, answer: Some(Answer::Refused(Refused { kind: kind.into(), reasons: vec![reason.into()] })) }
    }
}
