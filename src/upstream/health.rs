//! Active health checks: a `GET` to every address, on a connection of its own, at an interval.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Uri};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::traffic::Traffic;
use super::{Connection, Endpoint, Upstream};
use crate::body::Body;
use crate::config::model::Health;
use crate::service::Request;

use super::connect::Sender;

/// Checks until the upstream is gone. The first checks come at once, so that a dead address is known early.
pub(super) async fn keep_checking(upstream: Weak<Upstream>) {
    let mut streaks: Vec<(std::net::SocketAddr, u32, u32)> = Vec::new();
    loop {
        let every = {
            let Some(upstream) = upstream.upgrade() else {
                return;
            };
            let Some(rule) = upstream.rule.health.clone() else {
                return;
            };
            round(&upstream, &rule, &mut streaks).await;
            rule.every
        };
        // Spread, so that many sidecars do not ask at the same moment.
        sleep(every.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
    }
}

/// Asks all addresses at once and counts what they said.
async fn round(
    upstream: &Arc<Upstream>,
    rule: &Health,
    streaks: &mut Vec<(std::net::SocketAddr, u32, u32)>,
) {
    let endpoints = upstream.endpoints();
    streaks.retain(|(address, ..)| endpoints.iter().any(|one| one.address == *address));
    let mut asking = JoinSet::new();
    for endpoint in endpoints.iter() {
        let (upstream, endpoint, rule) = (Arc::clone(upstream), Arc::clone(endpoint), rule.clone());
        asking.spawn(async move {
            let found = ask(&upstream, &endpoint, &rule).await;
            (endpoint, found)
        });
    }
    for (endpoint, found) in asking.join_all().await {
        if !streaks
            .iter()
            .any(|(address, ..)| *address == endpoint.address)
        {
            streaks.push((endpoint.address, 0, 0));
        }
        let streak = streaks
            .iter_mut()
            .find(|(address, ..)| *address == endpoint.address);
        let Some((_, good, bad)) = streak else {
            continue;
        };
        // A question that we could not ask has no answer.
        let Some(found) = found else { continue };
        match found {
            Ok(()) => (*good, *bad) = (*good + 1, 0),
            Err(_) => (*good, *bad) = (0, *bad + 1),
        }
        match found {
            Err(why) if *bad >= rule.unhealthy => upstream.checked(&endpoint, Some(why)),
            Ok(()) if *good >= rule.healthy => upstream.checked(&endpoint, None),
            _ => {}
        }
    }
}

/// One question; the answer is good if its status is 2xx or 3xx.
/// `None`: we had nothing left to ask with.
async fn ask(
    upstream: &Upstream,
    endpoint: &Arc<Endpoint>,
    rule: &Health,
) -> Option<Result<(), String>> {
    let deadline = Instant::now() + rule.timeout;
    let traffic = Arc::new(Traffic::default());
    let version = upstream.version(false);
    let sender = match upstream.make(endpoint, version, &traffic, deadline).await {
        Ok(sender) => sender,
        Err(error) if error.blames_peer() => {
            let error = error.detailed(&upstream.name, endpoint.address);
            return Some(Err(error.detail().to_owned()));
        }
        Err(_) => return None,
    };
    let connection = match sender {
        Sender::One(sender) => Connection::fresh(sender, traffic, endpoint, Duration::ZERO),
        Sender::Two(sender, room) => {
            let place = super::pool::Pool::new(1, 0)
                .here()
                .share(sender, room, traffic);
            Connection::shared(place, endpoint, false)
        }
    };
    Some(look(connection, upstream, rule, deadline).await)
}

/// Asks, and judges the answer.
async fn look(
    mut connection: Connection,
    upstream: &Upstream,
    rule: &Health,
    deadline: Instant,
) -> Result<(), String> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = rule
        .path
        .parse::<Uri>()
        .map_err(|error| error.to_string())?;
    let host = HeaderValue::from_str(&upstream.name);
    let host = host.unwrap_or_else(|_| HeaderValue::from_static("app"));
    request.headers_mut().insert(HOST, host);
    request
        .headers_mut()
        .insert(USER_AGENT, HeaderValue::from_static("wayside-health"));
    match timeout_at(deadline, connection.send(&mut request)).await {
        Err(_) => Err("no answer to a health check in time".to_owned()),
        Ok(Err(failed)) => Err(format!("health check: {}", failed.error.detail())),
        Ok(Ok(response)) => {
            let status = response.status();
            if status.is_success() || status.is_redirection() {
                Ok(())
            } else {
                Err(format!(
                    "a health check was answered with {}",
                    status.as_u16()
                ))
            }
        }
    }
}
