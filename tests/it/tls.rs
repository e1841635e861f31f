//! Mutual TLS between sidecars: who is let in, who is not, and that a call that is not never goes in the clear.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::app::{Answer, App};
use crate::support::authority::{Authority, Papers, call, server};
use crate::support::client::{Reply, get, post};
use crate::support::eventually::eventually;
use crate::support::raw::{RawApp, Wire, exchange};
use crate::support::sidecar::Sidecar;

const BILLING: &str = "spiffe://shop/billing";
const ORDERS: &str = "spiffe://shop/orders";
const FAILURES: &str = "wayside_tls_failures_total";

/// A folder with papers, gone with the test.
pub(crate) fn folder(papers: &Papers) -> TempDir {
    let folder = TempDir::with_prefix("wayside-tls-").expect("a folder can be made");
    papers.write(folder.path());
    folder
}

/// The `tls` section over a folder.
fn section(folder: &Path) -> String {
    let file = |name| folder.join(name).display().to_string();
    format!(
        "tls:\n  mesh: {{ cert: {}, key: {}, ca: {} }}\n",
        file("tls.crt"),
        file("tls.key"),
        file("ca.crt")
    )
}

/// The YAML of a sidecar in front of an app, taking mutual TLS alone; `allow` is a list in YAML's flow form.
pub(crate) fn receiving(app: SocketAddr, folder: &Path, allow: &str) -> String {
    format!(
        "service: billing\napp: {app}\ninbound: {{ listen: 127.0.0.1:0, tls: mesh, allow: {allow} }}\n{}",
        section(folder)
    )
}

/// The YAML of a sidecar that calls `billing` there by mutual TLS; `service` goes on after `tls`.
pub(crate) fn sending(there: SocketAddr, folder: &Path, service: &str) -> String {
    format!(
        "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: all
      match: {{ host: billing }}
      forward: {{ to: billing }}
services:
  billing: {{ addresses: [{there}], tls: mesh{service} }}
{}",
        section(folder)
    )
}

/// Two sidecars with these papers, the app behind the second.
struct Pair {
    app: App,
    near: Sidecar,
    far: Sidecar,
    _folders: [TempDir; 2],
}

impl Pair {
    async fn new(orders: &Papers, billing: &Papers, service: &str) -> Self {
        Self::allowing(orders, billing, (service, "[{}]")).await
    }

    async fn allowing(orders: &Papers, billing: &Papers, (service, allow): (&str, &str)) -> Self {
        let app = App::by(|_| Answer::ok().body("paid")).await;
        let folders = [folder(orders), folder(billing)];
        let far = Sidecar::start(&receiving(app.address, folders[1].path(), allow)).await;
        let near = Sidecar::start(&sending(far.inbound(), folders[0].path(), service)).await;
        Self {
            app,
            near,
            far,
            _folders: folders,
        }
    }

    async fn call(&self, target: &str) -> Reply {
        get("billing", target).send(self.near.outbound()).await
    }

    /// The call fails as a handshake does, with this reason; nothing of it came through.
    async fn fails(&self, reason: &str) {
        failed(&self.call("/").await, reason);
        // Nothing of a call that must not run twice leaves either.
        let posted = post("billing", "/").body("10").send(self.near.outbound());
        failed(&posted.await, reason);
        assert_eq!(self.app.count(), 0, "calls that reached the app");
        assert!(failures(&self.near, "service", reason) >= 1.0, "{reason}");
    }
}

fn failed(reply: &Reply, reason: &str) {
    let problem = reply.json();
    assert_eq!(
        (reply.status.as_u16(), problem["type"].as_str()),
        (503, Some("urn:wayside:problem:tls-failed")),
        "{problem}"
    );
    let detail = problem["detail"].to_string();
    assert!(detail.contains(reason), "{reason}: {detail}");
}

fn failures(sidecar: &Sidecar, side: &str, reason: &str) -> f64 {
    let (side, reason) = (format!("side=\"{side}\""), format!("reason=\"{reason}\""));
    sidecar.metric(FAILURES, &[&side, &reason])
}

/// Waits for a door to have counted a failure: it learns of some after the caller.
async fn counts(door: &Sidecar, reason: &str) {
    eventually(reason, Duration::from_secs(5), async || {
        (failures(door, "door", reason) >= 1.0).then_some(())
    })
    .await;
}

fn spiffe(name: &str) -> String {
    format!(", identity: \"{name}\"")
}

