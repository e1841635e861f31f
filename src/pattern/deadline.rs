//! One deadline a call, taken over from the caller and told to the next hop, and one timer, re-armed to whatever comes
//! first.
//!
//! Between hops a deadline travels as the time that is left, since clocks differ: gRPC has `grpc-timeout` for it (gRPC
//! over HTTP/2, "Requests"), every other call gets `Wayside-Timeout` in whole milliseconds.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::reply::headers::{TIMEOUT, Text};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// A deadline that is further away is none worth telling.
const FAR: Duration = Duration::from_secs(60 * 60);

/// When a call that began at `started` must be over: after `whole`, or sooner if its caller said so. What the caller said
/// is taken out of the headers; [`tell`] writes what is left of it for each try.
pub fn of(headers: &mut HeaderMap, started: Instant, whole: Duration) -> Instant {
    // Most calls have neither, and to look once at each name costs less than to look either up.
    if !headers
        .keys()
        .any(|name| *name == TIMEOUT || *name == GRPC_TIMEOUT)
    {
        return started + whole;
    }
    let grpc = headers.get_all(GRPC_TIMEOUT).iter();
    let ours = headers.get_all(TIMEOUT).iter();
    let said = grpc
        .filter_map(grpc_timeout)
        .chain(ours.filter_map(milliseconds));
    let shortest = said.fold(whole, Duration::min);
    headers.remove(GRPC_TIMEOUT);
    headers.remove(TIMEOUT);
    started + shortest
}

/// Whether there is time left `now` that a next hop could be told of, which is a whole millisecond: a call whose time is
/// over must not be run.
pub fn is_over(now: Instant, deadline: Instant) -> bool {
    deadline.saturating_duration_since(now) < Duration::from_millis(1)
}

/// Tells the next hop how much time is left `now`.
pub fn tell(headers: &mut HeaderMap, grpc: bool, now: Instant, deadline: Instant) {
    let left = deadline.saturating_duration_since(now);
    if left >= FAR {
        return;
    }
    let mut text = Text::default();
    text.push_number(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    let name = match grpc {
        true => {
            // At most eight digits by its grammar, which an hour in milliseconds has not.
            text.push("m");
            GRPC_TIMEOUT
        }
        false => TIMEOUT,
    };
    if let Ok(value) = HeaderValue::from_bytes(text.bytes()) {
        headers.insert(name, value);
    }
}

fn milliseconds(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok().map(Duration::from_millis))?
}

/// One to eight digits and a unit.
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Runs `future` until `at`; `None` when the time came first. The timer is touched only if the future has to wait.
pub async fn within<F: Future>(
    mut timer: Pin<&mut Sleep>,
    at: Instant,
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// Sets a timer that is made at its first use.
pub(super) fn arm(timer: &mut Option<Pin<Box<Sleep>>>, until: Instant) {
    match timer {
        Some(timer) => timer.as_mut().reset(until),
        None => *timer = Some(Box::pin(sleep_until(until))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_callers_deadline_shortens_ours_and_never_lengthens_it() {
        let whole = Duration::from_secs(15);
        let check = |name: &'static str, value: &'static str, expected: u64| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            let deadline = of(&mut headers, Instant::now(), whole);
            assert_eq!(
                deadline,
                Instant::now() + Duration::from_millis(expected),
                "{value}"
            );
            assert!(headers.is_empty());
        };
        check("wayside-timeout", "250", 250);
        check("wayside-timeout", "99999999", 15_000);
        for wrong in ["", "1s", "-1", "1.5", "99999999999999999999999"] {
            check("wayside-timeout", wrong, 15_000);
        }
        let mut headers = HeaderMap::new();
        headers.append(TIMEOUT, HeaderValue::from_static("9000"));
        headers.append(TIMEOUT, HeaderValue::from_static("10"));
        let shortest = Instant::now() + Duration::from_millis(10);
        assert_eq!(of(&mut headers, Instant::now(), whole), shortest);
        check("grpc-timeout", "2S", 2_000);
        check("grpc-timeout", "20m", 20);
        check("grpc-timeout", "5000u", 5);
        check("grpc-timeout", "1H", 15_000);
        for wrong in ["S", "2", "2s", "123456789m", "2 S", ""] {
            check("grpc-timeout", wrong, 15_000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_hop_hears_what_is_left() {
        let deadline = Instant::now() + Duration::from_secs(2);
        tokio::time::advance(Duration::from_millis(500)).await;
        let mut headers = HeaderMap::new();
        tell(&mut headers, false, Instant::now(), deadline);
        assert_eq!(headers[TIMEOUT], "1500");
        tell(&mut headers, true, Instant::now(), deadline);
        assert_eq!(headers[GRPC_TIMEOUT], "1500m");
        let mut headers = HeaderMap::new();
        tell(&mut headers, false, Instant::now(), Instant::now() + FAR);
        assert!(headers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_timer_serves_several_waits() {
        let start = Instant::now();
        let mut timer = pin!(tokio::time::sleep(Duration::from_secs(60)));
        let soon = start + Duration::from_secs(1);
        assert_eq!(
            within(timer.as_mut(), soon, std::future::pending::<()>()).await,
            None
        );
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert_eq!(
            within(timer.as_mut(), soon + Duration::from_secs(5), async { 7 }).await,
            Some(7)
        );
        let later = start + Duration::from_secs(3);
        assert_eq!(
            within(timer.as_mut(), later, std::future::pending::<()>()).await,
            None
        );
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }
}
