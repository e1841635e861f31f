//! Every metric's name, kind, unit and labels: the one place where they are spelled.
//!
//! Label values come from the configuration or from a fixed list of words, never from a call, so that no caller can
//! grow the number of series.

/// One metric.
#[derive(Debug)]
pub struct Name {
    /// As Prometheus shows it.
    pub name: &'static str,
    /// What it counts, with its unit.
    pub help: &'static str,
}

macro_rules! names {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $help:literal;)*) => {
        $($(#[$doc])* pub const $constant: Name = Name { name: $name, help: $help };)*

        /// All of them, for descriptions, documentation and tests.
        pub const ALL: &[Name] = &[$($constant),*];
    };
}

names! {
    /// Labels: `door`, `route`, `pattern`, `outcome` (`2xx` … `5xx`, or the word of our own refusal).
    CALLS = "wayside_calls_total", "calls answered, by how they ended";
    /// Labels: `door`, `route`.
    CALL_SECONDS = "wayside_call_seconds", "seconds from a call's head to its answer's head";
    /// Label: `door`.
    IN_FLIGHT = "wayside_calls_in_flight", "calls that have no complete answer yet";
    /// Label: `door`.
    CONNECTIONS = "wayside_connections", "open connections of a door";
    /// Labels: `service`, `reason` (`never-sent`, `no-answer`, `status`, `lost-race`).
    RETRIES = "wayside_retries_total", "tries repeated";
    /// Label: `service`.
    CONNECTS = "wayside_connects_total", "connections opened to a service";
    /// Label: `service`.
    CONNECT_FAILURES = "wayside_connect_failures_total", "connections that a service did not take";
    /// Label: `service`.
    ANSWERS_CUT = "wayside_answers_cut_total", "answers that broke off after they began";
    /// Label: `service`.
    ADDRESSES = "wayside_addresses", "addresses that a service has now";
    /// Label: `service`.
    ADDRESSES_OUT = "wayside_addresses_out", "addresses that are left out: ejected, or ill by a health check";
    /// Label: `service`.
    EJECTIONS = "wayside_ejections_total", "times that an address was left out for failing calls";
    /// Labels: `side` (`door`, `service`), `name`, `reason`.
    TLS_FAILURES = "wayside_tls_failures_total", "handshakes that failed";
    /// Labels: `tls`, `result` (`ok`, `refused`).
    TLS_RELOADS = "wayside_tls_reloads_total", "changed certificate files, by whether they were taken";
    /// Labels: `topic`, `outcome` (`replicated`, or the word of the refusal).
    PUBLISHED = "wayside_published_total", "messages given to the broker, by how that ended";
    /// Label: `topic`.
    PUBLISH_SECONDS = "wayside_publish_seconds", "seconds from a record's sending to what releases its 202";
    /// Label: `topic`.
    PUBLISHED_BYTES = "wayside_published_bytes_total", "bytes of record values that a 202 was given for";
    /// Label: `topic`.
    SLIMMED_BYTES = "wayside_slimmed_bytes_total", "bytes of bodies that stayed out of records";
    /// No label.
    PRODUCER_QUEUE = "wayside_producer_queue_messages", "records that wait for the broker's acknowledgement";
    /// Labels: `subscription`, `verdict` (`done`, `retry`, `dead-letter`, `drop`, `not-delivered`).
    DELIVERIES = "wayside_deliveries_total", "attempts to deliver a message, by their verdict";
    /// Label: `subscription`.
    DELIVERY_SECONDS = "wayside_delivery_seconds", "seconds of one attempt to deliver";
    /// Label: `subscription`.
    PARTITIONS = "wayside_partitions", "partitions that are assigned to this sidecar";
    /// Label: `subscription`.
    LANES_BUSY = "wayside_lanes_busy", "lanes whose message is being delivered or about to be";
    /// Label: `subscription`.
    LANES_PARKED = "wayside_lanes_parked", "lanes whose message waits for its next attempt";
    /// Label: `subscription`.
    LANES_QUARANTINED = "wayside_lanes_quarantined", "lanes whose messages go to the dead letters unattempted";
    /// Label: `subscription`.
    LAG = "wayside_lag_messages", "messages in the topic without a final verdict, as the broker said some seconds ago";
    /// Label: `subscription`.
    OLDEST = "wayside_oldest_message_seconds", "seconds that the oldest message under way has been that";
    /// Label: `subscription`.
    WINDOW_FULL = "wayside_window_full_total", "times that a message held up a whole partition";
    /// Label: `subscription`.
    SUBSCRIPTION_SHUT = "wayside_subscription_shut", "1 while nothing is delivered: the app is down or turns all away, or it is paused";
    /// Label: `subscription`.
    UNFINISHED = "wayside_messages_unfinished", "messages under way to their final verdict";
    /// Label: `subscription`.
    HEADERS_UNREAD = "wayside_record_headers_unread_total", "headers of records left out since their names are not UTF-8";
    /// Labels: `mode` (`lazy`, `eager`), `outcome` (`whole`, `fields`, `unchanged`, or the word of the refusal).
    HYDRATIONS = "wayside_hydrations_total", "claims asked for";
    /// Label: `mode` (`lazy`, `eager`).
    HYDRATIONS_CACHED = "wayside_hydrations_cached_total", "claims had without asking anybody";
    /// Label: `mode` (`lazy`, `eager`).
    HYDRATED_BYTES = "wayside_hydrated_bytes_total", "bytes of claims that were fetched";
    /// No label.
    HYDRATE_SECONDS = "wayside_hydrate_seconds", "from the first request for a claim to its last byte, of those not had already";
    /// Labels: `topic`, `group`.
    HYDRATION_RATIO = "wayside_hydration_ratio", "hydrations by slim messages delivered, of the last minutes";
    /// Labels: `topic`, `group`.
    HYDRATION_BREAK_EVEN = "wayside_hydration_break_even", "the ratio above which whole messages would cost less, from what things cost here";
    /// Label: `outcome` (`inlined`, `referenced`).
    DEAD_CLAIMS = "wayside_dead_letter_claims_total", "dead letters of slim messages, by whether the whole body is in them";
    /// Label: `store`.
    CLAIM_EVICTED = "wayside_claim_evicted_bytes_total", "bytes of claims that went before their time";
    /// Label: `store`.
    CLAIM_BYTES = "wayside_claim_bytes", "bytes that a claim store has on disk";
    /// No label.
    SPOOL_BYTES = "wayside_spool_bytes", "bytes that the spool has on disk";
    /// No label.
    SPOOL_OWED = "wayside_spool_messages", "messages in the spool that the broker does not have yet";
    /// No label.
    SPOOL_ASIDE = "wayside_spool_messages_aside", "messages in the spool that are too large for their topic";
    /// No label.
    SPOOL_LOST = "wayside_spool_messages_lost_total", "messages of the spool that damage has taken";
    /// No label.
    SPOOL_DAMAGED = "wayside_spool_damaged_bytes", "bytes of the spool that did not check when it was opened";
    /// Labels: `topic`, `outcome` (`answered`, `without-answer`, `too-late`).
    WAITS = "wayside_waits_total", "callers that waited for a result, by what they got";
    /// No label.
    RECEIPTS_WRITTEN = "wayside_receipts_written_total", "receipts that the broker acknowledged";
    /// Label: `reason` (`queue-full`, `broker`).
    RECEIPTS_DROPPED = "wayside_receipts_dropped_total", "receipts that were given up";
    /// Label: `outcome` (`taken`, `too-old`, `not-ours`, `malformed`).
    RECEIPTS_READ = "wayside_receipts_read_total", "receipts read from the reply topic";
    /// No label.
    REPLIES_READING = "wayside_replies_reading", "1 once the reply topic is read";
    /// No label.
    RESULT_BYTES = "wayside_result_bytes", "bytes of results that are kept";
    /// Labels: `route`, `reason` (`queued-behind-earlier`, or the word of what kept it from being sent).
    FALLBACKS = "wayside_fallbacks_total", "calls that were queued instead of forwarded, or were to be";
    /// No label.
    FALLBACK_KEYS = "wayside_fallback_keys", "keys whose calls queue until a verdict";
    /// No label.
    RESULT_STREAMS = "wayside_result_streams", "streams of results that are open";
    /// Label: `result` (`ok`, `unchanged`, `refused`).
    RELOADS = "wayside_config_reloads_total", "attempts to reload the configuration";
    /// No label.
    PANICS = "wayside_panics_total", "panics caught; each is a defect";
    /// No label.
    LOG_DROPPED = "wayside_log_lines_dropped_total", "log lines dropped because the queue was full";
    /// No label.
    SPANS_EXPORTED = "wayside_spans_exported_total", "spans that the collector took";
    /// Label: `reason` (`queue-full`, `unreachable`, `refused`).
    SPANS_DROPPED = "wayside_spans_dropped_total", "spans that the collector did not get";
    /// Label: `version`; always 1.
    BUILD = "wayside_build_info", "the running version";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_end_in_total_and_times_in_seconds() {
        for name in ALL {
            assert!(name.name.starts_with("wayside_"), "{}", name.name);
            assert!(!name.help.is_empty());
            assert!(!name.help.starts_with("seconds") || name.name.ends_with("_seconds"));
        }
    }
}
