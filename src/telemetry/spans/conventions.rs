//! What each kind of span says, in the words of OpenTelemetry's semantic conventions 1.37: HTTP spans, messaging spans,
//! Kafka. What those have no word for begins with `wayside.`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use uuid::Uuid;

use super::span::short;
use super::{Kind, Open, Spans};
use crate::telemetry::trace::Trace;

pub(super) const ERROR_TYPE: &str = "error.type";
const METHOD: &str = "http.request.method";
const STATUS: &str = "http.response.status_code";
const RESENT: &str = "http.request.resend_count";
const PATH: &str = "url.path";
const SCHEME: &str = "url.scheme";
const ADDRESS: &str = "server.address";
const PORT: &str = "server.port";
const PEER_SERVICE: &str = "peer.service";
const SYSTEM: &str = "messaging.system";
const OPERATION: &str = "messaging.operation.name";
const OPERATION_TYPE: &str = "messaging.operation.type";
const DESTINATION: &str = "messaging.destination.name";
const PARTITION: &str = "messaging.destination.partition.id";
const OFFSET: &str = "messaging.kafka.offset";
const GROUP: &str = "messaging.consumer.group.name";
const MESSAGE_ID: &str = "messaging.message.id";
const DOOR: &str = "wayside.door";
const ROUTE: &str = "wayside.route";
const PATTERN: &str = "wayside.pattern";
const PEER: &str = "wayside.peer";
const ATTEMPT: &str = "wayside.attempt";
const VERDICT: &str = "wayside.verdict";

/// How a call at a door ended.
pub struct Served<'a> {
    /// The door.
    pub door: &'static str,
    /// The route that took it.
    pub route: &'a str,
    /// What the route does.
    pub pattern: &'static str,
    /// The call's method.
    pub method: &'a Method,
    /// The call's path, without what may not be shown.
    pub path: &'a str,
    /// What it was answered with.
    pub status: StatusCode,
    /// The word of our own refusal.
    pub refused: Option<&'static str>,
}

/// How an attempt to deliver ended.
pub struct Processed {
    /// The app's status.
    pub status: Option<u16>,
    /// The word of the verdict.
    pub verdict: &'static str,
    /// The word of why there was no answer.
    pub error: Option<&'static str>,
    /// Whether the message is done with it.
    pub well: bool,
}

impl Spans {
    /// Begins a call at a door; `None` if its trace is not recorded. `state` is asked for only if it is.
    pub fn serving(
        self: &Arc<Self>,
        (trace, given): (&Trace, bool),
        peer: Option<&str>,
        state: impl FnOnce() -> Option<String>,
    ) -> Option<Open> {
        let mut open = self.enter((trace, given), Kind::Server)?;
        open.state(given.then(state).flatten());
        open.set_if(PEER, peer.map(short));
        Some(open)
    }

    /// Begins a try at one address of a service, within the call of `trace`, after so many that were sent.
    pub fn trying(
        self: &Arc<Self>,
        trace: &Trace,
        (service, address): (&str, SocketAddr),
        (method, path): (&Method, &str),
        earlier: u32,
    ) -> Open {
        let mut open = self.within(trace, Kind::Client);
        let method = known(method);
        open.name(in_a_name(method));
        open.set(METHOD, method);
        open.set(PATH, short(path));
        open.set(PEER_SERVICE, service.to_owned());
        open.set(ADDRESS, address.ip().to_string());
        open.set(PORT, i64::from(address.port()));
        open.set_if(RESENT, (earlier > 0).then_some(i64::from(earlier)));
        open
    }

    /// Begins to publish a message, within the call of `trace`. What it is linked to later carries its context.
    pub fn sending(self: &Arc<Self>, trace: &Trace, topic: &str, id: Uuid) -> Open {
        let mut open = self.within(trace, Kind::Producer);
        open.name(format!("send {topic}"));
        open.messaging(("send", "send"), topic, id);
        open
    }

