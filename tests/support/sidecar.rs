//! A real sidecar inside the test's process: its YAML compiled by the product, its doors on ports of their own.

use std::net::SocketAddr;
use std::path::Path;

use wayside::app::{Addresses, Sidecar as Running, Surroundings};
use wayside::config;
use wayside::telemetry::metrics::Metrics;

/// A running sidecar; [`Sidecar::stop`] drains it.
pub(crate) struct Sidecar {
    running: Running,
}

impl Sidecar {
    /// Starts one from YAML. `admin` is put on a port of its own unless the YAML says where it is.
    pub(crate) async fn start(yaml: &str) -> Self {
        Self::try_start(yaml)
            .await
            .unwrap_or_else(|error| panic!("the sidecar does not start: {error}"))
    }

    /// Starts one, or tells why not.
    ///
    /// # Errors
    /// What the configuration or the start refuses.
    pub(crate) async fn try_start(yaml: &str) -> Result<Self, String> {
        let config = compile(yaml)?;
        let running = Running::start(config, surroundings())
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self { running })
    }

    /// Starts one from a file, which may name others that lie beside it.
    pub(crate) async fn start_file(file: &Path) -> Self {
        let config = load(file).unwrap_or_else(|error| panic!("{error}"));
        let running = Running::start(config, surroundings())
            .await
            .unwrap_or_else(|error| panic!("the sidecar does not start: {error}"));
        Self { running }
    }

    /// Reloads it with a file.
    ///
    /// # Errors
    /// Why the old configuration goes on.
    pub(crate) async fn reload_file(&self, file: &Path) -> Result<(), String> {
        self.running.reload(load(file)?).await.map(|_| ())
    }

    /// Where its doors are.
    pub(crate) fn addresses(&self) -> Addresses {
        self.running.addresses
    }

    /// The outbound door.
    pub(crate) fn outbound(&self) -> SocketAddr {
        self.running
            .addresses
            .outbound
            .expect("the YAML has an outbound door")
    }

    /// The inbound door.
    pub(crate) fn inbound(&self) -> SocketAddr {
        self.running
            .addresses
            .inbound
            .expect("the YAML has an inbound door")
    }

    /// Reloads it with other YAML.
    ///
    /// # Errors
    /// Why the old configuration goes on.
    pub(crate) async fn reload(&self, yaml: &str) -> Result<(), String> {
        self.running.reload(compile(yaml)?).await.map(|_| ())
    }

    /// The sum of a metric's series whose labels contain all of `labels` (each as `name="value"`).
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.running.metrics.upkeep();
        let text = self.running.metrics.render();
        let series = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        series
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// Its counts, also for after its end.
    pub(crate) fn metrics(&self) -> Metrics {
        self.running.metrics.clone()
    }

    /// Drains it and says whether everything ended in time.
    pub(crate) async fn stop(self) -> bool {
        self.stop_saying().await.is_empty()
    }

    /// Drains it and names what did not end in its time.
    pub(crate) async fn stop_saying(self) -> Vec<&'static str> {
        self.running.stop().await
    }
}

fn surroundings() -> Surroundings {
    Surroundings {
        workers: Some(1),
        ..Surroundings::default()
    }
}

fn load(file: &Path) -> Result<config::model::Config, String> {
    let loaded = config::load(file, &|_| None).map_err(|report| report.to_string())?;
    Ok(loaded.config)
}

fn compile(yaml: &str) -> Result<config::model::Config, String> {
    let yaml = match yaml.contains("\nadmin:") {
        true => yaml.to_owned(),
        false => format!("{}\nadmin: {{ listen: 127.0.0.1:0 }}\n", yaml.trim_end()),
    };
    let loaded =
        config::compile("test.yaml", &yaml, &|_| None).map_err(|report| report.to_string())?;
    Ok(loaded.config)
}
