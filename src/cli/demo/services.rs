//! The services of the demo: plain HTTP servers and clients that know nothing of Kafka or of retries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use tokio::time::Instant;

use super::ledger::{Dead, Ledger};
use super::order::{Order, Slim};
use super::plain_http::{Client, text, word};
use super::wait::{Result, Trouble};

/// The service that takes orders. It calls `catalog` and `billing` by their names, at its sidecar's outbound door.
pub(super) struct Orders {
    door: SocketAddr,
    ledger: Arc<Ledger>,
    placed: AtomicU32,
}

/// What became of an attempt to place an order.
pub(super) struct Placed {
    /// The order's id.
    pub(super) id: String,
    /// The answer to `POST /invoices`.
    pub(super) answer: Response<Bytes>,
    /// Until that answer was read.
    pub(super) took: Duration,
}

impl Orders {
    /// A service whose sidecar listens at `door`.
    pub(super) fn new(door: SocketAddr, ledger: Arc<Ledger>) -> Self {
        Self {
            door,
            ledger,
            placed: AtomicU32::new(0),
        }
    }

    /// A connection to the sidecar.
    pub(super) fn client(&self) -> Client {
        Client::new(self.door)
    }

    /// Reads an item of the catalog: how long it took, or what the caller saw instead.
    pub(super) async fn read(&self, client: &mut Client, item: u32) -> Result<Duration> {
        let start = Instant::now();
        let answer = client.get("catalog", &format!("/items/{item}")).await?;
        let right = answer.status() == StatusCode::OK && answer.body() == &item_text(item);
        right.then(|| start.elapsed()).ok_or_else(|| {
            let (status, body) = (answer.status(), String::from_utf8_lossy(answer.body()));
            Trouble::new(format!("a read was answered with {status}: {body}"))
        })
    }

