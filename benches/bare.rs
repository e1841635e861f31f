//! What `benches/publish` holds the sidecar against: a hyper server that sends a call to Kafka by a `FutureProducer`, and
//! nothing else. No routing, no limits, no deadlines, no metrics, no timeline, one worker.
//!
//! `bare LISTEN BROKERS TOPIC [parse]`, with LISTEN as `127.0.0.1:PORT`; `HOSTNAME` goes into the record. The record is the
//! one that the sidecar sends for the same call: its headers are copied here by name and size, its id and trace are as
//! random. Its key is the text after the first `"key":"`, or with `parse` what serde_json makes of the body, as in a handler
//! that somebody would really write. `benches/publish` reads one record of each back and compares them.

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program that is measured, and ends if it can not start"
)]

use std::borrow::Cow;
use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rdkafka::ClientConfig;
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::AsyncRuntime;
use serde::Deserialize;
use tikv_jemallocator::Jemalloc;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::time::{Sleep, sleep};
use uuid::Uuid;

/// As in the sidecar.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// The sidecar's own, src/kafka/client.rs.
const PROPERTIES: &[(&str, &str)] = &[
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("compression.type", "lz4"),
    ("partitioner", "murmur2_random"),
    ("linger.ms", "1"),
    ("batch.num.messages", "10000"),
    ("queue.buffering.max.kbytes", "32768"),
    ("queue.buffering.max.messages", "50000"),
    ("message.max.bytes", "33554432"),
    ("message.timeout.ms", "30000"),
    ("statistics.interval.ms", "0"),
];

const BODY_MAX: usize = 1024 * 1024;

struct Bare {
    producer: FutureProducer<DefaultClientContext, Tokio>,
    topic: String,
    parse: bool,
    origin: String,
}

/// The part of a body that is looked at.
#[derive(Deserialize)]
struct Keyed<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
}

/// What rdkafka would bring itself with a feature that the sidecar does not need.
struct Tokio;

impl AsyncRuntime for Tokio {
    type Delay = Sleep;

    fn spawn<T: Future<Output = ()> + Send + 'static>(task: T) {
        Handle::current().spawn(task);
    }

    fn delay_for(duration: Duration) -> Sleep {
        sleep(duration)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (listen, brokers, topic, parse) = match &arguments[..] {
        [listen, brokers, topic] => (listen, brokers, topic, false),
        [listen, brokers, topic, word] if word == "parse" => (listen, brokers, topic, true),
        _ => {
            eprintln!("usage: bare LISTEN BROKERS TOPIC [parse]; see benches/publish");
            return ExitCode::from(2);
        }
    };
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    for (name, value) in PROPERTIES {
        config.set(*name, *value);
    }
    let bare = Arc::new(Bare {
        producer: config.create().unwrap(),
        topic: topic.clone(),
        parse,
        origin: format!("bench/{}", std::env::var("HOSTNAME").unwrap_or_default()),
    });
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(listen, bare))
}

async fn serve(listen: &str, bare: Arc<Bare>) -> ExitCode {
    let listener = TcpListener::bind(listen).await.unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let bare = Arc::clone(&bare);
        let service = service_fn(move |request| {
            let bare = Arc::clone(&bare);
            async move { Ok::<_, Infallible>(bare.publish(request).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        Handle::current().spawn(connection);
    }
    ExitCode::FAILURE
}

impl Bare {
    async fn publish(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = whole(body).await else {
            return answer(StatusCode::BAD_REQUEST, String::new());
        };
        let key = match self.parse {
            true => parsed(&body),
            false => found(&body),
        };
        let Some(key) = key else {
            return answer(StatusCode::BAD_REQUEST, String::new());
        };
        let id = Uuid::now_v7().hyphenated().to_string();
        let headers = self.headers(&id, head.uri.path(), &head.headers);
        let record = FutureRecord::to(&self.topic)
            .key(&*key)
            .payload(&body[..])
            .headers(headers);
        let Ok(delivery) = self.producer.send_result(record) else {
            return answer(StatusCode::SERVICE_UNAVAILABLE, String::new());
        };
        match delivery.await {
            Ok(Ok(_)) => answer(StatusCode::ACCEPTED, id),
            _ => answer(StatusCode::SERVICE_UNAVAILABLE, String::new()),
        }
    }

    fn headers(&self, id: &str, path: &str, call: &HeaderMap) -> OwnedHeaders {
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let trace = format!(
            "00-{:016x}{:016x}-{:016x}-00",
            fastrand::u64(..),
            fastrand::u64(..),
            fastrand::u64(..)
        );
        let text = |name| call.get(name).map_or(&b""[..], |value| value.as_bytes());
        let all: [(&str, &[u8]); 11] = [
            ("ce_specversion", b"1.0"),
            ("ce_id", id.as_bytes()),
            ("ce_source", b"wayside://bench"),
            ("ce_type", b"wayside.call"),
            ("ce_time", time.as_bytes()),
            ("wayside-method", b"POST"),
            ("wayside-target", path.as_bytes()),
            ("wayside-origin", self.origin.as_bytes()),
            ("wayside-host", text(HOST)),
            ("content-type", text(CONTENT_TYPE)),
            ("traceparent", trace.as_bytes()),
        ];
        let mut headers = OwnedHeaders::new_with_capacity(all.len());
        for (key, value) in all {
            headers = headers.insert(Header {
                key,
                value: Some(value),
            });
        }
        headers
    }
}

/// The body in one piece: without a copy if it came in one, as that of 1 KiB does.
async fn whole(body: Incoming) -> Result<Bytes, ()> {
    let mut body = Limited::new(body, BODY_MAX);
    let mut whole = Bytes::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(drop)?.into_data() else {
            continue;
        };
        whole = match whole.is_empty() {
            true => data,
            false => [whole, data].concat().into(),
        };
    }
    Ok(whole)
}

fn parsed(body: &[u8]) -> Option<Cow<'_, [u8]>> {
    let body: Keyed<'_> = serde_json::from_slice(body).ok()?;
    Some(match body.key {
        Cow::Borrowed(key) => Cow::Borrowed(key.as_bytes()),
        Cow::Owned(key) => Cow::Owned(key.into_bytes()),
    })
}

/// What stands between the quotes after the first `"key":"`.
fn found(body: &[u8]) -> Option<Cow<'_, [u8]>> {
    const MARK: &[u8] = b"\"key\":\"";
    let from = MARK.len() + body.windows(MARK.len()).position(|window| window == MARK)?;
    let rest = &body[from..];
    let end = rest.iter().position(|byte| *byte == b'"')?;
    Some(Cow::Borrowed(&rest[..end]))
}

fn answer(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}
