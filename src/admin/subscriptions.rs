//! `/subscriptions`: how far deliveries have come, what holds them up, and a way to stop them for a while.

use http::{Method, StatusCode};
use serde_json::Value;

use super::json;
use crate::error::{Error, Kind};
use crate::service::Response;

/// The path, and what stands before a topic.
pub(super) const ALL: &str = "/subscriptions";
pub(super) const ONE: &str = "/subscriptions/";

/// What the admin door asks of the subscriptions. It must answer at once, whatever the app does.
pub trait Subscriptions: Send + Sync {
    /// How those of a topic are, or all.
    fn states(&self, topic: Option<&str>) -> Vec<Value>;

    /// Stops deliveries of a topic, or lets them go on; how many subscriptions have that topic.
    fn pause(&self, topic: &str, paused: bool) -> usize;
}

/// Answers what is asked below `/subscriptions`.
pub(super) fn answer(
    subscriptions: &dyn Subscriptions,
    method: &Method,
    path: &str,
) -> Result<Response, Error> {
    let is_get = matches!(*method, Method::GET | Method::HEAD);
    let rest = path.strip_prefix(ONE).unwrap_or_default();
    let (topic, order) = match rest.rsplit_once('/') {
        Some((topic, order)) => (topic, Some(order)),
        None => (rest, None),
    };
    let unknown = || {
        Error::new(
            Kind::NotFound,
            format!("no subscription has the topic `{topic}`"),
        )
    };
    match (is_get, order) {
        (true, None) if topic.is_empty() => Ok(json(StatusCode::OK, &subscriptions.states(None))),
        (true, None) => match subscriptions.states(Some(topic)) {
            states if states.is_empty() => Err(unknown()),
            states => Ok(json(StatusCode::OK, &states)),
        },
        (false, Some(word @ ("pause" | "resume"))) if *method == Method::POST => {
            match subscriptions.pause(topic, word == "pause") {
                0 => Err(unknown()),
                _ => Ok(json(StatusCode::OK, &subscriptions.states(Some(topic)))),
            }
        }
        _ => Err(Error::new(
            Kind::MethodNotAllowed,
            "GET /subscriptions, GET /subscriptions/TOPIC, POST /subscriptions/TOPIC/pause or /resume",
        )),
    }
}