    /// Begins an attempt to deliver a message; `None` if its trace is not recorded. It follows from the publishing that
    /// `published` names and is no child of it: that is over, perhaps since yesterday. It is of the same trace all the
    /// same, so that one id leads from the call to the app.
    pub fn processing(
        self: &Arc<Self>,
        ((published, given), state): ((&Trace, bool), Option<&str>),
        (topic, partition, offset): (&str, i32, i64),
        (group, id, attempt): (&str, Uuid, u32),
    ) -> Option<Open> {
        let mut open = self.enter((published, given), Kind::Consumer)?;
        open.orphan();
        if given {
            open.link(published, state);
        }
        open.name(format!("process {topic}"));
        open.messaging(("process", "process"), topic, id);
        open.place(partition, offset);
        open.set(GROUP, group.to_owned());
        open.set(ATTEMPT, i64::from(attempt));
        Some(open)
    }
}

impl Open {
    /// Ends a call at a door. What the app answered is its own affair: only a 5xx is a failure (HTTP spans, "Status").
    pub fn served(mut self, served: &Served<'_>) {
        let method = known(served.method);
        self.name(format!("{} {}", in_a_name(method), served.route));
        self.set(METHOD, method);
        self.set(PATH, short(served.path));
        self.set(SCHEME, "http");
        self.set(STATUS, i64::from(served.status.as_u16()));
        self.set(DOOR, served.door);
        self.set(ROUTE, served.route.to_owned());
        self.set(PATTERN, served.pattern);
        if served.status.is_server_error() {
            self.fail(word(served.refused, served.status));
        }
        self.end();
    }

    /// Ends a try with the answer's status, or the word of why there is none. To whoever calls, a 4xx is a failure too.
    pub fn tried(mut self, ended: Result<StatusCode, &'static str>) {
        match ended {
            Ok(status) => {
                self.set(STATUS, i64::from(status.as_u16()));
                if status.is_client_error() || status.is_server_error() {
                    self.fail(word(None, status));
                }
            }
            Err(word) => self.fail(word),
        }
        self.end();
    }

    /// Ends publishing with the record's partition and offset if the broker has it by now, or the word of why nobody
    /// promises it.
    pub fn sent(mut self, ended: Result<Option<(i32, i64)>, &'static str>) {
        match ended {
            Ok(Some((partition, offset))) => self.place(partition, offset),
            Ok(None) => {}
            Err(word) => self.fail(word),
        }
        self.end();
    }

    /// Ends an attempt to deliver.
    pub fn processed(mut self, processed: &Processed) {
        let status = processed
            .status
            .and_then(|status| StatusCode::from_u16(status).ok());
        self.set_if(STATUS, status.map(|status| i64::from(status.as_u16())));
        self.set(VERDICT, processed.verdict);
        if !processed.well {
            match (processed.error, status) {
                (Some(word), _) => self.fail(word),
                (None, Some(status)) => self.fail(word(None, status)),
                (None, None) => self.fail(processed.verdict),
            }
        }
        self.end();
    }

    fn messaging(&mut self, (name, kind): (&'static str, &'static str), topic: &str, id: Uuid) {
        self.set(SYSTEM, "kafka");
        self.set(OPERATION, name);
        self.set(OPERATION_TYPE, kind);
        self.set(DESTINATION, topic.to_owned());
        self.set(MESSAGE_ID, id.to_string());
    }

    fn place(&mut self, partition: i32, offset: i64) {
        self.set(PARTITION, partition.to_string());
        self.set(OFFSET, offset);
    }

    fn orphan(&mut self) {
        if let Some(span) = &mut self.span {
            (span.parent, span.remote) = (None, false);
        }
    }
}

/// A method as attributes have it: what is not registered is one word, or a caller could make any number of them.
fn known(method: &Method) -> &'static str {
    const METHODS: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE",
    ];
    let found = METHODS.into_iter().find(|known| *known == method.as_str());
    found.unwrap_or("_OTHER")
}

fn in_a_name(method: &'static str) -> &'static str {
    match method {
        "_OTHER" => "HTTP",
        method => method,
    }
}

fn word(refused: Option<&'static str>, status: StatusCode) -> Cow<'static, str> {
    match refused {
        Some(word) => Cow::Borrowed(word),
        None => Cow::Owned(status.as_str().to_owned()),
    }
}
