//! `cargo +nightly fuzz run body`: what must hold is in `tests/common/targets.rs`, which `cargo test` runs over `corpus/body`.
#![no_main]

#[path = "../../tests/common/targets.rs"]
#[allow(dead_code, reason = "each target uses a part")]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::body(bytes));
