//! One request for a body, to one address of the service that has it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use crate::body::Body;
use crate::error::{self, Error, Kind};
use crate::service::Request;
use crate::telemetry::trace::{TRACEPARENT, Trace};
use crate::upstream::{Connection, Endpoint, Upstream, Version, Wait};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Bytes of a refusal that are read.
const REFUSAL_MAX: usize = 64 << 10;
/// Characters of another sidecar's words that are passed on.
const DETAIL_MAX: usize = 200;
/// The longest `Retry-After` of an origin that is passed on.
const RETRY_AFTER_MAX: u64 = 300;

/// Where a body is at its service.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// Kept by a sidecar, under this id.
    Claim(&'a str),
    /// At the app's own API, under this path and query.
    Api(&'a str),
}

/// What is done with the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// It is read into memory, up to so many bytes.
    Whole(usize),
    /// It is read by whoever gets it.
    Passing,
}

/// A body, and the connection that it still comes on.
pub(super) type Found = (Body, Option<Connection>);

/// Asks one address. A redirect is not followed.
///
/// # Errors
/// [`Kind::Elsewhere`] if another instance has it, [`Kind::Unknown`], [`Kind::Expired`], [`Kind::ClaimDamaged`]; else that
/// the address is not reached, says that it can not, or gives no such answer.
pub(super) async fn ask(
    (upstream, endpoint, service): (&Upstream, &Arc<Endpoint>, &str),
    (place, trace): (Place<'_>, &Trace),
    (share, how): (Share, How),
) -> Result<Found, Error> {
    let to = (upstream, endpoint, service);
    let (body, connection) = open(to, (place, trace), share).await?;
    let How::Whole(max) = how else {
        return Ok((body, Some(connection)));
    };
    let Ok(body) = timeout_at(share.whole, body.read(max)).await else {
        // It did answer, so this is of one body and not of the address.
        let detail = "the claim did not come to its end in time";
        return Err(Error::new(Kind::Reset, detail));
    };
    connection.release();
    match body {
        Ok(body) => Ok((Body::full(body), None)),
        Err(error) if error.kind() == Kind::BodyTooLarge => {
            let detail = format!("{service} answers with more than `limits.claim`, {max} bytes");
            Err(Error::new(Kind::ClaimDamaged, detail))
        }
        Err(error) => Err(Error::new(Kind::Reset, "the claim broke off").because(error)),
    }
}

/// Asks one address; its body is not read yet.
async fn open(
    (upstream, endpoint, service): (&Upstream, &Arc<Endpoint>, &str),
    (place, trace): (Place<'_>, &Trace),
    share: Share,
) -> Result<(Body, Connection), Error> {
    let mut request = request(service, place, trace)?;
    let mut connection = upstream
        .connection(endpoint, (Version::One, false), share.connect()?)
        .await?;
    let answer = timeout_at(share.head, connection.send(&mut request))
        .await
        .map_err(|_| slow())?;
    let answer = match answer {
        Ok(answer) => answer,
        Err(failed) => {
            if !failed.unsent {
                return Err(failed.error);
            }
            connection = upstream
                .fresh_connection(endpoint, Version::One, share.connect()?)
                .await?;
            let again = timeout_at(share.head, connection.send(&mut request))
                .await
                .map_err(|_| slow())?;
            again.map_err(|failed| failed.error)?
        }
    };
    let (head, body) = answer.into_parts();
    let body = Body::incoming(body);
    if head.status == StatusCode::OK {
        return Ok((body, connection));
    }
    let said = timeout_at(share.whole, body.read(REFUSAL_MAX)).await;
    let said = said.map_err(|_| slow())?;
    connection.release();
    Err(refused(service, head.status, &head.headers, &said))
}

fn request(service: &str, place: Place<'_>, trace: &Trace) -> Result<Request, Error> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::GET;
    let target = match place {
        Place::Claim(id) => format!("/.wayside/claims/{id}").parse(),
        Place::Api(path) => path.parse(),
    };
    *request.uri_mut() =
        target.map_err(|_| Error::new(Kind::Unknown, "the claim's address is malformed"))?;
    let headers = request.headers_mut();
    if let Ok(host) = HeaderValue::from_str(service) {
        headers.insert(HOST, host);
    }
    // So that the log of the sidecar that keeps the claim names the same trace.
    headers.insert(TRACEPARENT, trace.header());
    Ok(request)
}

/// What an answer means that is not the body.
fn refused(
    service: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &Result<Bytes, Error>,
) -> Error {
    let said = || format!("{service} answered {} for the claim", status.as_u16());
    match status {
        StatusCode::NOT_FOUND => Error::new(Kind::Unknown, "its service does not have the claim"),
        StatusCode::MISDIRECTED_REQUEST => {
            Error::new(Kind::Elsewhere, "another instance keeps the claim")
        }
        StatusCode::GONE => Error::new(
            Kind::Expired,
            match problem(body, Kind::Expired) {
                Some(detail) => format!("{service} says of it: {detail}"),
                None => "the claim is no longer kept".to_owned(),
            },
        ),
        StatusCode::BAD_GATEWAY if problem(body, Kind::ClaimDamaged).is_some() => Error::new(
            Kind::ClaimDamaged,
            "the service that keeps the claim finds it damaged",
        ),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            let wait = headers.get(RETRY_AFTER).and_then(|wait| wait.to_str().ok());
            let wait = wait.and_then(|wait| wait.parse().ok()).unwrap_or(1);
            let wait = Duration::from_secs(RETRY_AFTER_MAX.min(wait));
            Error::new(Kind::Unreachable, said()).after(wait)
        }
        StatusCode::GATEWAY_TIMEOUT => {
            Error::new(Kind::Deadline, said()).after(Duration::from_secs(1))
        }
        _ => Error::new(Kind::BadAnswer, said()),
    }
}

/// Until when a claim is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// An answer must have begun.
    pub(super) begun: Instant,
    /// The answer must be complete.
    pub(super) whole: Instant,
}

