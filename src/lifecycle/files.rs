//! How many files, and so sockets, the process may have open at a time.

use rlimit::{Resource, increase_nofile_limit};

/// What a machine's hard limit hardly ever is below, and a shell's or a service manager's soft one usually is: 1,024 is
/// for programs that still use `select`.
const AMPLE: u64 = 4096;

/// Raises the soft limit to the hard one, and warns where that is little: each call under way holds two connections.
pub fn raise_open_files() {
    match increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < AMPLE => tracing::warn!(
            limit,
            "few files may be open at a time, and each call under way takes two: raise the hard limit (ulimit -Hn)"
        ),
        Ok(limit) => tracing::debug!(limit, "files that may be open at a time"),
        Err(error) => {
            let limit = Resource::NOFILE.get_soft().unwrap_or_default();
            tracing::warn!(%error, limit, "the limit of open files can not be raised");
        }
    }
}