    /// The next order's number.
    pub(super) fn number(&self) -> u32 {
        self.placed.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Tells billing of an order, by a call like any other.
    ///
    /// # Errors
    /// The sidecar does not answer at all.
    pub(super) async fn place(&self, client: &mut Client, order: Order) -> Result<Placed> {
        self.ledger.sending(&order);
        let start = Instant::now();
        let answer = client.post("billing", "/invoices", order.body).await?;
        let took = start.elapsed();
        if answer.status() == StatusCode::ACCEPTED {
            self.ledger.acked(&order.id);
        }
        Ok(Placed {
            id: order.id,
            answer,
            took,
        })
    }

    /// `POST /orders`, for people with curl: reads the catalog, tells billing, and passes its answer on.
    pub(super) async fn serve(self: Arc<Self>, _request: Request<Bytes>) -> Response<Bytes> {
        let (mut client, number) = (self.client(), self.number());
        let outcome = async {
            self.read(&mut client, number % 1000).await?;
            self.place(&mut client, Order::new(number)).await
        };
        match outcome.await {
            Ok(placed) => passed_on(placed.answer),
            Err(trouble) => text(StatusCode::BAD_GATEWAY, trouble.to_string()),
        }
    }
}

/// The answer without what belongs to the connection that it came over.
fn passed_on(answer: Response<Bytes>) -> Response<Bytes> {
    let (head, body) = answer.into_parts();
    let mut passed = text(head.status, body);
    for name in [header::LOCATION, header::CONTENT_TYPE, header::RETRY_AFTER] {
        if let Some(value) = head.headers.get(&name) {
            passed.headers_mut().insert(name, value.clone());
        }
    }
    passed
}

/// Catalog: the text of an item.
pub(super) async fn catalog(request: Request<Bytes>) -> Response<Bytes> {
    let item = request
        .uri()
        .path()
        .strip_prefix("/items/")
        .and_then(|item| item.parse().ok());
    match item {
        Some(item) => text(StatusCode::OK, item_text(item)),
        None => text(StatusCode::NOT_FOUND, "no such item"),
    }
}

fn item_text(item: u32) -> String {
    format!("{{\"item\":{item},\"name\":\"item number {item}\"}}")
}

/// Billing: refuses a total below zero, else fetches the order's lines and charges them.
pub(super) async fn billing(ledger: Arc<Ledger>, request: Request<Bytes>) -> Response<Bytes> {
    let Ok(slim) = serde_json::from_slice::<Slim>(request.body()) else {
        return text(StatusCode::BAD_REQUEST, "an order is JSON");
    };
    if slim.total < 0 {
        ledger.refused(&slim.id);
        return text(
            StatusCode::UNPROCESSABLE_ENTITY,
            "a total below zero cannot be charged",
        );
    }
    match hydrate(&request).await {
        Ok(whole) => {
            ledger.charged(&slim.id, &whole);
            text(StatusCode::NO_CONTENT, Bytes::new())
        }
        Err(trouble) => {
            ledger.postponed(&slim.id);
            text(StatusCode::SERVICE_UNAVAILABLE, trouble.to_string())
        }
    }
}

/// Reads the whole order from the address that came with its small form.
async fn hydrate(request: &Request<Bytes>) -> Result<Bytes> {
    let claim = word(request.headers(), "wayside-claim");
    let bad = || {
        Trouble::new(format!(
            "the order came without an address to read: {claim:?}"
        ))
    };
    let claim: Uri = claim.parse().map_err(|_| bad())?;
    let authority = claim.authority().ok_or_else(bad)?.as_str();
    let address = authority.parse().map_err(|_| bad())?;
    let path = claim.path_and_query().ok_or_else(bad)?.as_str();
    let answer = Client::new(address).get(authority, path).await?;
    if answer.status() != StatusCode::OK {
        return Err(Trouble::new(format!(
            "the claim was answered with {}",
            answer.status()
        )));
    }
    Ok(answer.into_body())
}

/// Audit: writes down that an order was seen, for which the small form is enough, and keeps the dead letters.
pub(super) async fn audit(ledger: Arc<Ledger>, request: Request<Bytes>) -> Response<Bytes> {
    let Ok(slim) = serde_json::from_slice::<Slim>(request.body()) else {
        return text(StatusCode::BAD_REQUEST, "an order is JSON");
    };
    if request.uri().path() == "/dead" {
        let reason = |name: &http::HeaderName| name.as_str().starts_with("wayside-dead");
        let headers = request.headers().iter().filter(|(name, _)| reason(name));
        let reasons = headers
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
        ledger.buried(Dead {
            id: slim.id,
            reasons: reasons.collect(),
        });
    } else {
        ledger.audited(&slim.id, request.body().len());
    }
    text(StatusCode::NO_CONTENT, Bytes::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(order: Order) -> Request<Bytes> {
        let mut request = Request::new(order.body);
        *request.uri_mut() = Uri::from_static("/invoices");
        request
    }

    #[tokio::test]
    async fn billing_refuses_the_poison_for_good_and_asks_again_where_it_cannot_hydrate() {
        let ledger = Arc::new(Ledger::default());
        let refused = billing(Arc::clone(&ledger), delivery(Order::poison(1))).await;
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let postponed = billing(ledger, delivery(Order::new(2))).await;
        assert_eq!(postponed.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn a_dead_letter_keeps_its_reasons() {
        let ledger = Arc::new(Ledger::default());
        let mut letter = delivery(Order::poison(7));
        *letter.uri_mut() = Uri::from_static("/dead");
        letter
            .headers_mut()
            .insert("wayside-dead-reason", http::HeaderValue::from_static("422"));
        audit(Arc::clone(&ledger), letter).await;
        let dead = ledger.dead();
        assert_eq!((dead[0].id.as_str(), dead[0].reasons.len()), ("order-7", 1));
        assert_eq!(dead[0].reasons[0], "wayside-dead-reason: 422");
    }
}
