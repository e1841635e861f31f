//! `wayside check --live` against a real cluster: each file of `tests/fixtures/live` says which topics it wants and what
//! is to be found, and the topics are made so by a client of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::support::eventually::eventually;
use crate::support::kafka::{Kafka, free_port};
use crate::{broker, jars, own_broker};

/// Two brokers that make no topic by themselves.
struct Cluster {
    first: Kafka,
    _second: Kafka,
    /// Where the first one wants a user and a password.
    sasl: String,
    /// Where the first one advertises an address at which nobody listens.
    outside: String,
}

/// A listener for users, and rights that they have or not. All others may do everything.
const USERS: &str = "\
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_PLAINTEXT,OUTSIDE:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.users.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_stranger=\"hunter2\" user_looker=\"hunter2\" user_orders=\"hunter2\";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
";

async fn cluster() -> Option<&'static Cluster> {
    static SHARED: OnceCell<Cluster> = OnceCell::const_new();
    let jars = jars().await?;
    let start = async || {
        let (sasl, outside) = (free_port(), free_port());
        let more = |port, controller| {
            format!(
                "auto.create.topics.enable=false
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},USERS://127.0.0.1:{sasl},OUTSIDE://127.0.0.1:{outside}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},USERS://127.0.0.1:{sasl},OUTSIDE://127.0.0.1:1
{USERS}"
            )
        };
        let first = Kafka::start_with(jars, more).await;
        let second = first.join(|port| {
            let users = free_port();
            format!(
                "auto.create.topics.enable=false
listeners=PLAINTEXT://127.0.0.1:{port},USERS://127.0.0.1:{users}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},USERS://127.0.0.1:{users}
{USERS}"
            )
        });
        let second = second.await;
        both(&first).await;
        Cluster {
            first,
            _second: second,
            sasl: format!("127.0.0.1:{sasl}"),
            outside: format!("127.0.0.1:{outside}"),
        }
    };
    Some(SHARED.get_or_init(start).await)
}

/// Waits until the cluster tells of two brokers.
async fn both(kafka: &Kafka) {
    let client: BaseConsumer = config(&kafka.address()).create().expect("a client");
    eventually(
        "the cluster has two brokers",
        Duration::from_secs(60),
        async || {
            let metadata = client.fetch_metadata(None, Duration::from_secs(5)).ok()?;
            (metadata.brokers().len() == 2).then_some(())
        },
    )
    .await;
}

fn config(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address);
    config
}

/// What a run of the command told.
struct Told {
    code: Option<i32>,
    /// One object a file.
    json: Vec<Value>,
    stderr: String,
    took: Duration,
}

impl Told {
    /// `severity rule path` of everything in the first file, in order.
    fn found(&self) -> Vec<String> {
        let findings = self.json[0]["live"]["findings"]
            .as_array()
            .expect("findings");
        let text = |finding: &Value, name: &str| finding[name].as_str().expect(name).to_owned();
        let one = |finding: &Value| {
            let of = |name: &str| text(finding, name);
            assert!(
                !of("reason").is_empty() && !of("remedy").is_empty(),
                "{finding}"
            );
            format!("{} {} {}", of("severity"), of("rule"), of("path"))
        };
        findings.iter().map(one).collect()
    }
}

async fn check(files: &[&Path], address: &str, rest: &[&str]) -> Told {
    let began = Instant::now();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_wayside"))
        .args(["check", "--live", "--json"])
        .args(rest)
        .args(files)
        .env("KAFKA", address)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the program starts");
    let took = began.elapsed();
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        !stderr.contains("hunter2") && !stdout.contains("hunter2"),
        "{stdout}{stderr}"
    );
    let json = stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    Told {
        code: output.status.code(),
        json: json.collect(),
        stderr,
        took,
    }
}

/// A file of its own.
fn file(yaml: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::with_prefix("wayside-live-").expect("a folder can be made");
    let path = folder.path().join("w.yaml");
    fs::write(&path, yaml).expect("the folder can be written");
    (folder, path)
}

/// A topic as a fixture wants it: `NAME partitions=1 replicas=1 records=3 committed=1 deleted=0 SETTING=VALUE…`.
struct Wanted<'a> {
    name: &'a str,
    words: BTreeMap<&'a str, &'a str>,
}

const OURS: [&str; 5] = ["partitions", "replicas", "records", "committed", "deleted"];

