//! A real Apache Kafka: one node in KRaft mode, fetched once by Maven, asked by clients that we did not write.
//!
//! `kcat` reads the topics; Kafka's own command-line classes make topics, produce and tell the committed offsets.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OnceCell, SemaphorePermit};

use super::eventually::eventually;
use super::process::{Process, announce};

const VERSION: &str = "4.1.0";
/// ASCII's own separators, which stand between what the console consumer writes; and its mark of what is not there.
const RECORD: char = '\u{1e}';
const FIELD: char = '\u{1f}';
const HEADER: char = '\u{1d}';
const NULL: &str = "\u{1c}";
const REMEDY: &str = "apt-get install openjdk-17-jre-headless maven kcat";

// A JVM that starts fast and stays small: two brokers and the build share two cores.
const JAVA: [&str; 4] = [
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
];

/// A broker of its own in a temporary folder. It ends when dropped, or with the test process.
pub(crate) struct Kafka {
    jars: PathBuf,
    folder: TempDir,
    port: u16,
    controller: u16,
    process: Option<Process>,
    /// Its place among those that run at a time.
    place: Option<SemaphorePermit<'static>>,
}

/// A record as `kcat -J` tells it, or Kafka's own console consumer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Record {
    /// The partition.
    pub(crate) partition: i32,
    /// The offset in it.
    pub(crate) offset: i64,
    /// The key as text.
    pub(crate) key: Option<String>,
    /// The value as text: kcat's JSON keeps each byte of UTF-8.
    #[serde(rename = "payload")]
    pub(crate) value: Option<String>,
    /// Name, value, name, value, …; absent where there is none.
    #[serde(default)]
    headers: Vec<Option<String>>,
}

/// Finds Java, Maven and kcat, and Kafka's own jars: from the build's folder, or the first time from Maven.
///
/// # Errors
/// What is missing, with the remedy.
pub(crate) async fn jars() -> Result<PathBuf, String> {
    static JARS: OnceCell<Result<PathBuf, String>> = OnceCell::const_new();
    JARS.get_or_init(async || {
        tools()?;
        fetch()
    })
    .await
    .clone()
}

impl Kafka {
    /// Starts a broker and waits until it answers.
    pub(crate) async fn start(jars: PathBuf) -> Self {
        Self::start_with(jars, |_, _| String::new()).await
    }

    /// Starts a broker and waits until it answers. `more` is given its port and its controller's, and its properties
    /// replace ours of the same names.
    pub(crate) async fn start_with(jars: PathBuf, more: impl FnOnce(u16, u16) -> String) -> Self {
        let (port, controller) = (free_port(), free_port());
        let text = |data: &Path| properties(port, controller, data) + &more(port, controller);
        Self::node(jars, (port, controller), text).await
    }

    /// Starts a second broker of the same cluster and waits until it answers; `more` is given its port.
    pub(crate) async fn join(&self, more: impl FnOnce(u16) -> String) -> Self {
        let (port, controller) = (free_port(), self.controller);
        let text = |data: &Path| {
            let ours = properties(port, controller, data);
            let ours = ours.lines().filter(|line| {
                let changed = ["process.roles=", "node.id=", "listeners="];
                !changed.iter().any(|name| line.starts_with(name))
            });
            let ours: String = ours.map(|line| format!("{line}\n")).collect();
            format!(
                "{ours}process.roles=broker\nnode.id=2\nlisteners=PLAINTEXT://127.0.0.1:{port}\n{}",
                more(port)
            )
        };
        Self::node(self.jars.clone(), (port, controller), text).await
    }

    async fn node(
        jars: PathBuf,
        (port, controller): (u16, u16),
        text: impl FnOnce(&Path) -> String,
    ) -> Self {
        let folder = TempDir::with_prefix("wayside-kafka-").expect("a folder can be made");
        let data = folder.path().join("data");
        let file = folder.path().join("server.properties");
        fs::write(&file, text(&data)).expect("the folder can be written");
        let mut kafka = Self {
            jars,
            folder,
            port,
            controller,
            process: None,
            place: None,
        };
        let mut format = kafka.java("kafka.tools.StorageTool");
        format
            .args([
                "format",
                "--cluster-id",
                "d2F5c2lkZS10ZXN0cy4uLg",
                "--config",
            ])
            .arg(&file);
        succeed("StorageTool format", run(format, "").await);
        kafka.restart().await;
        kafka
    }

