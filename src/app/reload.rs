//! A reload: compile, build beside the old generation, then swap. On any error the old one goes on.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::Sidecar;
use super::live::Live;
use crate::config::model::Config;
use crate::config::{FILE_BYTES_MAX, ReadFile};
use crate::telemetry::names;

/// How often the file is looked at. Its content is compared, not its time: Kubernetes swaps a link for a mounted file,
/// and editors write anew without changing anything.
pub const LOOK: Duration = Duration::from_secs(1);

/// What a reload came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// The new generation is in force.
    Swapped,
    /// The content is what it was.
    Unchanged,
}

/// Notices when the content of a file changes, or of those that were read with it.
pub struct Watcher {
    path: PathBuf,
    seen: Option<[u8; 32]>,
    others: Vec<ReadFile>,
}

impl Watcher {
    /// Starts with the content of now.
    pub fn new(path: &Path) -> Self {
        let mut watcher = Self {
            path: path.to_owned(),
            seen: None,
            others: Vec::new(),
        };
        watcher.changed();
        watcher
    }

    /// Also looks at these files, and no others, from what was read of them on.
    pub fn follow(&mut self, others: Vec<ReadFile>) {
        self.others = others;
    }

    /// Whether the content of any file differs from the last look. A file that can not be read has not changed: it may be
    /// in the middle of its replacement.
    pub fn changed(&mut self) -> bool {
        let mut changed = differs(&self.path, &mut self.seen);
        for file in &mut self.others {
            changed |= differs(&file.path, &mut file.digest);
        }
        changed
    }
}

fn differs(path: &Path, seen: &mut Option<[u8; 32]>) -> bool {
    let Ok(content) = content(path) else {
        return false;
    };
    let digest: [u8; 32] = Sha256::digest(&content).into();
    seen.replace(digest) != Some(digest)
}

/// What a file holds, as far as a configuration may be long. Only a file: a pipe in its place would hold the reader, and
/// with it every door, for ever.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut content = Vec::new();
    let file = File::open(path)?;
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut content)?;
    Ok(content)
}

impl Sidecar {
    /// Puts a new configuration in force: its routes, its services and its subscriptions. Everything else is bound to
    /// sockets and folders, and a change there is refused rather than ignored.
    ///
    /// # Errors
    /// Which sections need a restart, or what could not be built. The old configuration stays in force.
    pub async fn reload(&self, config: Config) -> Result<Reloaded, String> {
        let reloaded = self.try_reload(config).await;
        let word = match &reloaded {
            Ok(Reloaded::Swapped) => "ok",
            Ok(Reloaded::Unchanged) => "unchanged",
            Err(_) => "refused",
        };
        self.count_reload(word);
        reloaded
    }

    /// Counts a reload that did not get as far as a compiled configuration.
    pub fn count_reload(&self, word: &str) {
        self.metrics
            .counter(&names::RELOADS, &[("result", word)])
            .increment(1);
    }

    /// Tells how many log lines were lost so far.
    pub fn count_dropped_lines(&self, lines: u64) {
        self.metrics
            .counter(&names::LOG_DROPPED, &[])
            .absolute(lines);
    }

    async fn try_reload(&self, config: Config) -> Result<Reloaded, String> {
        let old = self.live.load_full();
        let (before, after) = (sections(&old.config), sections(&config));
        if before == after {
            return Ok(Reloaded::Unchanged);
        }
        let fixed: Vec<&str> = before
            .iter()
            .zip(&after)
            .filter(|((name, old), (_, new))| {
                old != new && !matches!(*name, "outbound.routes" | "services" | "subscriptions")
            })
            .map(|((name, _), _)| *name)
            .collect();
        if !fixed.is_empty() {
            return Err(format!("a change of {} needs a restart", fixed.join(", ")));
        }
        let config = Arc::new(config);
        let live = Live::build(Arc::clone(&config), &self.parts, Some(&old)).await;
        let live = live.map_err(|error| error.to_string())?;
        // Routes and services first: a new subscription may need a new service for its claims. If a consumer does not
        // start, the old generation is put back.
        self.live.store(Arc::new(live));
        if let Some(consumers) = &self.consumers
            && let Err(error) = consumers.apply(&config).await
        {
            self.live.store(old);
            return Err(error.to_string());
        }
        let services = &self.live.load().services;
        let gone = old.services.iter();
        gone.filter(|(name, _)| !services.contains_key(*name))
            .for_each(|(_, upstream)| upstream.retire());
        self.parts.upstream.changes.tell();
        Ok(Reloaded::Swapped)
    }
}

/// The configuration in comparable pieces. Debug text is exact for plain data; secrets are compared apart, since theirs
/// is blanked.
fn sections(config: &Config) -> [(&'static str, String); 18] {
    let secrets = config.kafka.as_ref().map(|kafka| {
        kafka
            .properties
            .iter()
            .map(|(_, value)| value.reveal().to_owned())
            .collect::<Vec<_>>()
    });
    let outbound = config.outbound.as_ref();
    [
        (
            "outbound.routes",
            format!("{:?}", outbound.map(|door| &door.routes)),
        ),
        ("services", format!("{:?}", config.services)),
        ("service", config.service.clone()),
        ("app", format!("{:?}", config.app)),
        (
            "outbound.listen",
            format!("{:?}", outbound.map(|door| door.listen)),
        ),
        ("inbound", format!("{:?}", config.inbound)),
        ("subscriptions", format!("{:?}", config.subscriptions)),
        ("kafka", format!("{:?} {secrets:?}", config.kafka)),
        ("tls", format!("{:?}", config.tls)),
        ("dns", format!("{:?}", config.dns)),
        ("spool", format!("{:?}", config.spool)),
        ("claims", format!("{:?}", config.claims)),
        ("messages", format!("{:?}", config.messages)),
        ("probe", format!("{:?}", config.probe)),
        ("admin", format!("{:?}", config.admin)),
        ("drain", format!("{:?}", config.drain)),
        ("limits", format!("{:?}", config.limits)),
        ("telemetry", format!("{:?}", config.telemetry)),
    ]
}
