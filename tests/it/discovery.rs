//! Names become addresses: how long an answer is believed, and what happens when it changes or the name server is away.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::app::{Answer, App};
use crate::support::client::get;
use crate::support::dns::Dns;
use crate::support::eventually::eventually;
use crate::support::sidecar::Sidecar;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

async fn named(dns: SocketAddr, port: u16) -> Sidecar {
    Sidecar::start(&format!(
        "
service: orders
outbound: {{ listen: 127.0.0.1:0, routes: [{{ name: all, forward: {{ to: billing }} }}] }}
services: {{ billing: {{ addresses: ['billing.shop.example:{port}'] }} }}
dns: {{ servers: ['{dns}'] }}
"
    ))
    .await
}

#[tokio::test]
async fn an_answer_is_believed_for_its_ttl_and_the_last_good_one_while_nobody_answers() {
    let one = App::by(|_| Answer::ok().body("one")).await;
    let two = App::at(SocketAddr::from((TWO, one.address.port())), |_| {
        Answer::ok().body("two")
    })
    .await;
    // Zero is taken for a second: nobody asks before each call.
    let dns = Dns::start(&[ONE], 0).await;
    let sidecar = named(dns.address, one.address.port()).await;
    let call = async || get("billing", "/").send(sidecar.outbound()).await.body;
    for _ in 0..20 {
        assert_eq!(&call().await[..], b"one");
    }
    assert!(
        dns.asked() <= 5,
        "{} look-ups for twenty calls",
        dns.asked()
    );
    dns.now(&[TWO]);
    eventually("the change is seen", Duration::from_secs(10), async || {
        (&call().await[..] == b"two").then_some(())
    })
    .await;
    assert_eq!(
        sidecar.metric("wayside_addresses", &["service=\"billing\""]),
        1.0
    );
    drop(dns);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        assert_eq!(&call().await[..], b"two", "the last good answer goes on");
    }
    drop((one, two));
}

#[tokio::test]
async fn a_long_ttl_is_not_asked_for_again_soon_and_all_addresses_get_calls() {
    let one = App::agreeable().await;
    let two = App::at(SocketAddr::from((TWO, one.address.port())), |_| {
        Answer::ok()
    })
    .await;
    let dns = Dns::start(&[ONE, TWO], 3_600).await;
    let sidecar = named(dns.address, one.address.port()).await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        assert_eq!(
            get("billing", "/").send(sidecar.outbound()).await.status,
            200
        );
    }
    assert_eq!(dns.asked(), 1);
    assert!(one.count() > 0 && two.count() > 0);
}

#[tokio::test]
async fn a_sidecar_starts_without_its_name_server_and_finds_it_later() {
    let app = App::agreeable().await;
    let dns = Dns::start(&[ONE], 60).await;
    let address = dns.address;
    drop(dns);
    let sidecar = named(address, app.address.port()).await;
    let reply = get("billing", "/").send(sidecar.outbound()).await;
    assert_eq!(reply.status, 503);
    assert_eq!(
        reply.json()["type"],
        "urn:wayside:problem:destination-unresolved"
    );
}
