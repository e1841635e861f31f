//! `wayside explain FILE METHOD URL`: the table and the policies that `run` uses, asked about one call.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use http::Method;
use http::header::{HOST, HeaderName, HeaderValue};

use super::{bad_config, complain, environment, tell};
use crate::body::Body;
use crate::config;
use crate::config::model::{Config, Forward, Pattern, Publish, Route, SlimRule};
use crate::error::Error;
use crate::kafka::record;
use crate::listen::head;
use crate::pattern::hop;
use crate::pattern::slim::Plan;
use crate::reply::headers::RESERVED;
use crate::route::{Facts, Table, Verdict};
use crate::service::Request;

/// What `wayside explain` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration
    file: PathBuf,
    /// The call's method
    method: String,
    /// The call's URL: http://HOST/PATH
    url: String,
    /// A header of the call, `Name: value`; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The call's body
    #[arg(short = 'd', long = "data")]
    body: Option<String>,
}

/// Explains one call.
pub fn run(args: &Args) -> ExitCode {
    let loaded = match config::load(&args.file, &environment) {
        Ok(loaded) => loaded,
        Err(report) => return bad_config(&report),
    };
    match request(args)
        .map(|request| explain(&loaded.config, &request, args.body.as_deref().unwrap_or("")))
    {
        Ok(text) => {
            tell(text.trim_end());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            complain(&format!("wayside: {reason}"));
            ExitCode::FAILURE
        }
    }
}

/// The call as the outbound door would see it.
fn request(args: &Args) -> Result<Request, String> {
    let method = Method::from_bytes(args.method.to_ascii_uppercase().as_bytes())
        .map_err(|_| format!("`{}` is no method", args.method))?;
    let mut builder = http::Request::builder().method(method).uri(&args.url);
    for line in &args.headers {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| format!("`{line}` is not `Name: value`"))?;
        let name: HeaderName = name
            .trim()
            .parse()
            .map_err(|_| format!("`{name}` is no header name"))?;
        let value: HeaderValue = value
            .trim()
            .parse()
            .map_err(|_| format!("`{value}` is no header value"))?;
        builder = builder.header(name, value);
    }
    let body = Body::full(args.body.clone().unwrap_or_default());
    let mut request = builder
        .body(body)
        .map_err(|error| format!("`{}` is no URL: {error}", args.url))?;
    if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
        return Err(format!(
            "`{}` names no host: write http://HOST{} or add -H 'Host: …'",
            args.url, args.url
        ));
    }
    head::canonical(&mut request).map_err(|error| refusal(&error))?;
    Ok(request)
}

fn refusal(error: &Error) -> String {
    format!(
        "the call would be refused with {}: {}",
        error.kind().status().as_u16(),
        error.detail()
    )
}

fn explain(config: &Config, request: &Request, body: &str) -> String {
    let facts = Facts::of(request);
    let mut out = String::new();
    put(
        &mut out,
        format_args!("{} http://{}{}", facts.method, facts.host, request.uri()),
    );
    if facts.path.starts_with(RESERVED) {
        put(
            &mut out,
            format_args!("  served by the sidecar itself: {RESERVED} is reserved on every host"),
        );
        return out;
    }
    let Some(outbound) = config
        .outbound
        .as_ref()
        .filter(|outbound| !outbound.routes.is_empty())
    else {
        put(
            &mut out,
            format_args!("  404 no-route: the file has no outbound routes"),
        );
        return out;
    };
    let verdicts = Table::new(&outbound.routes).explain(&facts);
    let mut taken = None;
    for (route, verdict) in outbound.routes.iter().zip(verdicts) {
        let place = format!("{} (line {})", route.name, route.line);
        match verdict {
            Verdict::Takes => {
                put(&mut out, format_args!("  takes    {place}"));
                taken = Some(route);
            }
            Verdict::Passes(mismatch) => {
                put(&mut out, format_args!("  passes   {place}: {mismatch}"))
            }
            Verdict::NotAsked => put(&mut out, format_args!("  not asked {place}")),
        }
    }
    match taken {
        Some(route) => done(&mut out, config, route, request, body),
        None => put(&mut out, format_args!("  404 no-route: no route takes it")),
    }
    out
}

