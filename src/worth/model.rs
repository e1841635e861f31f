//! When slimming pays. Pure arithmetic.
//!
//! With `b` the CPU of a byte on one hop, `S` the bytes that are cut from a message, `R` the replicas and `F` the consumer
//! groups of its topic, `K` the CPU of keeping one body and `C` that of having it back, on all sides:
//!
//! ```text
//! whole:  b·S·(R + F)            every replica and every group gets the bytes
//! slim:   K + h·F·C              the body is kept once, and h of the deliveries have it back
//! even:   h* = (b·S·(R + F) − K) / (F·C)
//! ```
//!
//! `C` is the work of the fetch itself, which includes the digest; an exchange with the service that keeps the body, its
//! bytes, and as much work there, unless it was had before; and half an exchange with the app that asks by need, with the bytes once more.
//!
//! Under `h*` slimming pays, over it whole messages would. It is a function of size and fan-out, not a constant: of small
//! bodies it is under zero, of large ones over one, and then slimming never or always pays.

/// What things cost, in nanoseconds of CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// A byte on one hop through the broker.
    pub byte_ns: f64,
    /// A byte on one hop of HTTP.
    pub http_byte_ns: f64,
    /// A request and its answer, both sides.
    pub exchange_ns: f64,
    /// Keeping one body.
    pub keep_ns: f64,
    /// Whether any was kept here, or the figure is a guess.
    pub keep_measured: bool,
    /// The work of one fetch in the sidecar that wants the body.
    pub hydrate_ns: f64,
    /// Whether any was had here, or the figure is a guess.
    pub hydrate_measured: bool,
}

/// What the messages of a topic are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Bytes that are cut from one message, on average.
    pub cut: f64,
    /// Replicas of the topic.
    pub replicas: f64,
    /// Groups that read it.
    pub groups: f64,
    /// Share of the hydrations that the app asks for by need.
    pub lazy: f64,
    /// Share of the hydrations for which nobody is asked.
    pub cached: f64,
}

/// What having one body back costs, on all sides.
pub fn hydration(costs: &Costs, shape: &Shape) -> f64 {
    let carried = costs.http_byte_ns * shape.cut;
    // Whoever has the body reads and checks it too.
    let from_service = (1.0 - shape.cached) * (costs.exchange_ns + carried + costs.hydrate_ns);
    let to_app = shape.lazy * (costs.exchange_ns / 2.0 + carried);
    costs.hydrate_ns + from_service + to_app
}

/// The ratio of hydrations to deliveries at which slim and whole messages cost the same; under zero or over one where no
/// ratio is.
pub fn break_even(costs: &Costs, shape: &Shape) -> f64 {
    let whole = costs.byte_ns * shape.cut * (shape.replicas + shape.groups);
    (whole - costs.keep_ns) / (shape.groups * hydration(costs, shape))
}

/// Whether a field that is asked for alone would cost less in every record: `ratio` of the deliveries ask for it, and it
/// has so many bytes.
pub fn field_belongs_in_record(costs: &Costs, shape: &Shape, ratio: f64, bytes: f64) -> bool {
    let there = costs.byte_ns * bytes * (shape.replicas + shape.groups);
    ratio * shape.groups * hydration(costs, shape) > there
}

/// A ratio is on the other side of the break-even only when it is this much beyond it, so that one which dances around it
/// is not told each time.
const MARGIN: f64 = 0.1;

/// Whether slimming pays now, given that it did before.
pub fn pays(before: bool, ratio: f64, break_even: f64) -> bool {
    match before {
        true => break_even >= 1.0 || ratio <= break_even * (1.0 + MARGIN),
        false => ratio < break_even * (1.0 - MARGIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs {
        byte_ns: 1.0,
        http_byte_ns: 1.0,
        exchange_ns: 10_000.0,
        keep_ns: 2_000.0,
        keep_measured: true,
        hydrate_ns: 10_000.0,
        hydrate_measured: true,
    };

    fn even(cut: f64, groups: f64) -> f64 {
        let costs = Costs {
            // A store's bytes cost as much as a hop's.
            keep_ns: COSTS.keep_ns + cut,
            ..COSTS
        };
        let shape = Shape {
            cut,
            replicas: 3.0,
            groups,
            lazy: 0.0,
            cached: 0.0,
        };
        break_even(&costs, &shape)
    }

    #[test]
    fn the_break_even_grows_with_the_body_and_falls_with_the_fan_out() {
        for (cut, groups, expected) in [
            (500.0, 1.0, -0.02),
            (1_000.0, 1.0, 0.03),
            (2_000.0, 1.0, 0.13),
            (3_000.0, 1.0, 0.21),
            (10_000.0, 1.0, 0.7),
            (20_000.0, 1.0, 1.16),
            (10_000.0, 5.0, 0.34),
        ] {
            let found = even(cut, groups);
            assert!((found - expected).abs() < 0.011, "{cut} {groups}: {found}");
        }
    }

    #[test]
    fn who_asks_by_need_pays_for_the_app_too_and_who_had_it_before_for_nobody() {
        let of = |lazy, cached| {
            let shape = Shape {
                cut: 1_000.0,
                replicas: 3.0,
                groups: 1.0,
                lazy,
                cached,
            };
            hydration(&COSTS, &shape)
        };
        assert_eq!(of(0.0, 0.0), 31_000.0);
        assert_eq!(of(1.0, 0.0), 37_000.0);
        assert_eq!((of(0.0, 1.0), of(1.0, 1.0)), (10_000.0, 16_000.0));
    }

    #[test]
    fn a_field_that_many_ask_for_belongs_in_the_record_if_it_is_small() {
        let shape = Shape {
            cut: 20_000.0,
            replicas: 3.0,
            groups: 1.0,
            lazy: 0.0,
            cached: 0.0,
        };
        let belongs = |ratio, bytes| field_belongs_in_record(&COSTS, &shape, ratio, bytes);
        assert!(belongs(0.5, 100.0) && belongs(0.02, 100.0));
        assert!(!belongs(0.005, 100.0) && !belongs(0.5, 10_000.0) && !belongs(0.0, 1.0));
    }

    #[test]
    fn a_ratio_at_the_border_is_not_told_each_time() {
        assert!(pays(true, 0.20, 0.20) && pays(true, 0.215, 0.20) && !pays(true, 0.23, 0.20));
        assert!(!pays(false, 0.20, 0.20) && !pays(false, 0.185, 0.20) && pays(false, 0.17, 0.20));
        assert!(pays(true, 1.0, 1.5), "it always pays");
        assert!(
            !pays(true, 0.0, -0.1) && !pays(false, 0.0, -0.1),
            "it never does"
        );
    }
}
