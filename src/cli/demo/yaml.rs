//! The configuration files of the demo's sidecars, made to be read by a person too.

use std::net::SocketAddr;

/// What the broker in memory needs on top: it answers an empty fetch only after the whole wait.
const IN_MEMORY: &str = r#"
    # Only for a broker in memory, which does not wake a reader that waits.
    fetch.wait.max.ms: "10"
    heartbeat.interval.ms: "500"
    topic.metadata.refresh.interval.ms: "1000""#;

/// The names that the files share.
pub(super) struct Names {
    /// Where orders are published.
    pub(super) topic: String,
    /// Where billing's refused orders go.
    pub(super) dead: String,
    suffix: String,
    broker: String,
    properties: &'static str,
}

impl Names {
    /// Plain names, for a broker in memory that ends with the demo.
    pub(super) fn in_memory(broker: &str) -> Self {
        Self::new("", broker, IN_MEMORY)
    }

    /// Names that end in `suffix`, new in every run, for a broker that outlives the demo.
    pub(super) fn lasting(suffix: &str, broker: &str) -> Self {
        Self::new(suffix, broker, "")
    }

    fn new(suffix: &str, broker: &str, properties: &'static str) -> Self {
        Self {
            topic: format!("invoices{suffix}"),
            dead: format!("invoices{suffix}.dead"),
            suffix: suffix.to_owned(),
            broker: broker.to_owned(),
            properties,
        }
    }

    /// `kafka:`, with the waits of a broker's absence and of a dead consumer cut to the length of a demo.
    fn kafka(&self) -> String {
        format!(
            r#"kafka:
  brokers: ["{broker}"]
  properties:
    # Shorter than a service would want, so that the demo is short.
    reconnect.backoff.max.ms: "500"
    session.timeout.ms: "6000"{more}"#,
            broker = self.broker,
            more = self.properties,
        )
    }

    /// Orders: reads its catalog at once, and tells of each order by a small record.
    pub(super) fn orders(&self, app: SocketAddr, catalog: &[SocketAddr], claims: &str) -> String {
        let catalog: Vec<String> = catalog
            .iter()
            .map(|address| format!("\"{address}\""))
            .collect();
        format!(
            r#"# The sidecar of orders: a read goes on at once, an order becomes a small record.
service: orders
app: {app}

outbound:
  listen: 127.0.0.1:0
  routes:
    - name: read-item
      match: {{ host: catalog, methods: [GET], path: /items/** }}
      forward: {{ to: catalog, timeout: 2s, retry: {{ attempts: 3 }} }}

    - name: create-invoice
      match: {{ host: billing, methods: [POST], path: /invoices }}
      publish:
        topic: {topic}
        key: /customer
        timeout: 1s
        slim: {{ keep: [/id, /customer, /total], claim: bodies }}

inbound:
  listen: 127.0.0.1:0

services:
  catalog: {{ addresses: [{catalog}] }}

{kafka}

claims:
  bodies: {{ disk: {claims}, survives: pod }}

admin:
  listen: 127.0.0.1:0
"#,
            topic = self.topic,
            catalog = catalog.join(", "),
            kafka = self.kafka(),
            claims = serde_json::Value::from(claims),
        )
    }

    /// Billing: consumes orders as the calls they were, and may ask orders' sidecar for what was cut off.
    pub(super) fn billing(&self, app: SocketAddr, orders: SocketAddr) -> String {
        format!(
            r#"# The sidecar of billing: each order arrives as the POST /invoices that it was.
service: billing
app: {app}

outbound:
  listen: 127.0.0.1:0        # for /.wayside/claims

subscriptions:
  - topic: {topic}
    group: billing{suffix}
    hydrate: lazy
    retry: {{ attempts: 5, backoff: 100ms..1s }}
    dead_letter: {dead}

services:
  orders: {{ addresses: ["{orders}"] }}

{kafka}

admin:
  listen: 127.0.0.1:0
"#,
            topic = self.topic,
            dead = self.dead,
            suffix = self.suffix,
            kafka = self.kafka(),
        )
    }

    /// Audit: the same orders to a path of its own, and billing's dead letters to another.
    pub(super) fn audit(&self, app: SocketAddr, orders: SocketAddr) -> String {
        format!(
            r#"# The sidecar of audit: the same orders for another group, and billing's dead letters.
service: audit
app: {app}

outbound:
  listen: 127.0.0.1:0        # for /.wayside/claims, which audit never asks

subscriptions:
  - topic: {topic}
    group: audit{suffix}
    deliver: {{ path: /seen }}
    hydrate: lazy

  - topic: {dead}
    group: audit-dead{suffix}
    deliver: {{ path: /dead }}
    hydrate: lazy

services:
  orders: {{ addresses: ["{orders}"] }}

{kafka}
    # A topic that is made by its first reader: the dead letters' reader is there before they are.
    allow.auto.create.topics: "true"

admin:
  listen: 127.0.0.1:0
"#,
            topic = self.topic,
            dead = self.dead,
            suffix = self.suffix,
            kafka = self.kafka(),
        )
    }
}

/// Catalog: nothing but an inbound door before the service.
pub(super) fn catalog(app: SocketAddr) -> String {
    format!(
        r#"# The sidecar of one replica of catalog: a door for other sidecars, and nothing else.
service: catalog
app: {app}

inbound:
  listen: 127.0.0.1:0

admin:
  listen: 127.0.0.1:0
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_free_of_placeholders_and_names_its_peers() {
        let address: SocketAddr = "127.0.0.1:7001".parse().expect("an address");
        let names = Names::lasting("-x", "127.0.0.1:9092");
        let files = [
            names.orders(address, &[address], "/tmp/a \"quoted\" folder"),
            names.billing(address, address),
            names.audit(address, address),
        ];
        for file in files {
            assert!(file.contains("topic: invoices-x\n"), "{file}");
            assert!(file.contains("\"127.0.0.1:7001\""), "{file}");
            assert!(!file.contains("{{") && !file.contains("\t"), "{file}");
        }
    }
}
