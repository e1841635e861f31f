//! Certificate files that are replaced while calls run: good ones are taken, bad ones are not, and no call notices.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::support::app::App;
use crate::support::authority::{Authority, Papers, call};
use crate::support::client::get;
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;
use crate::tls::{folder, receiving, sending};

const RELOADS: &str = "wayside_tls_reloads_total";
const FAILURES: &str = "wayside_tls_failures_total";
const BILLING: &str = "spiffe://shop/billing";
/// A look at the files every second, and what a busy machine takes on top.
const SOON: Duration = Duration::from_secs(10);

fn reloads(sidecar: &Sidecar, result: &str) -> f64 {
    sidecar.metric(RELOADS, &[&format!("result=\"{result}\"")])
}

async fn reloaded(sidecar: &Sidecar, result: &str, count: f64) {
    let what = format!("{count} reloads are {result}");
    eventually(&what, SOON, async || {
        (reloads(sidecar, result) >= count).then_some(())
    })
    .await;
}

/// Callers that go on until they are stopped, on connections of their own.
struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    fn on(doors: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let caller = |door: SocketAddr| {
            let stop = Arc::clone(&stop);
            Handle::current().spawn(async move {
                let (mut made, mut failed) = (0, Vec::new());
                while !stop.load(SeqCst) {
                    made += 1;
                    let reply = get("billing", "/").send(door).await;
                    if reply.status != 200 {
                        failed.push(String::from_utf8_lossy(&reply.body).into_owned());
                    }
                }
                (made, failed)
            })
        };
        let callers = doors.iter().copied().map(caller).collect();
        Self { stop, callers }
    }

    /// Stops them; none of their calls has failed.
    async fn ends_well(self) {
        self.stop.store(true, SeqCst);
        for caller in self.callers {
            let (made, failed) = caller.await.expect("no caller panics");
            assert!(made > 2, "the load was none: {made} calls");
            assert_eq!(failed, Vec::<String>::new(), "of {made} calls");
        }
    }
}

/// A sidecar over a folder with an app behind, and one that calls it and makes a connection for each health check.
async fn pair(app: &App, near: &Path, far: &Path) -> (Sidecar, Sidecar) {
    let far = Sidecar::start(&receiving(app.address, far, "[{}]")).await;
    let near = Sidecar::start(&sending(far.inbound(), near, &service(""))).await;
    (near, far)
}

fn service(more: &str) -> String {
    format!(
        ", identity: \"{BILLING}\", health: {{ path: /live, every: 100ms, timeout: 100ms }}{more}"
    )
}

/// Whether the door takes these papers now.
async fn takes(door: SocketAddr, papers: &Papers) -> bool {
    call(door, Some(papers))
        .await
        .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[tokio::test]
async fn replaced_files_are_taken_soon_and_no_call_notices() {
    let (shop, next) = (Authority::new("shop"), Authority::new("next"));
    let app = App::agreeable().await;
    let folders = [
        folder(&shop.issue(&[BILLING])),
        folder(&shop.issue(&[BILLING])),
    ];
    let (near, far) = pair(&app, folders[0].path(), folders[1].path()).await;
    let stranger = next.issue(&[BILLING]);
    assert!(!takes(far.inbound(), &stranger).await);
    let load = Load::on(&[near.outbound(); 2]);
    // Both authorities are believed while certificates change from one to the other.
    let both = format!("{}{}", shop.issue(&[BILLING]).ca, stranger.ca);
    let with_both = |mut papers: Papers| {
        papers.ca.clone_from(&both);
        papers
    };
    for folder in &folders {
        with_both(shop.issue(&[BILLING])).write(folder.path());
    }
    for sidecar in [&near, &far] {
        reloaded(sidecar, "ok", 1.0).await;
    }
    eventually("the new CA is believed", SOON, async || {
        takes(far.inbound(), &stranger).await.then_some(())
    })
    .await;
    for folder in &folders {
        with_both(next.issue(&[BILLING])).write(folder.path());
    }
    for sidecar in [&near, &far] {
        reloaded(sidecar, "ok", 2.0).await;
    }
    load.ends_well().await;
    assert_eq!(near.metric(FAILURES, &["reason=\"unknown-ca\""]), 0.0);
    assert_eq!(near.metric(FAILURES, &["reason=\"refused\""]), 0.0);
}

/// Writes papers into a folder of their own and swaps a link to it, as Kubernetes does for a mounted secret.
fn swap(mount: &Path, papers: &Papers, number: usize) {
    let version = mount.join(format!("..version-{number}"));
    fs::create_dir(&version).expect("the folder can be made");
    papers.write(&version);
    let link = mount.join("..data_tmp");
    symlink(version.file_name().expect("a name"), &link).expect("the link can be made");
    fs::rename(&link, mount.join("..data")).expect("the link can be swapped");
}

fn mount(papers: &Papers) -> TempDir {
    let mount = TempDir::with_prefix("wayside-mount-").expect("a folder can be made");
    swap(mount.path(), papers, 0);
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(Path::new("..data").join(name), mount.path().join(name)).expect("a link");
    }
    mount
}

