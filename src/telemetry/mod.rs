//! What the process tells about itself: metric names and handles, the log, the trace context, spans.

pub mod log;
pub mod metrics;
pub mod names;
pub mod spans;
pub mod trace;
pub mod tracestate;
