//! gRPC's own interoperability tests: Google's client and server in Go, with two sidecars and mutual TLS between them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::certificates;
use crate::sidecar::Sidecar;
use crate::support::app::App;
use crate::support::eventually::eventually;
use crate::support::process::Process;
use crate::tools;

/// Every case of the client that needs no credentials of a cloud. Left out are `compute_engine_creds`,
/// `service_account_creds`, `jwt_token_creds`, `per_rpc_creds`, `oauth2_auth_token`, `google_default_credentials` and
/// `compute_engine_channel_credentials`.
const CASES: [&str; 18] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "orca_per_rpc",
    "orca_oob",
    "rpc_soak",
    "channel_soak",
];

/// The case that this server fails by itself: it never tells its id, which is all that the case looks at.
const NOT_BY_THIS_SERVER: &str = "pick_first_unary";

/// What the two ORCA cases want of the client, so that it listens to the server's load reports.
const LOAD_REPORTS: &str = r#"{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}"#;

/// The interop server and the two sidecars on the way to it.
struct Line {
    server: Process,
    address: SocketAddr,
    near: Sidecar,
    far: Sidecar,
    _folder: TempDir,
}

impl Line {
    /// Lays the line to Google's interop server.
    async fn to_interop(programs: &Path) -> Self {
        let address = App::nowhere();
        let mut command = Command::new(programs.join("interop-server"));
        command.args(["-port", &address.port().to_string()]);
        Self::to(command, async |_: &Process| Some(address)).await
    }

    /// Lays the line to `streams`, which ends each of its connections after `age`; `0s` for never.
    async fn to_streams(programs: &Path, age: &str) -> Self {
        let mut command = Command::new(programs.join("streams"));
        command.args(["-age", age]);
        let said = async |server: &Process| server.stdout().lines().next()?.parse().ok();
        Self::to(command, said).await
    }

    async fn to(mut command: Command, said: impl AsyncFn(&Process) -> Option<SocketAddr>) -> Self {
        let folder = TempDir::with_prefix("wayside-grpc-").expect("a folder can be made");
        let mut server = Process::start("grpc-server", &mut command, folder.path());
        let address = eventually("the server listens", Duration::from_secs(30), async || {
            assert!(server.ended().is_none(), "{}", server.stderr());
            let address = said(&server).await?;
            TcpStream::connect(address).await.ok().map(|_| address)
        })
        .await;
        certificates::write(folder.path());
        let tls = certificates::yaml(folder.path());
        let far = Sidecar::run(&format!(
            "service: server\napp: {address}\ninbound: {{ listen: 127.0.0.1:0, tls: mesh }}\n{tls}\n"
        ))
        .await;
        let near = near(far.inbound.expect("the file has an inbound door"), &tls).await;
        Self {
            server,
            address,
            near,
            far,
            _folder: folder,
        }
    }
}

async fn near(far: SocketAddr, tls: &str) -> Sidecar {
    Sidecar::run(&format!(
        "
service: client
outbound:
  listen: 127.0.0.1:0
  routes: [{{ name: all, forward: {{ to: server, timeout: none, timeouts: {{ idle: none }} }} }}]
services: {{ server: {{ addresses: [\"{far}\"], tls: mesh, identity: {} }} }}
{tls}
",
        certificates::NAME
    ))
    .await
}

/// Runs one case and gives what the client said if it failed.
async fn fails(programs: &Path, case: &str, door: SocketAddr) -> Option<String> {
    let mut command = Command::new(programs.join("interop-client"));
    command.args(["-server_host", "127.0.0.1", "-test_case", case]);
    command.args(["-server_port", &door.port().to_string()]);
    command.args(["-soak_iterations", "100", "-soak_num_threads", "4"]);
    command.args(["-soak_overall_timeout_seconds", "60"]);
    if case.starts_with("orca_") {
        command.args(["-service_config_json", LOAD_REPORTS]);
    }
    command.env("GRPC_GO_LOG_SEVERITY_LEVEL", "info");
    let output = tools::run(command, Duration::from_secs(120)).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then(|| {
        let lines: Vec<_> = said.lines().collect();
        let tail = &lines[lines.len().saturating_sub(12)..];
        format!("{case}: {}\n{}", output.status, tail.join("\n"))
    })
}

#[tokio::test]
async fn every_interop_case_without_cloud_credentials_passes_through_two_sidecars() {
    let Some(programs) = tools::go().await else {
        return;
    };
    let mut line = Line::to_interop(programs).await;
    let mut failures = Vec::new();
    for case in CASES {
        failures.extend(fails(programs, case, line.near.door()).await);
    }
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        CASES.len(),
        failures.join("\n\n")
    );
    let alone = fails(programs, NOT_BY_THIS_SERVER, line.address).await;
    assert!(
        alone.is_some(),
        "{NOT_BY_THIS_SERVER} can be among the cases now"
    );
    assert!(line.server.ended().is_none(), "the server is still there");
    for sidecar in [&mut line.near, &mut line.far] {
        assert!(sidecar.is_running(), "the same process all along");
    }
}

/// Runs one of the trials of `streams`, which see how a call ends for the server too.
async fn bears(trial: &str, age: &str) {
    let Some(programs) = tools::go().await else {
        return;
    };
    let line = Line::to_streams(programs, age).await;
    let mut command = Command::new(programs.join("streams"));
    command.args(["-door", &line.near.door().to_string(), "-try", trial]);
    command.args(["-direct", &line.address.to_string()]);
    let output = tools::run(command, Duration::from_secs(120)).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{trial}: {said}");
}

#[tokio::test]
async fn a_callers_cancel_reaches_the_server() {
    bears("cancel", "0s").await;
}

#[tokio::test]
async fn a_callers_deadline_reaches_the_server_and_its_code_the_caller() {
    bears("deadline", "0s").await;
}

#[tokio::test]
async fn an_answer_that_ends_before_its_request_arrives_whole() {
    bears("refuse", "0s").await;
}

#[tokio::test]
async fn a_caller_that_has_ended_its_side_hears_all_that_follows() {
    bears("after", "0s").await;
}

#[tokio::test]
async fn more_calls_than_a_server_has_places_for_are_all_answered() {
    bears("crowd", "0s").await;
}

#[tokio::test]
async fn more_streams_that_stay_than_a_connection_has_places_all_begin() {
    bears("seats", "0s").await;
}

#[tokio::test]
async fn messages_above_every_window_pass_both_ways() {
    bears("large", "0s").await;
}

#[tokio::test]
async fn a_server_that_ends_its_connections_again_and_again_loses_no_call() {
    bears("aging", "300ms").await;
}

#[tokio::test]
async fn a_stream_may_be_silent_for_longer_than_a_server_bears_pings() {
    bears("quiet", "0s").await;
}