#[tokio::test]
async fn a_call_goes_through_two_sidecars_by_mutual_tls() {
    let shop = Authority::new("shop");
    for (identity, names) in [
        (spiffe(BILLING), &[BILLING][..]),
        (spiffe("billing.shop.svc"), &["billing.shop.svc"][..]),
        // Any one of its names will do.
        (spiffe(BILLING), &["spiffe://shop/other", BILLING][..]),
    ] {
        let pair = Pair::new(&shop.issue(&[ORDERS]), &shop.issue(names), &identity).await;
        for target in ["/a", "/b", "/c"] {
            let reply = pair.call(target).await;
            assert_eq!(
                (reply.status.as_u16(), &reply.body[..]),
                (200, &b"paid"[..])
            );
        }
        let body = "x".repeat(300_000);
        let posted = post("billing", "/d").body(body.clone());
        assert_eq!(posted.send(pair.near.outbound()).await.status, 200);
        let seen = pair.app.seen();
        assert_eq!((seen.len(), seen[3].body.len()), (4, body.len()));
        let connects = pair.near.metric("wayside_connects_total", &["billing"]);
        assert!(connects <= 2.0, "connections are kept: {connects}");
        assert_eq!(
            pair.near.metric(FAILURES, &[]) + pair.far.metric(FAILURES, &[]),
            0.0
        );
    }
}

#[tokio::test]
async fn calls_of_a_service_with_h2_share_one_tls_connection() {
    let shop = Authority::new("shop");
    let service = format!("{}, protocol: h2", spiffe(BILLING));
    let pair = Pair::new(&shop.issue(&[ORDERS]), &shop.issue(&[BILLING]), &service).await;
    let replies = [pair.call("/a"), pair.call("/b"), pair.call("/c")];
    let [first, second, third] = replies;
    let (first, second, third) = tokio::join!(first, second, third);
    for reply in [first, second, third] {
        assert_eq!(
            (reply.status.as_u16(), &reply.body[..]),
            (200, &b"paid"[..])
        );
    }
    assert_eq!(pair.app.count(), 3);
    assert_eq!(
        pair.near.metric("wayside_connects_total", &["billing"]),
        1.0
    );
}

#[tokio::test]
async fn a_service_of_another_authority_is_not_called() {
    let (shop, other) = (Authority::new("shop"), Authority::new("other"));
    for service in [
        spiffe(BILLING),
        format!("{}, protocol: h2", spiffe(BILLING)),
    ] {
        let pair = Pair::new(&shop.issue(&[ORDERS]), &other.issue(&[BILLING]), &service).await;
        pair.fails("unknown-ca").await;
    }
}

#[tokio::test]
async fn an_authority_of_the_same_name_is_not_the_same() {
    let (shop, namesake) = (Authority::new("shop"), Authority::new("shop"));
    let (orders, billing) = (shop.issue(&[ORDERS]), namesake.issue(&[BILLING]));
    let pair = Pair::new(&orders, &billing, &spiffe(BILLING)).await;
    pair.fails("unknown-ca").await;
}

#[tokio::test]
async fn a_service_whose_certificate_names_another_is_not_called() {
    let shop = Authority::new("shop");
    for (expected, names) in [
        (BILLING, &["spiffe://shop/billing2"][..]),
        (BILLING, &["spiffe://shop/bill"][..]),
        (BILLING, &["billing.shop.svc"][..]),
        ("billing.shop.svc", &["rates.shop.svc"][..]),
        ("billing.shop.svc", &[BILLING][..]),
        ("billing.shop.svc", &["shop.svc"][..]),
    ] {
        let pair = Pair::new(
            &shop.issue(&[ORDERS]),
            &shop.issue(names),
            &spiffe(expected),
        )
        .await;
        pair.fails("wrong-name").await;
        counts(&pair.far, "refused").await;
    }
}

#[tokio::test]
async fn a_service_that_does_not_take_our_certificate_gets_no_call() {
    let (shop, other) = (Authority::new("shop"), Authority::new("other"));
    for service in [
        spiffe(BILLING),
        format!("{}, protocol: h2", spiffe(BILLING)),
    ] {
        // We believe whom it believes not.
        let mut orders = other.issue(&[ORDERS]);
        let mut billing = shop.issue(&[BILLING]);
        let both = format!("{}{}", orders.ca, billing.ca);
        (orders.ca, billing.ca) = (both, billing.ca);
        let pair = Pair::new(&orders, &billing, &service).await;
        for _ in 0..5 {
            pair.fails("unknown-ca").await;
        }
        assert!(failures(&pair.far, "door", "unknown-ca") >= 1.0);
    }
}