    /// Gives it a place that it holds as long as it is there.
    pub(crate) fn at(mut self, place: SemaphorePermit<'static>) -> Self {
        self.place = Some(place);
        self
    }

    /// `host:port` of the broker.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Bytes of a topic's records on the broker's disk, as it stores them.
    pub(crate) fn log_bytes(&self, topic: &str) -> u64 {
        let partition = |name: &str| {
            let number = name.strip_prefix(topic)?.strip_prefix('-')?;
            number
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then_some(())
        };
        let data = fs::read_dir(self.folder.path().join("data")).expect("the broker has data");
        let folders = data.map(|entry| entry.expect("an entry"));
        let folders =
            folders.filter(|entry| partition(&entry.file_name().to_string_lossy()).is_some());
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).expect("a folder"));
        let logs = files.map(|entry| entry.expect("an entry"));
        let logs = logs.filter(|file| file.path().extension().is_some_and(|end| end == "log"));
        logs.map(|file| file.metadata().expect("a file").len())
            .sum()
    }

    /// Ends the broker with SIGKILL; its folder stays.
    pub(crate) fn kill(&mut self) {
        self.process.take().expect("the broker runs").kill();
    }

    /// Starts the broker again over its old folder and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        let mut command = self.java("kafka.Kafka");
        command.arg(self.folder.path().join("server.properties"));
        let mut process = Process::start("kafka", &mut command, self.folder.path());
        eventually("the broker answers", Duration::from_secs(90), async || {
            if let Some(status) = process.ended() {
                panic!("the broker left with {status}: {}", process.stderr());
            }
            let mut list = self.kcat();
            list.args(["-L", "-m", "1"]);
            let output = run(list, "").await;
            String::from_utf8_lossy(&output.stdout)
                .contains(&self.address())
                .then_some(())
        })
        .await;
        self.process = Some(process);
    }

    /// Makes a topic.
    pub(crate) async fn make_topic(&self, topic: &str, partitions: u32) {
        let mut command = self.java("org.apache.kafka.tools.TopicCommand");
        command.args([
            "--bootstrap-server",
            &self.address(),
            "--create",
            "--topic",
            topic,
        ]);
        command.args([
            "--partitions",
            &partitions.to_string(),
            "--replication-factor",
            "1",
        ]);
        succeed("TopicCommand", run(command, "").await);
    }

    /// Lets a user do something: `--operation Read --topic orders`, as Kafka's own command takes it.
    pub(crate) async fn allow(&self, user: &str, what: &str) {
        let mut command = self.java("org.apache.kafka.tools.AclCommand");
        command.args(["--bootstrap-server", &self.address(), "--add"]);
        command.args(["--allow-principal", &format!("User:{user}")]);
        command.args(what.split(' '));
        succeed("AclCommand", run(command, "").await);
    }

    /// Everything in a topic, partition by partition, as kcat reads it; empty while there is no such topic.
    pub(crate) async fn read(&self, topic: &str) -> Vec<Record> {
        let mut command = self.kcat();
        command
            .args(["-C", "-t", topic])
            .args("-o beginning -e -q -J -m 5".split(' '));
        let output = run(command, "").await;
        let mut records: Vec<Record> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("kcat writes JSON"))
            .collect();
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// Waits until a topic holds `count` records or more, and reads them.
    pub(crate) async fn read_at_least(&self, topic: &str, count: usize) -> Vec<Record> {
        let what = format!("{topic} holds {count} records");
        eventually(&what, Duration::from_secs(30), async || {
            Some(self.read(topic).await).filter(|records| records.len() >= count)
        })
        .await
    }

    /// The first `count` records of a topic as Java's `KafkaConsumer` gives them, by Kafka's own console consumer, which
    /// writes each byte as it came. The keys and headers must not hold the separators of ASCII.
    pub(crate) async fn read_by_java(&self, topic: &str, count: usize) -> Vec<Record> {
        let mut command = self.java("org.apache.kafka.tools.consumer.ConsoleConsumer");
        command.args(["--bootstrap-server", &self.address(), "--topic", topic]);
        command.args(["--from-beginning", "--timeout-ms", "30000"]);
        command.args(["--max-messages", &count.to_string()]);
        for part in ["partition", "offset", "headers", "key", "value"] {
            command.args(["--property", &format!("print.{part}=true")]);
        }
        for property in [
            format!("line.separator={RECORD}"),
            format!("key.separator={FIELD}"),
            format!("headers.separator={HEADER}"),
            format!("null.literal={NULL}"),
        ] {
            command.args(["--property", &property]);
        }
        let output = run(command, "").await;
        let text = String::from_utf8(output.stdout.clone()).expect("the records are UTF-8");
        succeed("ConsoleConsumer", output);
        let mut records: Vec<Record> = text.split_terminator(RECORD).map(told_by_java).collect();
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// Produces `key|value` lines with Kafka's own console producer, so with Java's partitioner.
    pub(crate) async fn produce_by_java(&self, topic: &str, lines: &str) {
        let mut command = self.java("org.apache.kafka.tools.ConsoleProducer");
        command.args(["--bootstrap-server", &self.address(), "--topic", topic]);
        command.args([
            "--property",
            "parse.key=true",
            "--property",
            "key.separator=|",
        ]);
        succeed("ConsoleProducer", run(command, lines).await);
    }

    /// What Kafka's own consumer-groups command says of a group: committed offset and log end, by partition.
    /// Partitions without a commit are left out.
    pub(crate) async fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, (i64, i64)> {
        let mut command = self.java("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand");
        command.args([
            "--bootstrap-server",
            &self.address(),
            "--describe",
            "--group",
            group,
        ]);
        let output = run(command, "").await;
        let text = String::from_utf8_lossy(&output.stdout);
        // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …, with `-` where there is none.
        let row = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [named, of, partition, current, end, ..] = words[..] else {
                return None;
            };
            (named == group && of == topic).then_some(())?;
            Some((
                partition.parse().ok()?,
                (current.parse().ok()?, end.parse().ok()?),
            ))
        };
        text.lines().filter_map(row).collect()
    }

    /// Waits until the group's committed offsets stand at the end of each partition, and fails unless the topic
    /// then holds exactly `records`.
    pub(crate) async fn wait_for_no_lag(&self, group: &str, topic: &str, records: usize) {
        let what = format!("group {group} has committed all {records} records of {topic}");
        eventually(&what, Duration::from_secs(60), async || {
            let rows = self.committed(group, topic).await;
            let level = rows.values().all(|(current, end)| current == end);
            let sum: i64 = rows.values().map(|(current, _)| current).sum();
            (level && sum == records as i64).then_some(())
        })
        .await;
    }

    fn java(&self, class: &str) -> Command {
        let mut command = Command::new("java");
        command
            .args(JAVA)
            .arg("-cp")
            .arg(self.jars.join("*"))
            .arg(class);
        // Where the JVM would otherwise leave its crash reports and logs.
        command.current_dir(self.folder.path());
        command
    }

    fn kcat(&self) -> Command {
        let mut command = Command::new("kcat");
        command.args(["-b", &self.address()]);
        command
    }
}

