//! `wayside explain FILE METHOD URL`: the table and the policies that `run` uses, asked about one call.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue};

use super::{bad_config, complain, load, tell};
use crate::body::Body;
use crate::claims::Origin;
use crate::config::model::{
    Accept, ClaimPlace, Config, ENDLESS, Forward, Pattern, Publish, Rewrite, Route, SlimRule, Track,
};
use crate::error::{Error, Kind, Violations};
use crate::kafka::properties::Judge;
use crate::kafka::record;
use crate::listen::head;
use crate::pattern::forward::ends_here;
use crate::pattern::hop;
use crate::pattern::prefer;
use crate::pattern::publish::over;
use crate::pattern::slim::{Plan, Slimmed};
use crate::pattern::validate::{self, Check};
use crate::reply::headers::RESERVED;
use crate::route::{Facts, Table, Verdict, rewrite};
use crate::service::Request;

/// Headers of one head, at most (hyper's default, which the doors leave as it is).
const HEADERS_MAX: usize = 100;

/// Adds a line.
macro_rules! say {
    ($out:expr, $($line:tt)*) => {{
        // Writing to a String never fails.
        let _never = writeln!($out, $($line)*);
    }};
}

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
    let loaded = match load(&args.file, Judge::Anywhere) {
        Ok(loaded) => loaded,
        Err(report) => return bad_config(&report),
    };
    match request(args, loaded.config.limits.head)
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

/// The call as the outbound door would see it, whose heads have at most so many bytes.
fn request(args: &Args, head_max: usize) -> Result<Request, String> {
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
    let bytes = head_bytes(&request, args.body.as_deref());
    if bytes > head_max {
        return Err(format!(
            "the call would be refused with 431: its head has {bytes} bytes, and `limits.head` is {head_max}"
        ));
    }
    if request.headers().len() > HEADERS_MAX {
        let count = request.headers().len();
        return Err(format!(
            "the call would be refused with 431: it has {count} headers, and {HEADERS_MAX} are the most"
        ));
    }
    // As every client says it.
    let host = request.uri().authority().map(ToString::to_string);
    if let Some(host) = host.and_then(|host| HeaderValue::try_from(host).ok()) {
        request.headers_mut().entry(HOST).or_insert(host);
    }
    head::canonical(&mut request).map_err(|error| refusal(&error))?;
    Ok(request)
}

/// Bytes of the head on the wire, with what no client leaves out; most send some headers more.
fn head_bytes(request: &Request, body: Option<&str>) -> usize {
    let line = |name: usize, value: usize| name + ": ".len() + value + "\r\n".len();
    let target = request
        .uri()
        .path_and_query()
        .map_or(1, |target| target.as_str().len());
    let headers = request.headers();
    let given: usize = headers
        .iter()
        .map(|(name, value)| line(name.as_str().len(), value.len()))
        .sum();
    let host = match (headers.contains_key(HOST), request.uri().authority()) {
        (false, Some(authority)) => line("host".len(), authority.as_str().len()),
        _ => 0,
    };
    let length = match body {
        Some(body) if !headers.contains_key(CONTENT_LENGTH) => {
            line("content-length".len(), body.len().to_string().len())
        }
        _ => 0,
    };
    let first = request.method().as_str().len() + target + "  HTTP/1.1\r\n".len();
    first + given + host + length + "\r\n".len()
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
    say!(
        &mut out,
        "{} http://{}{}",
        facts.method,
        facts.host,
        request.uri(),
    );
    if facts.path.starts_with(RESERVED) {
        say!(
            &mut out,
            "  served by the sidecar itself: {RESERVED} is reserved on every host"
        );
        return out;
    }
    let Some(outbound) = config
        .outbound
        .as_ref()
        .filter(|outbound| !outbound.routes.is_empty())
    else {
        say!(&mut out, "  404 no-route: the file has no outbound routes");
        return out;
    };
    let verdicts = Table::new(&outbound.routes).explain(&facts);
    let mut taken = None;
    for (route, verdict) in outbound.routes.iter().zip(verdicts) {
        let place = format!("{} (line {})", route.name, route.line);
        match verdict {
            Verdict::Takes => {
                say!(&mut out, "  takes    {place}");
                taken = Some(route);
            }
            Verdict::Passes(mismatch) => {
                say!(&mut out, "  passes   {place}: {mismatch}")
            }
            Verdict::NotAsked => say!(&mut out, "  not asked {place}"),
        }
    }
    match taken {
        Some(route) => done(&mut out, config, route, request, body),
        None => say!(&mut out, "  404 no-route: no route takes it"),
    }
    out
}