#[tokio::test]
async fn a_service_with_an_expired_certificate_is_not_called() {
    let shop = Authority::new("shop");
    let expired = server(&shop.issue_expired(&[BILLING])).await;
    let papers = folder(&shop.issue(&[ORDERS]));
    let yaml = sending(expired.address, papers.path(), &spiffe(BILLING));
    let near = Sidecar::start(&yaml).await;
    failed(&get("billing", "/").send(near.outbound()).await, "expired");
    assert_eq!(failures(&near, "service", "expired"), 1.0);
}

#[tokio::test]
async fn a_caller_is_let_in_by_nothing_but_a_good_certificate() {
    let (shop, other) = (Authority::new("shop"), Authority::new("other"));
    let app = App::agreeable().await;
    let papers = folder(&shop.issue(&[BILLING]));
    let far = Sidecar::start(&receiving(app.address, papers.path(), "[{}]")).await;
    let door = far.inbound();
    for (papers, reason) in [
        (None, "no-certificate"),
        (Some(other.issue(&[ORDERS])), "unknown-ca"),
        (Some(shop.issue_expired(&[ORDERS])), "expired"),
    ] {
        let ended = call(door, papers.as_ref()).await;
        assert!(ended.is_err(), "{reason}: {ended:?}");
        counts(&far, reason).await;
    }
    let plain = exchange(door, "GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
    assert!(!plain.contains("HTTP/1.1"), "{plain:?}");
    counts(&far, "protocol").await;
    let plain = exchange(door, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!plain.contains("HTTP"), "{plain:?}");
    assert_eq!(app.count(), 0, "calls that reached the app");
    let good = call(door, Some(&shop.issue(&[ORDERS]))).await;
    assert!(good.expect("an answer").starts_with("HTTP/1.1 200"));
    assert_eq!(app.count(), 1);
}

#[tokio::test]
async fn a_call_never_goes_in_the_clear_to_a_service_that_speaks_no_tls() {
    let shop = Authority::new("shop");
    let papers = folder(&shop.issue(&[ORDERS]));
    // A sidecar without TLS, with an app behind it, and a server that takes whatever comes.
    let app = App::agreeable().await;
    let yaml = format!(
        "service: billing\napp: {}\ninbound: {{ listen: 127.0.0.1:0, allow: [{{}}] }}\n",
        app.address
    );
    let plain = Sidecar::start(&yaml).await;
    let bare = App::agreeable().await;
    for (there, service) in [
        (plain.inbound(), spiffe(BILLING)),
        (bare.address, spiffe(BILLING)),
        (bare.address, format!("{}, protocol: h2", spiffe(BILLING))),
    ] {
        let near = Sidecar::start(&sending(there, papers.path(), &service)).await;
        for _ in 0..3 {
            failed(&get("billing", "/").send(near.outbound()).await, "protocol");
        }
        assert!(failures(&near, "service", "protocol") >= 3.0);
    }
    assert_eq!(app.count() + bare.count(), 0, "calls that arrived");
}

#[tokio::test]
async fn a_service_that_never_ends_its_handshake_is_given_up_in_time() {
    let shop = Authority::new("shop");
    let papers = folder(&shop.issue(&[ORDERS]));
    let silent = RawApp::start(|mut wire: Wire, _| async move { drop(wire.rest().await) }).await;
    let yaml = sending(silent.address, papers.path(), &spiffe(BILLING));
    let near = Sidecar::start(&yaml).await;
    let begun = Instant::now();
    failed(
        &get("billing", "/").send(near.outbound()).await,
        "timed-out",
    );
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(failures(&near, "service", "timed-out"), 1.0);
}

#[tokio::test]
async fn callers_that_stall_their_handshake_hold_up_nobody_and_are_closed() {
    let shop = Authority::new("shop");
    let (orders, billing) = (shop.issue(&[ORDERS]), shop.issue(&[BILLING]));
    let pair = Pair::new(&orders, &billing, &spiffe(BILLING)).await;
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let mut wire = Wire::connect(pair.far.inbound()).await;
        // The first bytes of a record that never ends.
        wire.send(b"\x16\x03\x01\x02\x00\x01").await;
        stalled.push(wire);
    }
    let begun = Instant::now();
    assert_eq!(pair.call("/").await.status, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    for mut wire in stalled {
        wire.rest().await;
    }
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    eventually("all are counted", Duration::from_secs(5), async || {
        (failures(&pair.far, "door", "timed-out") == 100.0).then_some(())
    })
    .await;
    assert_eq!(pair.call("/").await.status, 200);
}

#[tokio::test]
async fn allow_lets_in_by_name_prefix_method_and_path_and_the_app_sees_no_other() {
    let shop = Authority::new("shop");
    let mut allow = String::new();
    for rule in [
        "{ from: \"spiffe://shop/orders\", methods: [GET], path: /invoices/** }",
        "{ from: [\"spiffe://shop/admin/*\", Audit.shop.svc] }",
        "{ methods: [GET], path: /public }",
    ] {
        write!(allow, "{rule}, ").expect("text grows");
    }
    let allow = format!("[{}]", allow.trim_end_matches(", "));
    for (name, method, target, status) in [
        (ORDERS, "GET", "/invoices/7", 200),
        (ORDERS, "POST", "/invoices/7", 403),
        (ORDERS, "GET", "/rates", 403),
        (ORDERS, "GET", "/invoices/%2e%2e/rates", 400),
        (ORDERS, "GET", "/invoices/..%2frates", 400),
        (ORDERS, "GET", "/invoices/7%2Frates", 200),
        (ORDERS, "GET", "/public", 200),
        ("spiffe://shop/orders2", "GET", "/invoices/7", 403),
        ("spiffe://shop/admin/ann", "POST", "/rates", 200),
        ("spiffe://shop/administrator", "POST", "/rates", 403),
        ("audit.shop.svc", "POST", "/rates", 200),
        ("audit2.shop.svc", "POST", "/rates", 403),
        ("spiffe://shop/nobody", "GET", "/public", 200),
        ("spiffe://shop/nobody", "POST", "/public", 403),
    ] {
        let (caller, billing) = (shop.issue(&[name]), shop.issue(&[BILLING]));
        let service = spiffe(BILLING);
        let pair = Pair::allowing(&caller, &billing, (&service, &allow)).await;
        let call = match method {
            "GET" => get("billing", target),
            _ => post("billing", target),
        };
        let reply = call.send(pair.near.outbound()).await;
        let what = format!("{name} {method} {target}");
        let seen = usize::from(status == 200);
        assert_eq!(
            (reply.status.as_u16(), pair.app.count()),
            (status, seen),
            "{what}"
        );
        if status != 403 {
            continue;
        }
        let problem = reply.json();
        assert_eq!(problem["type"], "urn:wayside:problem:not-allowed", "{what}");
        assert!(problem["detail"].to_string().contains(name), "{problem}");
    }
}

#[tokio::test]
async fn an_empty_allow_lets_nobody_in() {
    let shop = Authority::new("shop");
    let (orders, billing) = (shop.issue(&[ORDERS]), shop.issue(&[BILLING]));
    let service = spiffe(BILLING);
    let pair = Pair::allowing(&orders, &billing, (&service, "[]")).await;
    assert_eq!(pair.call("/").await.status, 403);
    assert_eq!(pair.app.count(), 0);
}

#[tokio::test]
async fn a_sidecar_does_not_start_with_files_that_no_peer_would_take() {
    let (shop, other) = (Authority::new("shop"), Authority::new("other"));
    let app = App::agreeable().await;
    let good = shop.issue(&[BILLING]);
    let stranger = Papers {
        key: shop.issue(&[BILLING]).key,
        ..good.clone()
    };
    let foreign = Papers {
        ca: other.issue(&[BILLING]).ca,
        ..good.clone()
    };
    let empty = Papers {
        cert: String::new(),
        ..good.clone()
    };
    for (papers, file, word) in [
        (&stranger, "tls.key", "the key is not that of"),
        (&foreign, "tls.crt", "would refuse it"),
        (&shop.issue_expired(&[BILLING]), "tls.crt", "expired"),
        (&empty, "tls.crt", "no certificate"),
    ] {
        let folder = folder(papers);
        let yaml = receiving(app.address, folder.path(), "[{}]");
        let error = Sidecar::try_start(&yaml).await.err().expect("refused");
        let file = folder.path().join(file).display().to_string();
        assert!(error.contains(&file) && error.contains(word), "{error}");
    }
    let folder = folder(&good);
    std::fs::remove_file(folder.path().join("ca.crt")).expect("it is there");
    let yaml = receiving(app.address, folder.path(), "[{}]");
    let error = Sidecar::try_start(&yaml).await.err().expect("refused");
    assert!(error.contains("ca.crt"), "{error}");
}