impl<'a> Wanted<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a name");
        let words = words.map(|word| word.split_once('=').expect("NAME=VALUE"));
        Self {
            name,
            words: words.collect(),
        }
    }

    fn number(&self, name: &str) -> Option<i64> {
        Some(self.words.get(name)?.parse().expect("a number"))
    }

    async fn make(&self, address: &str) {
        let admin: AdminClient<DefaultClientContext> = config(address).create().expect("a client");
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let partitions = self.number("partitions").expect("partitions") as i32;
        let replicas = TopicReplication::Fixed(self.number("replicas").expect("replicas") as i32);
        let mut topic = NewTopic::new(self.name, partitions, replicas);
        for (setting, value) in &self.words {
            if !OURS.contains(setting) {
                topic = topic.set(setting, value);
            }
        }
        let made = admin
            .create_topics(&[topic], &options)
            .await
            .expect("an answer");
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        let client: BaseConsumer = config(address)
            .set("group.id", self.name)
            .set("allow.auto.create.topics", "false")
            .create()
            .expect("a client");
        // Every broker has heard of it once one of them tells all of its copies.
        eventually("the topic is there", Duration::from_secs(30), async || {
            let metadata = client
                .fetch_metadata(Some(self.name), Duration::from_secs(5))
                .ok()?;
            let found = metadata.topics()[0].partitions();
            let replicas = self.number("replicas").expect("replicas") as usize;
            let led = found
                .iter()
                .filter(|one| one.leader() >= 0 && one.isr().len() == replicas);
            (led.count() == partitions as usize).then_some(())
        })
        .await;
        if let Some(records) = self.number("records") {
            let producer: BaseProducer = config(address).create().expect("a client");
            for _ in 0..records {
                let record = BaseRecord::<[u8], [u8]>::to(self.name)
                    .partition(0)
                    .payload(b"{}");
                producer
                    .send(record)
                    .map_err(|(error, _)| error)
                    .expect("room");
            }
            producer
                .flush(Duration::from_secs(30))
                .expect("acknowledged");
        }
        let list = |offset: i64| {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(self.name, 0, Offset::Offset(offset))
                .expect("an offset");
            list
        };
        if let Some(offset) = self.number("committed") {
            eventually(
                "the offset is committed",
                Duration::from_secs(30),
                async || client.commit(&list(offset), CommitMode::Sync).ok(),
            )
            .await;
        }
        if let Some(offset) = self.number("deleted") {
            let deleted = admin.delete_records(&list(offset), &options).await;
            deleted.expect("an answer");
        }
    }
}

