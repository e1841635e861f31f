//! How many allocations a forwarded call costs, counted, so that no change adds one unseen.
//!
//! The app and the caller here are threads with fixed buffers that allocate nothing, so every allocation of the process
//! is the sidecar's.

#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking and tells what it saw"
)]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use wayside::app::{Sidecar, Surroundings};
use wayside::config;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: usize = 2_000;
/// A GET of eight headers with a 1 KiB answer. A change that needs more must say why, here. Two are the values of
/// `Wayside-Timeout`, which tells the next hop its deadline, and of `Server-Timing`.
const ALLOCATIONS_MAX: usize = 21;
/// Two read buffers of hyper's, 8 KiB each, are among them.
const BYTES_MAX: usize = 24 << 10;

#[test]
fn a_forwarded_call_costs_a_counted_handful_of_allocations() {
    let app = app();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let sidecar = start(app).await;
        let outbound = sidecar.addresses.outbound.expect("an outbound door");
        // The runtime goes on accepting while the caller's thread counts.
        tokio::task::spawn_blocking(move || count(outbound))
            .await
            .expect("counted");
    });
}

fn count(outbound: SocketAddr) {
    let mut caller = TcpStream::connect(outbound).expect("the door is open");
    for _ in 0..CALLS {
        call(&mut caller);
    }
    let region = Region::new(ALLOCATOR);
    for _ in 0..CALLS {
        call(&mut caller);
    }
    let counted = region.change();
    let (each, bytes) = (counted.allocations / CALLS, counted.bytes_allocated / CALLS);
    let again = counted.reallocations / CALLS;
    println!("{each} allocations, {again} reallocations and {bytes} bytes a forwarded call");
    assert!(
        each + again <= ALLOCATIONS_MAX,
        "{each} allocations and {again} reallocations a call"
    );
    assert!(bytes <= BYTES_MAX, "{bytes} bytes a call");
    let kept = counted.bytes_allocated as isize - counted.bytes_deallocated as isize;
    // A histogram holds one sample of 16 bytes a call until its next upkeep.
    assert!(
        kept.unsigned_abs() < CALLS * 32,
        "{kept} bytes are still held after {CALLS} calls"
    );
}

async fn start(app: SocketAddr) -> Sidecar {
    let yaml = format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes: [{{ name: all, forward: {{ to: billing }} }}]
services: {{ billing: {{ addresses: ['{app}'] }} }}
admin: {{ listen: 127.0.0.1:0 }}
"
    );
    let loaded =
        config::compile("allocations.yaml", &yaml, &|_| None).expect("a good configuration");
    let surroundings = Surroundings {
        workers: Some(1),
        ..Surroundings::default()
    };
    Sidecar::start(loaded.config, surroundings)
        .await
        .expect("it starts")
}

const REQUEST: &[u8] = b"GET /invoices/7?x=1 HTTP/1.1\r\nhost: billing\r\nuser-agent: test\r\naccept: */*\r\n\
accept-encoding: gzip\r\nx-request-id: 0123456789abcdef\r\ncache-control: no-cache\r\n\
authorization: Bearer abc\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n";

/// One call; reads until the answer's body is complete.
fn call(caller: &mut TcpStream) {
    caller.write_all(REQUEST).expect("the sidecar reads");
    let mut buffer = [0; 4096];
    let (mut filled, mut end) = (0, None);
    while end.is_none_or(|end| filled < end) {
        let read = caller
            .read(&mut buffer[filled..])
            .expect("the sidecar answers");
        assert!(read > 0, "the sidecar closed the connection");
        filled += read;
        end = end.or_else(|| head_end(&buffer[..filled]).map(|end| end + BODY));
    }
    assert!(buffer.starts_with(b"HTTP/1.1 200"), "the call failed");
}

const BODY: usize = 1024;

fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || answer(&mut stream));
        }
    });
    address
}

fn answer(stream: &mut TcpStream) {
    let mut response = [b'x'; 63 + BODY];
    response[..63].copy_from_slice(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/a\r\ncontent-length: 1024\r\n\r\n"
            .first_chunk::<63>()
            .expect("63 bytes"),
    );
    let mut buffer = [0; 4096];
    let mut filled = 0;
    while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]) {
        filled += read;
        if head_end(&buffer[..filled]).is_some() {
            filled = 0;
            stream.write_all(&response).expect("the sidecar reads");
        }
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}
