//! One walk over the tree, a section a file; ends in plain data or in a list of everything that is wrong.
//!
//! Each reader answers `None` once its error is noted. So a section reads all of its keys first and asks
//! for the values afterwards.

mod claims;
mod doors;
mod forward;
mod kafka;
mod outbound;
mod process;
mod publish;
mod retry;
mod services;
mod slim;
mod spool;
mod subscriptions;
mod telemetry;
mod tls;
mod validation;
mod verdicts;

use super::address::parse_address;
use super::model::{ClaimTemplate, Config, Hydrate, Outbound, Subscription, Unhydrated};
use super::names::parse_name;
use super::raw::Node;
use super::read::{At, Map, Source};
use super::words::FILE;

/// What a section may ask about its neighbours. `None` means that the neighbour is wrong, which is noted.
struct Around {
    service: Option<String>,
    services: Option<Vec<String>>,
    identities: Option<Vec<String>>,
    claims: Option<Vec<String>>,
    /// The template of each store of `claims` that keeps nothing.
    origins: Vec<Option<ClaimTemplate>>,
    /// Whether a store of `claims` is no folder of this sidecar alone.
    shared: bool,
    /// Bytes that each store of `claims` takes; shorter than `claims` if one is wrong.
    claims_max: Vec<u64>,
    queue_max: Option<usize>,
    /// Bytes of the spool; `None` without one.
    spool_max: Option<u64>,
    /// Whether replies have a topic to come by.
    replies: Option<bool>,
}

/// Compiles a whole file.
pub(super) fn config(root: &Node, source: Source<'_>) -> Option<Config> {
    let file = At::root(root, source).map(&FILE)?;
    let service = file.need("service", |at| at.parse("a name", parse_name));
    let app = file.maybe("app", |at| {
        at.parse("an address such as 127.0.0.1:8080", parse_address)
    });
    let identities = file.or("tls", Vec::new(), tls::identities);
    let kafka = file.maybe("kafka", kafka::kafka);
    kafka::together(&file, kafka.iter().flatten().next());
    let claims = file.or("claims", Vec::new(), claims::claims);
    let spool = file.maybe("spool", spool::spool);
    spool::check(
        &file,
        spool.iter().flatten().next(),
        claims.as_deref().unwrap_or_default(),
    );
    let around = Around {
        service: service.clone(),
        services: file.or("services", Vec::new(), |at| at.keys()),
        identities: file.or("tls", Vec::new(), |at| at.keys()),
        claims: file.or("claims", Vec::new(), |at| at.keys()),
        origins: claims.iter().flatten().map(claims::template_of).collect(),
        shared: claims.iter().flatten().any(claims::is_shared),
        claims_max: claims.iter().flatten().map(claims::max).collect(),
        replies: kafka
            .as_ref()
            .map(|kafka| kafka.as_ref().is_some_and(|kafka| kafka.replies.is_some())),
        queue_max: kafka.iter().flatten().map(|kafka| kafka.queue_max).next(),
        // A wrong spool is one all the same: it is noted.
        spool_max: file.find("spool").map(|_| {
            let max = spool.iter().flatten().map(|spool| spool.max).next();
            max.unwrap_or(u64::MAX)
        }),
    };
    let services = file.or("services", Vec::new(), |at| services::services(at, &around));
    let outbound = file.maybe("outbound", |at| outbound::outbound(at, &around));
    let inbound = file.maybe("inbound", |at| doors::inbound(at, &around));
    let subscriptions = file.or("subscriptions", Vec::new(), |at| {
        subscriptions::subscriptions(at, &around)
    });
    let messages = process::messages(&file);
    let probe = file.maybe("probe", doors::probe);
    let admin = doors::admin(&file);
    let drain = process::drain(&file);
    let limits = process::limits(&file);
    let dns = process::dns(&file);
    let telemetry = telemetry::telemetry(&file);
    needed_sections(&file);
    claims_are_reached(&file);
    let config = Config {
        service: service?,
        app: app?,
        outbound: or_hydrating(outbound?, subscriptions.as_deref()),
        inbound: inbound?,
        subscriptions: subscriptions?,
        services: services?,
        tls: identities?,
        dns: dns?,
        kafka: kafka?,
        spool: spool?,
        claims: claims?,
        messages: messages?,
        probe: probe?,
        admin: admin?,
        drain: drain?,
        limits: limits?,
        telemetry: telemetry?,
    };
    doors::check(&file, &config);
    Some(config)
}

/// A subscription whose app may ask for bodies needs the outbound door for `/.wayside/` alone.
fn or_hydrating(
    outbound: Option<Outbound>,
    subscriptions: Option<&[Subscription]>,
) -> Option<Outbound> {
    let asks = |one: &Subscription| match (&one.hydrate, one.unhydrated) {
        (Hydrate::Never, _) => false,
        (Hydrate::Eager, unhydrated) => unhydrated == Unhydrated::DeliverSlim,
        (Hydrate::Lazy | Hydrate::Fields(_), _) => true,
    };
    let asked = subscriptions.is_some_and(|all| all.iter().any(asks));
    outbound.or_else(|| {
        asked.then(|| Outbound {
            listen: doors::OUTBOUND_DEFAULT,
            routes: Vec::new(),
        })
    })
}

/// Sections that others cannot do without; told once, at the first that asks.
fn needed_sections(file: &Map<'_>) {
    let subscriptions = file.find("subscriptions");
    let subscribed = subscriptions
        .as_ref()
        .and_then(|at| at.peek_list().into_iter().next());
    if file.find("kafka").is_none() {
        let publishing = routes(file)
            .into_iter()
            .find_map(|route| route.peek("publish"));
        if let Some(at) = publishing.or_else(|| subscribed.clone()) {
            at.error(
                "this needs a broker: add a `kafka` section, or `kafka: embedded` to try it out",
            );
        }
    }
    if file.find("app").is_none()
        && let Some(at) = subscribed
    {
        at.error("messages are delivered to the app: add `app`, the address where it listens");
    }
}

/// Bodies that no other sidecar can fetch, and stores that nobody fills.
fn claims_are_reached(file: &Map<'_>) {
    let slim: Vec<_> = routes(file)
        .into_iter()
        .filter_map(|route| {
            route
                .peek("publish")
                .and_then(|publish| publish.peek("slim"))
        })
        .collect();
    let Some(claims) = file.find("claims") else {
        return;
    };
    let names = claims.keys().unwrap_or_default();
    let stores = names.iter().filter_map(|name| claims.peek(name));
    let (own, shared): (Vec<_>, Vec<_>) = stores.partition(|store| store.peek("disk").is_some());
    match slim.first() {
        // A subscription reads from a shared store, and asks an origin by its template.
        None if shared.is_empty() || file.find("subscriptions").is_none() => {
            claims.warning("no route has `slim`, so nothing is kept here");
        }
        Some(slim) if !own.is_empty() && file.find("inbound").is_none() => {
            slim.warning("without `inbound` no other sidecar can fetch the bodies that are kept");
        }
        _ => {}
    }
}

fn routes<'a>(file: &Map<'a>) -> Vec<At<'a>> {
    let routes = file
        .find("outbound")
        .and_then(|outbound| outbound.peek("routes"));
    routes.map(|routes| routes.peek_list()).unwrap_or_default()
}