/// What would be done.
fn done(out: &mut String, config: &Config, route: &Route, request: &Request, body: &str) {
    match &route.pattern {
        Pattern::Forward(rule) => match ends_here(&mut copy(request)) {
            None => {
                forward(out, config, rule, request);
                if let Some(rule) = rule
                    .otherwise
                    .as_deref()
                    .filter(|_| !request.method().is_safe())
                {
                    say!(
                        out,
                        "if it cannot be sent, or an earlier call of its key is queued:"
                    );
                    publish(out, config, rule, request, body);
                }
            }
            Some(Ok(answer)) => {
                let status = answer.status().as_u16();
                say!(out, "  {status} here: Max-Forwards lets it go no further");
            }
            Some(Err(error)) => {
                let (status, word) = (error.kind().status().as_u16(), error.kind().word());
                say!(out, "  {status} {word}: {}", error.detail());
            }
        },
        Pattern::Publish(rule) => publish(out, config, rule, request, body),
    }
}

fn forward(out: &mut String, config: &Config, rule: &Forward, request: &Request) {
    let timeouts = &rule.timeouts;
    let show = humantime::format_duration;
    let limit = |limit| match limit {
        ENDLESS => "no end".to_owned(),
        limit => show(limit).to_string(),
    };
    let all: u32 = rule.to.iter().map(|(_, weight)| weight).sum();
    for (service, weight) in &rule.to {
        let service = &config.services[service.0];
        let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
        let share = match rule.to.len() {
            1 => String::new(),
            _ => format!("{weight} of {all} calls "),
        };
        let tls = match &service.tls {
            None => String::new(),
            Some(tls) => format!(", with TLS to {}", tls.expected),
        };
        say!(
            out,
            "{share}forward to {} at {}{tls}",
            service.name,
            addresses.join(", "),
        );
    }
    if rule.rewrite != Rewrite::default() {
        rewritten(out, rule, request);
    }
    say!(
        out,
        "  time: {} in all, {} to connect, {} a try, {} to an answer's head, {} of silence in a body",
        limit(timeouts.whole),
        show(timeouts.connect),
        show(timeouts.per_try),
        show(timeouts.head),
        limit(timeouts.idle),
    );
    let idempotent = rule.idempotent || hop::is_idempotent(request.method());
    let also = match idempotent {
        true => format!(
            ", after a reset without an answer, and after {:?}",
            rule.retry.statuses
        ),
        false => format!(" only: {} may not run twice", request.method()),
    };
    say!(
        out,
        "  tries: up to {}, repeated when it was never sent{also}",
        rule.retry.attempts
    );
    say!(
        out,
        "  another address at once; {} to {} before one is repeated",
        show(rule.retry.backoff.first),
        show(rule.retry.backoff.longest),
    );
}

