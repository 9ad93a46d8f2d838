//! SPIFFE identities: ids, credentials on disk, mutual TLS for gRPC and QUIC, enrolment and renewal.