/// What would be done.
fn done(out: &mut String, config: &Config, route: &Route, request: &Request, body: &str) {
    match &route.pattern {
        Pattern::Forward(rule) => forward(out, config, rule, request),
        Pattern::Publish(rule) => publish(out, config, rule, request, body),
    }
}

fn forward(out: &mut String, config: &Config, rule: &Forward, request: &Request) {
    let service = &config.services[rule.to.0];
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    let timeouts = &rule.timeouts;
    let show = humantime::format_duration;
    put(
        out,
        format_args!("forward to {} at {}", service.name, addresses.join(", ")),
    );
    put(
        out,
        format_args!(
            "  time: {} in all, {} to connect, {} a try, {} to an answer's head, {} of silence in a body",
            show(timeouts.whole),
            show(timeouts.connect),
            show(timeouts.per_try),
            show(timeouts.head),
            show(timeouts.idle)
        ),
    );
    let idempotent = rule.idempotent || hop::is_idempotent(request.method());
    let also = match idempotent {
        true => format!(
            ", after a reset without an answer, and after {:?}",
            rule.retry.statuses
        ),
        false => format!(" only: {} may not run twice", request.method()),
    };
    put(
        out,
        format_args!(
            "  tries: up to {}, repeated when it was never sent{also}",
            rule.retry.attempts
        ),
    );
    put(
        out,
        format_args!(
            "  another address at once; {} to {} before one is repeated",
            show(rule.retry.backoff.first),
            show(rule.retry.backoff.longest)
        ),
    );
}

fn publish(out: &mut String, config: &Config, rule: &Publish, request: &Request, body: &str) {
    let word = if rule.slim.is_some() {
        "publish as an event"
    } else {
        "publish"
    };
    put(out, format_args!("{word} to topic {}", rule.topic));
    let plan = Plan::of(rule);
    let body = Bytes::copy_from_slice(body.as_bytes());
    if body.len() > rule.max_body {
        put(
            out,
            format_args!(
                "  413 body-too-large: {} bytes are over max_body {}",
                body.len(),
                rule.max_body
            ),
        );
        return;
    }
    let read = plan.apply(&body).and_then(|slimmed| {
        let key = plan.key(&slimmed, request.headers(), request.uri().path())?;
        Ok((slimmed, key))
    });
    let (slimmed, key) = match read {
        Ok(read) => read,
        Err(error) => {
            put(
                out,
                format_args!(
                    "  {} {}: {}",
                    error.kind().status().as_u16(),
                    error.kind().word(),
                    error.detail()
                ),
            );
            return;
        }
    };
    match (&rule.key, key) {
        (_, Some(key)) => put(
            out,
            format_args!("  key: {:?}", String::from_utf8_lossy(&key)),
        ),
        (None, None) => put(out, format_args!("  key: none, so in no order")),
        (Some(_), None) => put(
            out,
            format_args!("  key: missing, so in no order (key_missing: unordered)"),
        ),
    }
    if let Some(slim) = &rule.slim {
        let store = &config.claims[slim.claim.0];
        let what = match &slim.rule {
            SlimRule::Keep(pointers) => format!("keep {}", list(pointers)),
            SlimRule::Drop(pointers) => format!("drop {}", list(pointers)),
        };
        put(
            out,
            format_args!(
                "  slim: {what}; the whole body in claims.{} for {}",
                store.name,
                humantime::format_duration(store.ttl)
            ),
        );
        if let Some(cut) = &slimmed.cut {
            put(
                out,
                format_args!(
                    "  record value: {} of {} bytes: {}",
                    cut.body.len(),
                    body.len(),
                    String::from_utf8_lossy(&cut.body)
                ),
            );
        }
    }
    let travelling = record::travelling(request.headers(), &rule.headers);
    let names: Vec<&str> = travelling.keys().map(HeaderName::as_str).collect();
    put(
        out,
        format_args!(
            "  headers that travel: {}",
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        ),
    );
    put(
        out,
        format_args!(
            "  answer: 202 after the broker's acks=all acknowledgement, within {}",
            humantime::format_duration(rule.timeout)
        ),
    );
}

fn list(pointers: &[crate::config::model::Pointer]) -> String {
    pointers
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String never fails.
    let _never = writeln!(out, "{line}");
}
