//! Where spans go (`telemetry:`).

use serde::{Serialize, Serializer};

use super::Address;

/// Which calls are recorded, and where to.
#[derive(Debug, Clone, Serialize)]
pub struct Telemetry {
    /// The collector.
    pub otlp: Otlp,
    /// How many of the traces that begin here are recorded; default 10 %. Whether others are, their caller says.
    pub sample: Share,
}

/// A collector of OpenTelemetry, reached by OTLP over plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Otlp {
    /// Where it listens.
    pub address: Address,
    /// What stands before `/v1/traces`: empty, or `/` and more without a `/` at its end.
    pub path: String,
}

impl Serialize for Otlp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("http://{}{}", self.address, self.path))
    }
}

/// A part of a whole: 0 % to 100 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(f64);

impl Share {
    /// A number of 0 to 100.
    pub fn of_percent(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent))
    }

    /// A number of 0 to 100.
    pub fn percent(self) -> f64 {
        self.0
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}%", self.0))
    }
}