impl Record {
    /// The headers by name; the last of equal ones.
    pub(crate) fn headers<'a>(&'a self) -> BTreeMap<&'a str, &'a str> {
        let text = |part: &'a Option<String>| part.as_deref().unwrap_or("");
        self.headers
            .chunks_exact(2)
            .map(|pair| (text(&pair[0]), text(&pair[1])))
            .collect()
    }

    /// A header that must be there.
    pub(crate) fn header(&self, name: &str) -> &str {
        let headers = self.headers();
        headers
            .get(name)
            .copied()
            .unwrap_or_else(|| panic!("no {name} in {headers:?}"))
    }

    /// The value as text; empty if there is none.
    pub(crate) fn text(&self) -> &str {
        self.value.as_deref().unwrap_or("")
    }
}

/// `Partition:0 Offset:7 name:value,name:value key value`, with our separators.
fn told_by_java(line: &str) -> Record {
    let parts: Vec<_> = line.splitn(5, FIELD).collect();
    let [partition, offset, headers, key, value] = parts[..] else {
        panic!("not a record: {line:?}")
    };
    let number = |text: &str| {
        text.split_once(':')
            .and_then(|(_, number)| number.parse().ok())
    };
    let unless_null = |text: &str| (text != NULL).then(|| text.to_owned());
    let header = |text: &str| {
        let (name, value) = text.split_once(':').expect("a header has a name");
        [Some(name.to_owned()), unless_null(value)]
    };
    let headers = match headers {
        "NO_HEADERS" => Vec::new(),
        some => some.split(HEADER).flat_map(header).collect(),
    };
    Record {
        partition: number(partition).expect("a partition") as i32,
        offset: number(offset).expect("an offset"),
        key: unless_null(key),
        value: unless_null(value),
        headers,
    }
}

