//! A broker inside this process, for trying things out and for tests: no Java, nothing to install, nothing kept.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rdkafka::mocking::MockCluster;

use super::client::{Bootstrap, SetupError};

/// What the embedded broker does not do, to be printed where one is started.
pub const LIMITS: &str = "\
the embedded broker is for trying things out:
  it keeps records in memory only, at most 5 MiB or 100,000 batches a partition, and forgets the oldest silently
  it creates any topic that is asked for, always with 4 partitions
  it checks no size, no authorization and no TLS, and compacts nothing
  a consumer group waits 3 s for its first member, and about as long whenever its members change
  its delays say nothing about a real broker's, and it proves nothing about idempotence";

/// Partitions of a topic that is created by asking for it.
pub const PARTITIONS: i32 = 4;

/// One broker on a loopback port of its own choice. It ends when this is dropped.
#[derive(Debug)]
pub struct Embedded {
    address: String,
    /// At most one order waits, and each is answered before the next.
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Down(SyncSender<Result<(), String>>),
    Up(SyncSender<Result<(), String>>),
    Create(String, i32, SyncSender<Result<(), String>>),
}

impl Embedded {
    /// Starts it. The native cluster is bound to the thread that made it, so it gets one.
    ///
    /// # Errors
    /// The system gives no thread or no port.
    pub fn start() -> Result<Self, SetupError> {
        let (orders, received) = sync_channel(1);
        let (ready, address) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("wayside-broker".into())
            .spawn(move || serve(&received, &ready))?;
        let address = address
            .recv()
            .unwrap_or_else(|_| Err("its thread ended".into()))
            .map_err(SetupError::Client)?;
        Ok(Self {
            address,
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            address: self.address.clone(),
            embedded: true,
        }
    }

    /// Closes every connection and takes no new one; the records stay.
    ///
    /// # Errors
    /// The native cluster refuses.
    pub fn down(&self) -> Result<(), SetupError> {
        self.order(Order::Down)
    }

    /// Takes connections again.
    ///
    /// # Errors
    /// The native cluster refuses.
    pub fn up(&self) -> Result<(), SetupError> {
        self.order(Order::Up)
    }

    /// Creates a topic with a number of partitions of its own.
    ///
    /// # Errors
    /// The topic exists.
    pub fn create(&self, topic: &str, partitions: i32) -> Result<(), SetupError> {
        self.order(|reply| Order::Create(topic.to_owned(), partitions, reply))
    }

    fn order(
        &self,
        order: impl FnOnce(SyncSender<Result<(), String>>) -> Order,
    ) -> Result<(), SetupError> {
        let gone = || SetupError::Client("the embedded broker has ended".into());
        let (reply, answer) = sync_channel(1);
        self.orders
            .as_ref()
            .ok_or_else(gone)?
            .send(order(reply))
            .map_err(|_| gone())?;
        answer
            .recv()
            .map_err(|_| gone())?
            .map_err(SetupError::Client)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the embedded broker's thread panicked");
        }
    }
}

fn serve(orders: &Receiver<Order>, ready: &SyncSender<Result<String, String>>) {
    let started = MockCluster::new(1);
    let address = match &started {
        Ok(cluster) => Ok(cluster.bootstrap_servers()),
        Err(error) => Err(format!("no embedded broker: {error}")),
    };
    if ready.send(address).is_err() {
        return;
    }
    let Ok(cluster) = started else { return };
    const ALL: i32 = -1;
    while let Ok(order) = orders.recv() {
        let (done, reply) = match order {
            Order::Down(reply) => (cluster.broker_down(ALL), reply),
            Order::Up(reply) => (cluster.broker_up(ALL), reply),
            Order::Create(topic, partitions, reply) => {
                (cluster.create_topic(&topic, partitions, 1), reply)
            }
        };
        // Whoever asked may have gone.
        drop(reply.send(done.map_err(|error| error.to_string())));
    }
}