#[tokio::test]
async fn files_behind_a_link_that_is_swapped_are_taken_soon() {
    let (shop, next) = (Authority::new("shop"), Authority::new("next"));
    let app = App::agreeable().await;
    let mounted = mount(&shop.issue(&[BILLING]));
    let far = Sidecar::start(&receiving(app.address, mounted.path(), "[{}]")).await;
    let papers = next.issue(&[BILLING]);
    assert!(!takes(far.inbound(), &papers).await);
    swap(mounted.path(), &papers, 1);
    eventually("the new files are in force", SOON, async || {
        takes(far.inbound(), &papers).await.then_some(())
    })
    .await;
    assert!(!takes(far.inbound(), &shop.issue(&[BILLING])).await);
    assert_eq!(reloads(&far, "ok"), 1.0);
}

#[tokio::test]
async fn bad_new_files_are_refused_and_the_old_ones_go_on() {
    let shop = Authority::new("shop");
    let app = App::agreeable().await;
    let good = shop.issue(&[BILLING]);
    let folders = [folder(&shop.issue(&[BILLING])), folder(&good)];
    let (near, far) = pair(&app, folders[0].path(), folders[1].path()).await;
    let load = Load::on(&[near.outbound(); 2]);
    let half = Papers {
        cert: good.cert[..good.cert.len() / 2].to_owned(),
        ..good.clone()
    };
    let mismatched = Papers {
        key: shop.issue(&[BILLING]).key,
        ..good.clone()
    };
    let expired = shop.issue_expired(&[BILLING]);
    let mut refused = 0.0;
    for bad in [&half, &mismatched, &expired, &mismatched] {
        bad.write(folders[1].path());
        refused += 1.0;
        reloaded(&far, "refused", refused).await;
        assert!(takes(far.inbound(), &shop.issue(&[BILLING])).await);
    }
    assert_eq!(reloads(&far, "ok"), 0.0);
    shop.issue(&[BILLING]).write(folders[1].path());
    reloaded(&far, "ok", 1.0).await;
    load.ends_well().await;
}

#[tokio::test]
async fn a_certificate_replaced_every_second_fails_no_call() {
    let rotations = std::env::var("WAYSIDE_ROTATIONS");
    let rotations = rotations.map_or(5, |text| text.parse().expect("a number"));
    let shop = Authority::new("shop");
    let app = App::agreeable().await;
    let folders = [
        mount(&shop.issue(&[BILLING])),
        mount(&shop.issue(&[BILLING])),
    ];
    let (near, far) = pair(&app, folders[0].path(), folders[1].path()).await;
    let http2 = sending(far.inbound(), folders[0].path(), &service(", protocol: h2"));
    let shared = Sidecar::start(&http2).await;
    let [one, two] = [near.outbound(), shared.outbound()];
    let load = Load::on(&[one, one, one, two, two, two]);
    for number in 1..=rotations {
        for folder in &folders {
            swap(folder.path(), &shop.issue(&[BILLING]), number);
        }
        for sidecar in [&near, &far, &shared] {
            reloaded(sidecar, "ok", number as f64).await;
        }
        app.forget();
    }
    load.ends_well().await;
    // Connections are kept; that new ones are made all the time is the health checks' part.
    // One of those may take too long; none may be refused.
    for reason in [
        "unknown-ca",
        "expired",
        "wrong-name",
        "refused",
        "no-certificate",
        "protocol",
    ] {
        for sidecar in [&near, &far, &shared] {
            let label = format!("reason=\"{reason}\"");
            assert_eq!(sidecar.metric(FAILURES, &[&label]), 0.0, "{reason}");
        }
    }
}