fn tools() -> Result<(), String> {
    let java = Command::new("java").arg("-version").output();
    let java = java.map_err(|_| format!("there is no java: {REMEDY}"))?;
    // `openjdk version "17.0.15" 2025-04-15`, and `"1.8.0_…"` before 9.
    let text = String::from_utf8_lossy(&java.stderr).into_owned();
    let major = text
        .split('"')
        .nth(1)
        .and_then(|version| version.split(['.', '-', '+']).next());
    let major: u32 = major.and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < 17 {
        let first = text.lines().next().unwrap_or("it says nothing");
        return Err(format!("java is not 17 or later ({first}): {REMEDY}"));
    }
    for (tool, flag) in [("mvn", "-v"), ("kcat", "-V")] {
        let found = Command::new(tool).arg(flag).output();
        found.map_err(|_| format!("there is no {tool}: {REMEDY}"))?;
    }
    Ok(())
}

fn fetch() -> Result<PathBuf, String> {
    let pom = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/pom.xml");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("tmp is in target");
    let jars = target.join("kafka").join(VERSION);
    // The copy of the pom is written last: a folder with the same one is whole and current.
    let same = |kept| fs::read(&pom).is_ok_and(|now| now == kept);
    if fs::read(jars.join("pom.xml")).is_ok_and(same) {
        return Ok(jars);
    }
    announce(&format!(
        "real: fetching Apache Kafka {VERSION} by Maven, once"
    ));
    let partial = TempDir::with_prefix_in("wayside-kafka-jars-", env!("CARGO_TARGET_TMPDIR"));
    let partial = partial.map_err(|error| format!("no folder for the jars: {error}"))?;
    let output = Command::new("mvn")
        .args(["-q", "-B", "-f"])
        .arg(&pom)
        .arg("dependency:copy-dependencies")
        .arg(format!("-DoutputDirectory={}", partial.path().display()))
        .output()
        .map_err(|error| format!("mvn does not start: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        let first = text
            .lines()
            .find(|line| line.contains("ERROR"))
            .unwrap_or("no reason given");
        return Err(format!(
            "mvn cannot fetch Kafka ({first}): let it reach Maven Central"
        ));
    }
    install(&pom, partial, &jars).map_err(|error| format!("the jars cannot be kept: {error}"))?;
    Ok(jars)
}

fn install(pom: &Path, partial: TempDir, jars: &Path) -> std::io::Result<()> {
    fs::copy(pom, partial.path().join("pom.xml"))?;
    fs::create_dir_all(jars.parent().unwrap_or(jars))?;
    if jars.exists() {
        fs::remove_dir_all(jars)?;
    }
    fs::rename(partial.keep(), jars)
}

fn properties(port: u16, controller: u16, data: &Path) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
num.partitions=4
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
share.coordinator.state.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2500
",
        data = data.display()
    )
}

/// A port below the range from which the kernel takes outgoing ones: while the broker is down, no client that
/// knocks at its port can be given that very port and end up talking to itself.
pub(crate) fn free_port() -> u16 {
    std::iter::repeat_with(|| 20_000 + fastrand::u16(..10_000))
        .take(1_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("loopback has a free port")
}

async fn run(command: Command, input: &str) -> Output {
    let mut command = tokio::process::Command::from(command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().expect("the tool was found before");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // A tool that does not read its input closes the pipe: not an error of ours.
    drop(stdin.write_all(input.as_bytes()).await);
    drop(stdin);
    child.wait_with_output().await.expect("the child is ours")
}

fn succeed(what: &str, output: Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} failed: {said}");
}
