//! What there is to try while the demo stays.

use super::wait::Result;
use super::world::World;

/// Calls to make with curl, with the ports of this run.
///
/// # Errors
/// A sidecar lacks a door.
pub(super) fn text(world: &World) -> Result<String> {
    let [orders, billing, audit] = &world.sidecars;
    let (door, admin) = (orders.outbound()?, orders.admin()?);
    let folder = world.folder.path("");
    let body = r#"{"id":"mine","customer":"me","total":100,"lines":[{"item":7,"quantity":2}]}"#;
    Ok(format!(
        "
Everything still runs; Ctrl-C ends it. The files of the sidecars are in {folder}

an order, at the service itself, which knows nothing of Wayside:
  curl -si -X POST http://{app}/orders

a read, as orders makes it: forwarded to a living replica of catalog
  curl -si -H 'Host: catalog' http://{door}/items/7

an order, as orders makes it: published, and answered with 202 and a Location
  curl -si -H 'Host: billing' -H 'Content-Type: application/json' http://{door}/invoices \\
    -d '{body}'

the timeline of that message: put the id of the answer in place of ID
  curl -s http://{door}/.wayside/messages/ID

what the sidecars of orders, billing and audit count, and what they run with
  curl -s http://{admin}/metrics
  curl -s http://{billing}/metrics
  curl -s http://{audit}/metrics
  curl -s http://{admin}/config

a call that no route takes, and the route that is nearest
  curl -si -H 'Host: billing' http://{door}/invoice
",
        app = world.orders_app,
        billing = billing.admin()?,
        audit = audit.admin()?,
    ))
}