/// Until when one address may keep us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Its answer must have begun.
    pub(super) head: Instant,
    /// Its answer must be complete. Whoever answers with a claim is the one that has it, so it gets the others' time.
    pub(super) whole: Instant,
}

impl Share {
    /// The next address's fair share of the time, with `left` addresses still to ask: one that is silent
    /// must not keep the others from being asked.
    pub(super) fn of(limit: Limit, left: usize) -> Self {
        let now = Instant::now();
        let addresses = u32::try_from(left.max(1)).unwrap_or(u32::MAX);
        let share = limit.begun.saturating_duration_since(now) / addresses;
        Self {
            head: now + share,
            whole: limit.whole,
        }
    }

    /// Until when a connection must be there.
    ///
    /// # Errors
    /// [`Kind::Deadline`] if the time is up already: an address that was not tried is not one that is away.
    fn connect(self) -> Result<Wait, Error> {
        let now = Instant::now();
        if now >= self.head {
            return Err(slow());
        }
        Ok(Wait::new(now, CONNECT, self.head))
    }
}

pub(super) fn slow() -> Error {
    Error::new(Kind::Deadline, "the claim did not come in time").retry(error::Retry::NoAnswer)
}

/// What an answer says in detail, if it is a sidecar's own word (RFC 9457) that a claim is of this kind.
fn problem(body: &Result<Bytes, Error>, kind: Kind) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Problem {
        r#type: String,
        #[serde(default)]
        detail: String,
    }
    let problem: Problem = serde_json::from_slice(body.as_ref().ok()?).ok()?;
    let detail = problem.detail.chars().take(DETAIL_MAX).collect();
    problem.r#type.ends_with(kind.word()).then_some(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(seconds: u64) -> Limit {
        let begun = Instant::now() + Duration::from_secs(seconds);
        let whole = begun;
        Limit { begun, whole }
    }

    #[tokio::test(start_paused = true)]
    async fn each_address_has_its_share_of_what_the_earlier_ones_left() {
        let limit = limit(6);
        let head = |left| Share::of(limit, left).head - Instant::now();
        assert_eq!(head(3), Duration::from_secs(2));
        // The first refused after a second.
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(head(2), Duration::from_millis(2_500));
        assert_eq!(head(1), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_nobody_had_time_to_try_is_not_called_unreachable() {
        let limit = limit(5);
        let share = Share::of(limit, 1);
        assert_eq!(share.connect().unwrap().until, Instant::now() + CONNECT);
        tokio::time::advance(Duration::from_secs(5)).await;
        let share = Share::of(limit, 1);
        assert_eq!(share.connect().unwrap_err().kind(), Kind::Deadline);
    }
}
