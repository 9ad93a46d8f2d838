//! `meshctl`: the command line of Archipelago.

use std::process::ExitCode;

/// Gateways run inside this binary too; per-request allocation is what mimalloc is best at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    archipelago_meshctl::run(std::env::args_os())
}
