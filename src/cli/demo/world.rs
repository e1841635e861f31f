//! The world of the demo: the services, a sidecar beside each, and the broker between them.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time;

use super::child::{Broker, Sidecar, Tails};
use super::ledger::Ledger;
use super::order::Order;
use super::plain_http::{self, Client, Server};
use super::progress::Progress;
use super::services::{self, Orders};
use super::wait::{Result, Trouble, within};
use super::yaml::{self, Names};

/// How long the first order may need: a broker makes its topic for it.
const FIRST_ORDER_LIMIT: Duration = Duration::from_secs(20);

/// Pause between two attempts to publish while the broker is not there.
pub(super) const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);

/// Everything that runs. Dropping it ends it all.
pub(super) struct World {
    /// The service that starts every call.
    pub(super) orders: Arc<Orders>,
    /// What the services saw.
    pub(super) ledger: Arc<Ledger>,
    /// The replicas of the catalog that are alive.
    pub(super) catalog: Vec<Replica>,
    /// The sidecars of orders, billing and audit, in this order.
    pub(super) sidecars: [Sidecar; 3],
    /// The broker, if it is ours.
    pub(super) broker: Option<Broker>,
    /// Topics and groups.
    pub(super) names: Names,
    /// Where orders listens.
    pub(super) orders_app: SocketAddr,
    /// Its service and those of billing and audit.
    _apps: [Server; 3],
    /// Last, because the sidecars write there until they are gone.
    pub(super) folder: Folder,
}

/// One replica of the catalog: dropping it is the death of a pod.
pub(super) struct Replica {
    sidecar: Sidecar,
    _app: Server,
}

/// A temporary folder that only this user may read.
pub(super) struct Folder(PathBuf);

impl World {
    /// Starts everything and returns when the first order has its 202; `kafka` is a broker that is not ours.
    ///
    /// # Errors
    /// The step that failed or hung.
    pub(super) async fn start(
        kafka: Option<&str>,
        tails: &Tails,
        progress: &Progress,
    ) -> Result<Self> {
        let folder = Folder::new()?;
        let ledger = Arc::<Ledger>::default();
        let (names, broker) = match kafka {
            Some(address) => (
                Names::lasting(&format!("-{:08x}", fastrand::u32(..)), address),
                None,
            ),
            None => {
                progress.say("starting a broker in memory");
                let broker = Broker::start(tails).await?;
                (Names::in_memory(&broker.address), Some(broker))
            }
        };

        progress.say("starting three replicas of catalog, each with its sidecar");
        let (one, two, three) = tokio::try_join!(
            Replica::start(1, &folder, tails),
            Replica::start(2, &folder, tails),
            Replica::start(3, &folder, tails),
        )?;
        let catalog = vec![one, two, three];
        let doors = catalog
            .iter()
            .map(Replica::door)
            .collect::<Result<Vec<_>>>()?;

        progress.say("starting orders, billing and audit, each with its sidecar");
        let (listener, orders_app) = plain_http::listen().await?;
        let file = names.orders(orders_app, &doors, &folder.path("claims"));
        let sidecar = folder.sidecar("orders", &file, tails).await?;
        let orders = Arc::new(Orders::new(sidecar.outbound()?, Arc::clone(&ledger)));
        let app = {
            let orders = Arc::clone(&orders);
            Server::start(listener, move |request| Arc::clone(&orders).serve(request))
        };
        let claims = sidecar.inbound()?;
        // The first order makes the topic, so that the consumers need not wait to see it.
        first_order(&orders).await?;
        let ((billing, billing_app), (audit, audit_app)) = tokio::try_join!(
            start_billing(&names, claims, (&folder, tails), &ledger),
            start_audit(&names, claims, (&folder, tails), &ledger),
        )?;
        let (sidecars, apps) = ([sidecar, billing, audit], [app, billing_app, audit_app]);
        Ok(Self {
            orders,
            ledger,
            catalog,
            sidecars,
            broker,
            names,
            orders_app,
            _apps: apps,
            folder,
        })
    }