#[tokio::test]
async fn each_fixture_is_told_what_it_says_and_nothing_else() {
    let (Some(shared), Some(cluster)) = (broker().await, cluster().await) else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/live");
    let entries = fs::read_dir(folder).expect("the fixtures");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(files.len() > 20, "every rule has one");
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("UTF-8");
        let kafka = match text.lines().any(|line| line == "# alone") {
            true => shared.address(),
            false => cluster.first.address(),
        };
        for topic in text
            .lines()
            .filter_map(|line| line.strip_prefix("# topic: "))
        {
            Wanted::parse(topic).make(&kafka).await;
        }
        let finds = text.lines().find_map(|line| line.strip_prefix("# finds:"));
        let finds = finds.expect("what it finds").trim();
        let told = check(&[&path], &kafka, &[]).await;
        let code = i32::from(finds.contains("error "));
        let found = told.found().join("; ");
        if found != finds || told.code != Some(code) {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            wrong.push(format!(
                "{name}: {:?} {}{}",
                told.code, told.json[0], told.stderr
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_broker_that_makes_topics_is_asked_whether_it_would_and_makes_none() {
    let Some(kafka) = broker().await else {
        return;
    };
    let (_folder, path) = file(
        "service: a\nkafka: { brokers: [\"${KAFKA}\"] }\noutbound:\n  listen: 127.0.0.1:0\n  routes:\n    - { name: one, publish: { topic: live.made.later } }\n",
    );
    for _ in 0..2 {
        let told = check(&[&path], &kafka.address(), &[]).await;
        assert_eq!(
            told.found(),
            ["warning topic-exists outbound.routes[0].publish.topic"]
        );
        assert_eq!(told.code, Some(0));
        let finding = &told.json[0]["live"]["findings"][0];
        assert_eq!(finding["setting"], "auto.create.topics.enable");
        assert!(
            finding["reason"]
                .as_str()
                .is_some_and(|text| text.contains("num.partitions=4")),
            "{finding}"
        );
    }
}

/// A file of a service that publishes and subscribes, as this user.
fn as_user(user: &str, password: &str) -> (TempDir, PathBuf) {
    file(&format!(
        "\
service: orders
app: 127.0.0.1:8080
kafka:
  brokers: [\"${{KAFKA}}\"]
  properties:
    security.protocol: sasl_plaintext
    sasl.mechanism: PLAIN
    sasl.username: {user}
    sasl.password: {password}
outbound:
  listen: 127.0.0.1:0
  routes:
    - {{ name: send, publish: {{ topic: live.written }} }}
subscriptions:
  - {{ topic: live.read, hydrate: never }}
"
    ))
}

#[tokio::test]
async fn what_a_user_may_not_do_is_told_by_the_acl_that_is_missing() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let kafka = &cluster.first;
    let admin: AdminClient<DefaultClientContext> =
        config(&kafka.address()).create().expect("a client");
    for name in ["live.written", "live.read"] {
        let topic = NewTopic::new(name, 2, TopicReplication::Fixed(2));
        let topic = topic.set("min.insync.replicas", "2");
        let made = admin.create_topics(&[topic], &AdminOptions::new()).await;
        assert!(made.expect("an answer")[0].is_ok());
    }
    kafka
        .allow("looker", "--operation Describe --operation DescribeConfigs --topic live. --resource-pattern-type prefixed")
        .await;
    kafka
        .allow("orders", "--operation Read --operation Write --operation DescribeConfigs --topic live. --resource-pattern-type prefixed")
        .await;
    kafka
        .allow("orders", "--operation Read --group orders")
        .await;

    let (_folder, path) = as_user("stranger", "hunter2");
    let told = check(&[&path], &cluster.sasl, &[]).await;
    assert_eq!(
        told.found(),
        [
            "error acl kafka",
            "error acl outbound.routes[0].publish.topic",
            "error acl subscriptions[0].topic"
        ]
    );
    assert_eq!(told.code, Some(1));
    let remedy = |index: usize| told.json[0]["live"]["findings"][index]["remedy"].clone();
    assert_eq!(remedy(1), "allow Write on topic `live.written`");
    assert_eq!(remedy(2), "allow Read on topic `live.read`");

    let (_folder, path) = as_user("looker", "hunter2");
    let told = check(&[&path], &cluster.sasl, &[]).await;
    assert_eq!(
        told.found()[..3],
        [
            "error acl kafka",
            "error acl subscriptions[0].group",
            "error acl subscriptions[0].topic"
        ]
    );

    let (_folder, path) = as_user("orders", "hunter2");
    let told = eventually(
        "the rights have arrived",
        Duration::from_secs(30),
        async || {
            let told = check(&[&path], &cluster.sasl, &[]).await;
            (told.code == Some(0)).then_some(told)
        },
    )
    .await;
    assert_eq!(
        told.found(),
        ["warning min-insync outbound.routes[0].publish.topic"],
        "two brokers cannot do better"
    );
}

#[tokio::test]
async fn a_wrong_password_is_told_as_one_and_not_repeated() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let (_folder, path) = as_user("orders", "xhunter2x");
    let told = check(&[&path], &cluster.sasl, &[]).await;
    assert_eq!(told.found(), ["error broker kafka.properties"]);
    assert_eq!(told.code, Some(1));
    assert!(
        told.took < Duration::from_secs(8),
        "it is hopeless at once: {:?}",
        told.took
    );
}

#[tokio::test]
async fn an_address_that_is_advertised_and_not_reached_is_told() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let (_folder, path) = file("service: a\nkafka: { brokers: [\"${KAFKA}\"] }\n");
    let told = check(&[&path], &cluster.outside, &["--timeout", "4s"]).await;
    assert_eq!(told.found(), ["error advertised kafka.brokers"]);
    let finding = &told.json[0]["live"]["findings"][0];
    assert!(finding.to_string().contains("127.0.0.1:1"), "{finding}");
    assert!(told.took < Duration::from_secs(9), "{:?}", told.took);
}

#[tokio::test]
async fn a_partition_without_a_leader_and_a_cluster_that_is_gone_are_told() {
    let Some(mut first) = own_broker().await else {
        return;
    };
    let mut second = first.join(|_| String::new()).await;
    both(&first).await;
    let admin: AdminClient<DefaultClientContext> =
        config(&first.address()).create().expect("a client");
    let topic = NewTopic::new("led", 2, TopicReplication::Variable(&[&[1], &[2]]));
    let made = admin.create_topics(&[topic], &AdminOptions::new()).await;
    assert!(made.expect("an answer")[0].is_ok());
    second.kill();
    let (_folder, path) = file(
        "service: a\nkafka: { brokers: [\"${KAFKA}\"] }\noutbound:\n  listen: 127.0.0.1:0\n  routes:\n    - { name: one, publish: { topic: led } }\n",
    );
    let told = eventually(
        "the leader is missed",
        Duration::from_secs(60),
        async || {
            let told = check(&[&path], &first.address(), &[]).await;
            let found = told.found();
            found
                .iter()
                .any(|found| found.contains(" leader "))
                .then_some(told)
        },
    )
    .await;
    assert_eq!(told.code, Some(1));
    first.kill();
    let told = check(&[&path], &first.address(), &[]).await;
    assert_eq!(told.found(), ["error broker kafka.brokers"]);
    assert_eq!(told.code, Some(1));
    assert!(told.took < Duration::from_secs(8), "{:?}", told.took);
}
