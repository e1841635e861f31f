//! From YAML to a [`model::Config`]: raw located nodes, then one walk that collects every error.
//!
//! `raw` turns the parser's events into a tree in which each node knows its place; `read` has the typed
//! readers, which note an error and go on; `compile` walks the tree once, section by section, and ends in
//! plain data, with `places` beside it for whoever finds something out later. Serde has no part in it, because it stops at its first error and has no place for it.

mod address;
mod compile;
mod diagnostic;
mod expand;
mod files;
pub mod model;
mod names;
mod patterns;
mod places;
mod raw;
mod read;
mod schema;
pub mod units;
mod words;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use address::parse_address;
pub use diagnostic::{Diagnostic, Invalid, Report};
pub use files::ReadFile;
pub use places::Places;
pub use words::{accepted_keys, later_keys, nearest};

use diagnostic::{Collector, Place};
use files::{Files, Folder, Unread};
use model::Secret;
use read::Source;
use schema::Schemas;

/// The largest file that is read, in bytes; a bigger one is refused.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// What a good file gives.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Only valid values, defaults filled.
    pub config: model::Config,
    /// What is allowed but probably not meant, by line and column.
    pub warnings: Vec<Diagnostic>,
    /// The other files that went into it.
    pub files: Vec<ReadFile>,
    /// Where each value stands.
    pub places: Places,
}

/// Knows the properties of the broker's client, which this module does not. No word of it repeats a value.
pub trait Judge {
    /// Why a property can not be set so, whatever the others are.
    fn alone(&self, name: &str, value: &str) -> Option<Invalid>;

    /// Why they can not be set together, and which of them is to blame if that can be told.
    fn together(
        &self,
        properties: &[(String, Secret)],
        clients: Clients,
    ) -> Option<(Option<String>, Invalid)>;
}

/// Which clients of the broker a file needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Only one that sends.
    Producer,
    /// One that consumes as well.
    Both,
}

/// Takes every property.
struct Anything;

impl Judge for Anything {
    fn alone(&self, _name: &str, _value: &str) -> Option<Invalid> {
        None
    }

    fn together(
        &self,
        _properties: &[(String, Secret)],
        _clients: Clients,
    ) -> Option<(Option<String>, Invalid)> {
        None
    }
}

/// Reads and compiles a file; `env` answers what `${VAR}` stands for. Nobody is asked about the broker's properties.
///
/// # Errors
///
/// Lists every mistake of the file, or why it cannot be read: a folder, no permission, over
/// [`FILE_BYTES_MAX`], not UTF-8.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Report> {
    load_judged(path, env, &Anything)
}

/// Reads and compiles a file as [`load`] does, and asks `judge` about the broker's properties.
///
/// # Errors
///
/// As [`load`], with what `judge` finds among the others.
pub fn load_judged(
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    judge: &dyn Judge,
) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    let bytes = read(path).map_err(|reason| Report::single(&name, Place::START, reason))?;
    // What a file names usually lies beside it, wherever the process was started.
    let folder = Folder::of(path);
    let files = &folder;
    let mut compiled = compile_bytes(&name, &bytes, &Asked { env, judge, files });
    if let Ok(loaded) = &mut compiled {
        for files in &mut loaded.config.tls {
            for file in [&mut files.cert, &mut files.key, &mut files.ca] {
                *file = folder.join(file);
            }
        }
    }
    let files = folder.sources();
    match compiled {
        Ok(loaded) => Ok(Loaded { files, ..loaded }),
        Err(report) => Err(Report { files, ..report }),
    }
}

/// Compiles the text of a file that errors call `name`; pure, but for what `env` answers. Other files are not read: each
/// schema is taken for one that takes everything.
///
/// # Errors
///
/// Lists every mistake of the text.
pub fn compile(
    name: &str,
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Report> {
    let (judge, files) = (&Anything, &Unread);
    compile_bytes(name, text.as_bytes(), &Asked { env, judge, files })
}

/// What a compile asks, since it looks at nothing itself.
struct Asked<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    judge: &'a dyn Judge,
    files: &'a dyn Files,
}

fn compile_bytes(name: &str, bytes: &[u8], asked: &Asked<'_>) -> Result<Loaded, Report> {
    if bytes.len() > FILE_BYTES_MAX {
        let reason = "the file is over 1 MiB, the most that is read";
        return Err(Report::single(name, Place::START, reason));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let place = Place::after(&bytes[..error.valid_up_to()]);
        Report::single(
            name,
            place,
            "the file is not UTF-8 text: this byte is not part of a character",
        )
    })?;
    let collector = Collector::new(name);
    let schemas = Schemas::new(asked.files);
    let source = Source {
        errors: &collector,
        env: asked.env,
        judge: asked.judge,
        schemas: &schemas,
    };
    let root = raw::parse(text, &collector);
    let config = root.as_ref().and_then(|root| compile::config(root, source));
    let (errors, warnings) = collector.finish();
    match config.zip(root) {
        Some((config, root)) if errors.is_empty() => Ok(Loaded {
            config,
            warnings,
            files: Vec::new(),
            places: Places::of(name, &root),
        }),
        _ => Err(Report {
            errors,
            files: Vec::new(),
        }),
    }
}

/// Reads one byte more than is allowed, so that a device or a growing file cannot fill the memory.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("the file cannot be read: {}", reason(&error));
    let file = File::open(path).map_err(cannot)?;
    if file.metadata().map_err(cannot)?.is_dir() {
        return Err("this is a folder, not a file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    Ok(bytes)
}

/// The system's words without its error number.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(letters).collect()
    })
}
