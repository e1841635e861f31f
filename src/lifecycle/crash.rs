//! Points at which a test can end the process as abruptly as a power cut ends it. Only builds with debug assertions
//! have them.

/// Ends the process here if `WAYSIDE_CRASH_AT` names this point: `NAME`, or `NAME:N` for the Nth time that it is passed.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("WAYSIDE_CRASH_AT").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), AtomicU64::new(times.parse().ok()?)))
    });
    let Some((wanted, left)) = wanted else { return };
    if wanted == name && left.fetch_sub(1, Ordering::Relaxed) == 1 {
        std::process::abort();
    }
}

/// Nothing, in a build without debug assertions.
#[cfg(not(debug_assertions))]
pub fn point(_name: &str) {}