/// The call without its body.
fn copy(request: &Request) -> Request {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// What the service would see of a rewritten call.
fn rewritten(out: &mut String, rule: &Forward, request: &Request) {
    let mut changed = copy(request);
    if let Err(error) = rewrite::request(&rule.rewrite, &mut changed) {
        return say!(out, "  {}", refusal(&error));
    }
    let facts = Facts::of(&changed);
    say!(
        out,
        "  as: {} http://{}{}",
        request.method(),
        facts.host,
        changed.uri()
    );
    let set = rule
        .rewrite
        .set
        .iter()
        .map(|(name, _)| format!("sets {name}"));
    let removed = rule
        .rewrite
        .remove
        .iter()
        .map(|name| format!("removes {name}"));
    let changes: Vec<String> = set.chain(removed).collect();
    if !changes.is_empty() {
        say!(out, "  headers: {}", changes.join(", "));
    }
}

fn publish(out: &mut String, config: &Config, rule: &Publish, request: &Request, body: &str) {
    let event = if rule.slim.is_some() {
        " as an event"
    } else {
        ""
    };
    say!(out, "publish{event} to topic {}", rule.topic);
    let body = Bytes::copy_from_slice(body.as_bytes());
    match read(config, rule, request, &body) {
        Ok((slimmed, key)) => {
            if whole_over(rule, request).is_some() {
                say!(out, "  body: not JSON, so no schema judges it");
            } else {
                checked(out, rule);
            }
            record(out, config, rule, (&slimmed, &body), key);
            if let Some(over) = whole_over(rule, request).filter(|over| body.len() > *over) {
                say!(
                    out,
                    "  record value: none, since {} bytes are over whole_over {over}",
                    body.len()
                );
            }
            let travelling = record::travelling(request.headers(), &rule.headers);
            let names: Vec<&str> = travelling.keys().map(HeaderName::as_str).collect();
            let names = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            say!(out, "  headers that travel: {names}");
            say!(out, "  answer: 202 after {}", released(config, rule));
            replies(out, config, rule, request);
        }
        Err(error) => {
            let (status, word) = (error.kind().status().as_u16(), error.kind().word());
            say!(out, "  {status} {word}: {}", error.detail());
            let violations = error.violations();
            for violation in &violations.list {
                say!(out, "    {violation}");
            }
            if violations.more {
                say!(out, "    … and more");
            }
        }
    }
}

/// What the body has passed.
fn checked(out: &mut String, rule: &Publish) {
    if let Some(schema) = &rule.schema {
        say!(
            out,
            "  schema: {}, which the body meets",
            schema.file().display()
        );
    }
    if !rule.content_type.is_empty() {
        let types: Vec<String> = rule.content_type.iter().map(ToString::to_string).collect();
        say!(out, "  content type: one of {}", types.join(", "));
    }
}

/// Which event releases the 202.
fn released(config: &Config, rule: &Publish) -> String {
    let broker = "the broker's acks=all acknowledgement";
    let span = humantime::format_duration;
    match (&config.spool, rule.accept) {
        (None, _) => format!("{broker}, within {}", span(rule.timeout)),
        (Some(_), Accept::Spooled) => format!("the spool's sync, or {broker} if that is first"),
        (Some(_), Accept::Replicated) => {
            format!(
                "{broker}, or the spool's sync if that takes longer than {}",
                span(rule.ack_wait)
            )
        }
    }
}

/// What receivers would report back.
fn replies(out: &mut String, config: &Config, rule: &Publish, request: &Request) {
    let topics = config
        .kafka
        .as_ref()
        .and_then(|kafka| kafka.replies.as_ref());
    let Some(topics) = topics else { return };
    let wait = prefer::wait(request.headers());
    if let Some(wait) = wait {
        let wait = humantime::format_duration(wait);
        say!(
            out,
            "  or the receiver's own, if it comes within {wait} after that"
        );
    }
    let what = match rule.track.max(if wait.is_some() {
        Track::Verdict
    } else {
        Track::None
    }) {
        Track::None => return,
        Track::Verdict => "how it ends",
        Track::All => "every attempt and how it ends",
    };
    let who = match &rule.reply_from {
        Some(group) => format!("; the verdict of group {group} counts"),
        None => String::new(),
    };
    say!(
        out,
        "  receivers report {what} to topic {}{who}",
        topics.topic(&config.service)
    );
}

/// What the route would read from the body, or how it would refuse the call.
fn read(
    config: &Config,
    rule: &Publish,
    request: &Request,
    body: &Bytes,
) -> Result<(Slimmed, Option<Bytes>), Error> {
    let check = Check::of(rule)?;
    if let Some(check) = &check {
        check.head(request.headers(), !body.is_empty())?;
    }
    if body.len() > rule.max_body {
        let detail = format!("{} bytes are over max_body {}", body.len(), rule.max_body);
        return Err(Error::new(Kind::BodyTooLarge, detail));
    }
    let plan = Plan::of(rule);
    let (headers, path) = (request.headers(), request.uri().path());
    if whole_over(rule, request).is_some() {
        let slimmed = Slimmed::default();
        let key = plan.key(&slimmed, headers, path)?;
        return Ok((slimmed, key));
    }
    let found = match &check {
        Some(check) => check.body_here(body)?,
        None => Violations::default(),
    };
    let (slimmed, key) = validate::judge(found, plan.read(body, headers, path))?;
    if let (Some(cut), Some(slim)) = (&slimmed.cut, &rule.slim) {
        let store = &config.claims[slim.claim.0];
        if let ClaimPlace::Origin(template) = &store.place {
            Origin::new(template, store.ttl).path(&cut.body)?;
        }
    }
    Ok((slimmed, key))
}

/// Above how many bytes the call's body is a claim as a whole, since it is not JSON and the route takes such.
fn whole_over(rule: &Publish, request: &Request) -> Option<usize> {
    over(rule.slim.as_ref()?.whole_over, request.headers())
}

fn record(
    out: &mut String,
    config: &Config,
    rule: &Publish,
    (slimmed, body): (&Slimmed, &Bytes),
    key: Option<Bytes>,
) {
    match (&rule.key, key) {
        (_, Some(key)) => say!(out, "  key: {:?}", String::from_utf8_lossy(&key)),
        (None, None) => say!(out, "  key: none, so in no order"),
        (Some(_), None) => say!(
            out,
            "  key: missing, so in no order (key_missing: unordered)"
        ),
    }
    let Some(slim) = &rule.slim else { return };
    let store = &config.claims[slim.claim.0];
    let what = match &slim.rule {
        SlimRule::Keep(pointers) => format!("keep {}", list(pointers)),
        SlimRule::Drop { fields, over } => {
            let fields = (!fields.is_empty()).then(|| format!("drop {}", list(fields)));
            let over = over.map(|over| {
                format!(
                    "drop what is over {}",
                    crate::config::units::size(over as u64)
                )
            });
            let both: Vec<String> = fields.into_iter().chain(over).collect();
            both.join(", ")
        }
    };
    let ttl = humantime::format_duration(store.ttl);
    say!(
        out,
        "  slim: {what}; the whole body in claims.{} for {ttl}",
        store.name
    );
    if let Some(cut) = &slimmed.cut {
        let (slim, whole) = (cut.body.len(), body.len());
        let value = String::from_utf8_lossy(&cut.body);
        say!(out, "  record value: {slim} of {whole} bytes: {value}");
    }
}

fn list(pointers: &[crate::config::model::Pointer]) -> String {
    pointers
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
