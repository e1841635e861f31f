//! `claims`: where whole bodies are kept while slim ones travel.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::{Pointer, Secret, Survives, duration};

/// A store of whole bodies.
#[derive(Debug, Clone, Serialize)]
pub struct ClaimStore {
    /// The word used by `slim.claim`.
    pub name: String,
    /// How long a claim is served; default 1 h.
    #[serde(serialize_with = "duration")]
    pub ttl: Duration,
    /// Where its bodies are.
    #[serde(flatten)]
    pub place: ClaimPlace,
}

/// Where a store has its bodies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimPlace {
    /// In a folder of this sidecar alone, which serves them to its peers.
    Disk(ClaimFolder),
    /// In a bucket or a shared folder, where every sidecar that names it reads and writes.
    Object(ClaimObjects),
    /// Nowhere: the service that made the body is asked for it again.
    Origin(ClaimTemplate),
}

/// A folder of one sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClaimFolder {
    /// Made if missing.
    pub path: PathBuf,
    /// What the folder outlives, told in every 202.
    pub survives: Survives,
    /// Bytes on disk; default 1 GiB.
    pub max: u64,
    /// What happens when that is used up.
    pub full: WhenFull,
}

/// What a full store does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// A call is a 503; what was promised is kept. The default.
    #[default]
    Refuse,
    /// The oldest bodies go before their time, counted and told in the log.
    Evict,
}

/// A place that many sidecars share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClaimObjects {
    /// The bucket or the folder.
    pub at: ObjectPlace,
    /// What it outlives, told in every 202; default `volume`.
    pub survives: Survives,
}

/// The kinds of shared places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectPlace {
    /// A bucket of an S3-compatible store.
    S3(Bucket),
    /// A folder that is mounted everywhere.
    Folder(PathBuf),
}

/// A bucket, and how it is reached. What is not said comes from the environment (`AWS_…`) or the platform.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What every object's name begins with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The server's address, `http://…` or `https://…`, if it is not AWS.
    pub endpoint: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// The id of the access key, and the key.
    pub key: Option<(String, Secret)>,
}

impl fmt::Display for ObjectPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3(bucket) if bucket.prefix.is_empty() => write!(f, "s3://{}", bucket.name),
            Self::S3(bucket) => write!(f, "s3://{}/{}", bucket.name, bucket.prefix),
            Self::Folder(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The address of a body at the service that made it: `http://orders/orders/{/id}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimTemplate {
    /// The service that is asked.
    pub service: String,
    /// The path and query, part by part; it begins with a text that begins with `/`.
    pub parts: Vec<TemplatePart>,
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    /// As it stands.
    Text(String),
    /// The value of a field of the slim body, percent-encoded.
    Field(Pointer),
}

impl ClaimTemplate {
    /// The fields that the address is made of.
    pub fn fields(&self) -> impl Iterator<Item = &Pointer> {
        self.parts.iter().filter_map(|part| match part {
            TemplatePart::Field(pointer) => Some(pointer),
            TemplatePart::Text(_) => None,
        })
    }
}

impl fmt::Display for ClaimTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.service)?;
        self.parts.iter().try_for_each(|part| match part {
            TemplatePart::Text(text) => f.write_str(text),
            TemplatePart::Field(pointer) => write!(f, "{{{pointer}}}"),
        })
    }
}

impl Serialize for ClaimTemplate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
