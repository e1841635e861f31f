//! Two sidecars with a topic between them: what one publishes, the other delivers.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::json;

use crate::sidecar::Sidecar;
use crate::support::app::{App, Seen};
use crate::support::client::post;
use crate::support::kafka::Kafka;

/// Two sidecars and the topic between them, named `name`, as is the group.
pub(crate) struct Line {
    /// Publishes.
    pub(crate) orders: Sidecar,
    /// Delivers to the app.
    pub(crate) billing: Sidecar,
}

impl Line {
    /// Makes the topic and starts both; `more` is written into the subscription. The members of its group may be killed.
    pub(crate) async fn lay(kafka: &Kafka, name: &str, app: &App, more: &str) -> Self {
        let billing = billing(kafka, name, app.address, more);
        Self::of(kafka, name, &billing).await
    }

    /// As [`Line::lay`], for a test that kills no member and counts calls: its member is not taken for dead, which would
    /// deliver again what is in flight, because the machine is busy for two seconds.
    pub(crate) async fn steady(kafka: &Kafka, name: &str, app: &App, more: &str) -> Self {
        let billing = subscribed(kafka, (name, app.address), more, "");
        Self::of(kafka, name, &billing).await
    }

    async fn of(kafka: &Kafka, name: &str, billing: &str) -> Self {
        kafka.make_topic(name, 4).await;
        let brokers = kafka.address();
        let orders = format!(
            "
service: orders
outbound:
  listen: 127.0.0.1:0
  routes:
    - name: create-invoice
      match: {{ host: billing }}
      publish: {{ topic: {name}, key: /key }}
kafka: {{ brokers: [\"{brokers}\"] }}
"
        );
        Self {
            orders: Sidecar::run(&orders).await,
            billing: Sidecar::run(billing).await,
        }
    }

    /// Publishes `{ "key", "n" }` and gives the message's id.
    pub(crate) async fn publish(&self, key: &str, n: usize) -> String {
        let body = json!({ "key": key, "n": n }).to_string();
        let reply = post("billing", "/invoices")
            .json(body)
            .send(self.orders.door())
            .await;
        assert_eq!(reply.status, 202, "{:?}", reply.body);
        reply.json()["id"]
            .as_str()
            .expect("the 202 names the message")
            .to_owned()
    }
}

/// The file of a sidecar beside `app`, in the group of `name`.
pub(crate) fn billing(kafka: &Kafka, name: &str, app: SocketAddr, more: &str) -> String {
    // A short session: a member that was killed must not hold its partitions for long. And an app may be down for
    // longer than a poll may take.
    let properties =
        r#"session.timeout.ms: "2000", heartbeat.interval.ms: "500", max.poll.interval.ms: "6000""#;
    subscribed(kafka, (name, app), more, properties)
}

fn subscribed(
    kafka: &Kafka,
    (name, app): (&str, SocketAddr),
    more: &str,
    properties: &str,
) -> String {
    format!(
        "
service: billing
app: {app}
outbound: {{ listen: 127.0.0.1:0 }}
subscriptions:
  - topic: {name}
    group: {name}
    {more}
kafka:
  brokers: [\"{}\"]
  properties: {{ {properties} }}
",
        kafka.address()
    )
}

/// The id of the message that a call delivers.
pub(crate) fn id(call: &Seen) -> String {
    call.header("wayside-message-id")
        .expect("a delivery names its message")
        .to_owned()
}

/// Those of all messages that the app has seen.
pub(crate) fn ids(app: &App) -> BTreeSet<String> {
    app.seen().iter().map(id).collect()
}
