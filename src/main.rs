//! The `wayside` program.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// A busy proxy frees on one thread what another allocated; jemalloc measured 0.5 to 1.4 µs of CPU less a call than the
/// system's allocator.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    wayside::cli::main()
}
