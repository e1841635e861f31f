//! `wayside drain`: for a preStop hook. Takes the sidecar out of service and returns when its app is gone and nothing is
//! in flight, or when the time is up; exit 0 either way, 1 when the admin door does not answer.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Method};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::complain;
use crate::body::Body;

/// How often the sidecar is asked.
const ASK: Duration = Duration::from_millis(200);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Bytes of an answer.
const ANSWER_MAX: usize = 64 << 10;

/// What `wayside drain` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The sidecar's admin door
    #[arg(long, default_value = "127.0.0.1:4191")]
    admin: SocketAddr,
    /// How long to wait for the app
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Deserialize)]
struct Draining {
    app: String,
    in_flight: Vec<InFlight>,
}

#[derive(Deserialize)]
struct InFlight {
    calls: usize,
}

/// Drains.
pub fn run(args: &Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("wayside: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(drain(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!(
                "wayside: the admin door at {} does not answer: {error}",
                args.admin
            ));
            ExitCode::FAILURE
        }
    }
}

async fn drain(args: &Args) -> Result<(), String> {
    let deadline = Instant::now() + args.timeout;
    let mut state = ask(args.admin, Method::POST).await?;
    while Instant::now() < deadline {
        let quiet = state.in_flight.iter().all(|door| door.calls == 0);
        if state.app != "up" && quiet {
            return Ok(());
        }
        sleep(ASK).await;
        state = ask(args.admin, Method::GET).await?;
    }
    complain("the app still runs or calls are in flight; the time is up");
    Ok(())
}

async fn ask(admin: SocketAddr, method: Method) -> Result<Draining, String> {
    let asking = async {
        let stream = TcpStream::connect(admin)
            .await
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let mut request = http::Request::new(Body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = http::Uri::from_static("/drain");
        let host = HeaderValue::from_str(&admin.to_string()).map_err(|error| error.to_string())?;
        request.headers_mut().insert(HOST, host);
        let exchange = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| error.to_string())?;
            let body = Body::incoming(response.into_body()).read(ANSWER_MAX);
            let body = body.await.map_err(|error| error.to_string())?;
            serde_json::from_slice(&body).map_err(|error| error.to_string())
        };
        tokio::select! {
            answer = exchange => answer,
            Err(error) = connection => Err(error.to_string()),
        }
    };
    timeout(ANSWER, asking)
        .await
        .unwrap_or_else(|_| Err("it took too long".to_owned()))
}
