//! What things cost on this machine, measured once at the start: some ten milliseconds of CPU.

use std::convert::Infallible;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};

use crate::body::Body;
use crate::lifecycle::cpu::of_thread;

/// Bytes that are carried to see what one costs, and at a time.
const CARRIED: usize = 8 << 20;
const AT_ONCE: usize = 64 << 10;
/// Requests that are made to see what one costs.
const REQUESTS: u32 = 200;

/// What was measured, in nanoseconds of CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// A byte on a hop through the broker: compressed or the reverse, checked, sent and received.
    pub byte_ns: f64,
    /// A byte on a hop of HTTP: sent and received.
    pub http_byte_ns: f64,
    /// A request and its answer, on both sides.
    pub exchange_ns: f64,
}

/// Measures; blocks.
///
/// # Errors
/// There is no loopback.
pub fn measure() -> io::Result<Measured> {
    let http_byte_ns = carried()?;
    let packed = packed()?;
    Ok(Measured {
        // One of the two ends of a hop packs, or unpacks; the other is the broker, which passes on what it gets.
        byte_ns: http_byte_ns + packed / 2.0,
        http_byte_ns,
        exchange_ns: exchanged()?,
    })
}

/// Text as orders have it: half of it is hard to compress.
fn sample() -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut text = String::with_capacity(AT_ONCE + 64);
    while text.len() < AT_ONCE {
        let (sku, count) = (rng.u64(..), rng.u8(1..9));
        text.push_str(&format!(
            "{{\"sku\":\"{sku:016x}\",\"count\":{count},\"price\":12.50}},"
        ));
    }
    text.truncate(AT_ONCE);
    text.into_bytes()
}

/// What a byte costs that is written, sent over loopback, read and checked on both sides.
fn carried() -> io::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut to = TcpStream::connect(listener.local_addr()?)?;
    let (mut from, _) = listener.accept()?;
    to.set_write_timeout(Some(Duration::from_secs(1)))?;
    from.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (sent, mut got) = (sample(), vec![0; AT_ONCE]);
    let before = of_thread();
    let mut checks = 0;
    for _ in 0..CARRIED / AT_ONCE {
        checks ^= crc32c::crc32c(&sent);
        to.write_all(&sent)?;
        from.read_exact(&mut got)?;
        checks ^= crc32c::crc32c(&got);
    }
    let used = of_thread().saturating_sub(before);
    match checks {
        0 => Ok(used.as_nanos() as f64 / CARRIED as f64),
        _ => Err(io::Error::other("loopback changed a byte")),
    }
}

/// What a byte costs that is packed by LZ4 and unpacked again, as records are by default.
fn packed() -> io::Result<f64> {
    let text = sample();
    let before = of_thread();
    for _ in 0..CARRIED / AT_ONCE / 4 {
        let small = lz4_flex::block::compress(&text);
        let back = lz4_flex::block::decompress(&small, text.len()).map_err(io::Error::other)?;
        if back != text {
            return Err(io::Error::other("LZ4 changed a byte"));
        }
    }
    let used = of_thread().saturating_sub(before);
    Ok(used.as_nanos() as f64 / (CARRIED / 4) as f64)
}

/// What a request costs and its answer, by the client and the server of this process.
fn exchanged() -> io::Result<f64> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let stream = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
        stream.set_nodelay(true)?;
        let (accepted, _) = listener.accept().await?;
        accepted.set_nodelay(true)?;
        let service = service_fn(|_| async {
            let answer = Response::new(Body::full(Bytes::from_static(&[b'x'; 1024])));
            Ok::<_, Infallible>(answer)
        });
        let serving = server::Builder::new().serve_connection(TokioIo::new(accepted), service);
        let serving = spawn_local(async move { drop(serving.await) });
        let (mut sending, connection) = client::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let asking = spawn_local(async move { drop(connection.await) });
        let mut before = Duration::ZERO;
        for request in 0..2 * REQUESTS {
            if request == REQUESTS {
                before = of_thread();
            }
            sending.ready().await.map_err(io::Error::other)?;
            let ask = Request::get("/.wayside/claims/x").header("host", "orders");
            let ask = ask.body(Body::empty()).map_err(io::Error::other)?;
            let answer = sending.send_request(ask).await.map_err(io::Error::other)?;
            let body = Body::incoming(answer.into_body()).read(4096).await;
            body.map_err(io::Error::other)?;
        }
        let used = of_thread().saturating_sub(before);
        serving.abort();
        asking.abort();
        Ok(used.as_nanos() as f64 / f64::from(REQUESTS))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_measured_costs_something() {
        let Measured {
            byte_ns,
            http_byte_ns,
            exchange_ns,
        } = measure().unwrap();
        assert!((0.01..1_000.0).contains(&http_byte_ns), "{http_byte_ns} ns");
        assert!((http_byte_ns..10_000.0).contains(&byte_ns), "{byte_ns} ns");
        assert!((100.0..1e8).contains(&exchange_ns), "{exchange_ns} ns");
    }
}
