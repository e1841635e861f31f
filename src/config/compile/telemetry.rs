//! `telemetry`: where spans go, and how many.

use crate::config::address::parse_address;
use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{Otlp, Share, Telemetry};
use crate::config::read::{At, Map};
use crate::config::words::TELEMETRY;

/// Where a collector listens for OTLP over HTTP, and over gRPC.
const HTTP_PORT: u16 = 4318;
const GRPC_PORT: u16 = 4317;
/// What is added to a collector's URL.
const TRACES: &str = "/v1/traces";
const SAMPLE_DEFAULT: f64 = 10.0;

/// Reads `telemetry`.
pub(super) fn telemetry(file: &Map<'_>) -> Option<Option<Telemetry>> {
    file.maybe("telemetry", |at| {
        let map = at.map(&TELEMETRY)?;
        let otlp = map.need("otlp", otlp);
        let sample = map.or("sample", Share::of_percent(SAMPLE_DEFAULT)?, share);
        Some(Telemetry {
            otlp: otlp?,
            sample: sample?,
        })
    })
}

fn otlp(at: &At<'_>) -> Option<Otlp> {
    let otlp = at.parse("a URL such as http://collector:4318", parse_collector)?;
    if otlp.address.port == GRPC_PORT {
        at.warning(format!(
            "{GRPC_PORT} is where collectors take gRPC; spans are sent by HTTP, which is {HTTP_PORT}"
        ));
    }
    Some(otlp)
}

fn parse_collector(text: &str) -> Result<Otlp, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is no collector: {why}", quoted(text)));
    let Some((scheme, rest)) = text.split_once("://") else {
        let hint = parse_address(text).ok().map(|_| format!("http://{text}"));
        let reason = "write a URL such as http://collector:4318";
        return Err(wrong(reason).hint(hint));
    };
    if scheme != "http" {
        return Err(wrong(
            "spans go by http in this version; name a collector beside this sidecar, which may send them on by TLS",
        ));
    }
    if rest.contains(['?', '#', '@']) {
        return Err(wrong("it has neither credentials nor a query"));
    }
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let path = path.trim_end_matches('/');
    if path.ends_with(TRACES) {
        let before = path.strip_suffix(TRACES).unwrap_or_default();
        return Err(wrong("`/v1/traces` is added to it").hint(format!("http://{host}{before}")));
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("its path has letters that no URL has"));
    }
    let address = parse_address(host).map_err(|_| {
        let with_port = format!("{host}:{HTTP_PORT}");
        let hint = parse_address(&with_port).is_ok();
        wrong("its host and port are not HOST:PORT")
            .hint(hint.then(|| format!("http://{with_port}{path}")))
    })?;
    Ok(Otlp {
        address,
        path: path.to_owned(),
    })
}

/// Reads a share in percent with up to three decimals, `0.1%`.
fn share(at: &At<'_>) -> Option<Share> {
    at.parse("a share such as 10%", |text| {
        let number = |text: &str| {
            let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
            let digits = |part: &str, most| {
                (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
            };
            let plain = digits(whole, 3) && digits(decimals, 3);
            text.parse()
                .ok()
                .filter(|_| plain)
                .and_then(Share::of_percent)
        };
        text.strip_suffix('%').and_then(number).ok_or_else(|| {
            let plain = number(text).is_some();
            Invalid::new(format!("{} is not a share from 0% to 100%", quoted(text)))
                .hint(plain.then(|| format!("{text}%")))
        })
    })
}