    /// The sidecar of orders.
    pub(super) fn orders_sidecar(&self) -> &Sidecar {
        &self.sidecars[0]
    }

    /// Every metric of the sidecar of orders.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) async fn metrics(&self) -> Result<String> {
        let admin = self.orders_sidecar().admin()?;
        let answer = Client::new(admin)
            .get(&admin.to_string(), "/metrics")
            .await?;
        Ok(String::from_utf8_lossy(answer.body()).into_owned())
    }
}

async fn first_order(orders: &Orders) -> Result<()> {
    let mut client = orders.client();
    let number = orders.number();
    within("publishing a first order", FIRST_ORDER_LIMIT, async {
        loop {
            let placed = orders.place(&mut client, Order::new(number)).await?;
            match placed.answer.status() {
                StatusCode::ACCEPTED => return Ok(()),
                StatusCode::SERVICE_UNAVAILABLE => time::sleep(ATTEMPT_PAUSE).await,
                status => {
                    let body = String::from_utf8_lossy(placed.answer.body());
                    let text = format!("the first order was answered with {status}: {body}");
                    return Err(Trouble::new(text));
                }
            }
        }
    })
    .await
}

async fn start_billing(
    names: &Names,
    claims: SocketAddr,
    (folder, tails): (&Folder, &Tails),
    ledger: &Arc<Ledger>,
) -> Result<(Sidecar, Server)> {
    let (listener, app) = plain_http::listen().await?;
    let ledger = Arc::clone(ledger);
    let serve = move |request| services::billing(Arc::clone(&ledger), request);
    let server = Server::start(listener, serve);
    Ok((
        folder
            .sidecar("billing", &names.billing(app, claims), tails)
            .await?,
        server,
    ))
}

async fn start_audit(
    names: &Names,
    claims: SocketAddr,
    (folder, tails): (&Folder, &Tails),
    ledger: &Arc<Ledger>,
) -> Result<(Sidecar, Server)> {
    let (listener, app) = plain_http::listen().await?;
    let ledger = Arc::clone(ledger);
    let serve = move |request| services::audit(Arc::clone(&ledger), request);
    let server = Server::start(listener, serve);
    Ok((
        folder
            .sidecar("audit", &names.audit(app, claims), tails)
            .await?,
        server,
    ))
}

impl Replica {
    async fn start(number: u8, folder: &Folder, tails: &Tails) -> Result<Self> {
        let (listener, app) = plain_http::listen().await?;
        let server = Server::start(listener, services::catalog);
        let name = format!("catalog-{number}");
        let sidecar = folder.sidecar(&name, &yaml::catalog(app), tails).await?;
        Ok(Self {
            sidecar,
            _app: server,
        })
    }

    fn door(&self) -> Result<SocketAddr> {
        self.sidecar.inbound()
    }
}

impl Folder {
    fn new() -> Result<Self> {
        let name = format!(
            "wayside-demo-{}-{:08x}",
            std::process::id(),
            fastrand::u32(..)
        );
        let path = std::env::temp_dir().join(name);
        // Fails if somebody else has made it, which is what a shared /tmp asks for.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Trouble::new(format!("no folder {}: {error}", path.display())))?;
        Ok(Self(path))
    }

    /// A path below it, as text.
    pub(super) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    async fn sidecar(&self, name: &str, yaml: &str, tails: &Tails) -> Result<Sidecar> {
        let file = self.path(&format!("{name}.yaml"));
        let written = std::fs::write(&file, yaml);
        written.map_err(|error| Trouble::new(format!("{file}: {error}")))?;
        Sidecar::start(name, Path::new(&file), tails).await
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A killed sidecar may finish one more write while the folder is being removed.
        for _ in 0..5 {
            if std::fs::remove_dir_all(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
