//! Accepts connections and hands them to the worker threads in turn.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::http::Door;
use crate::lifecycle::{Guard, Workers};

/// How long accepting rests after an error such as a lack of file descriptors; a tight loop would only burn CPU.
const REST: Duration = Duration::from_millis(100);

/// Binds a listening socket.
///
/// # Errors
/// The address is in use or not ours; the message names it.
pub async fn bind(name: &str, address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("the {name} door can not listen on {address}: {error}"),
        )
    })
}

/// Accepts until the drain begins. At the connection limit the newest callers wait in the listen queue.
pub async fn accept(
    listener: TcpListener,
    door: Arc<Door>,
    workers: Arc<Workers>,
    mut guard: Guard,
) {
    let places = Arc::new(Semaphore::new(door.connections_max));
    loop {
        let accepted = tokio::select! {
            // Draining goes first: a stopped door takes nothing more, however many knock.
            biased;
            _end = guard.draining() => return,
            accepted = accept_one(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let (door, guard) = (Arc::clone(&door), guard.clone());
                workers.next().spawn(async move {
                    // Registered with the worker's own event queue, not with the accepting thread's.
                    match TcpStream::from_std(stream) {
                        Ok(stream) => door.serve(stream, guard).await,
                        Err(error) => {
                            tracing::warn!(%error, "connection lost before it was served")
                        }
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(door = door.name, %error, "accept failed; resting");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn accept_one(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(std::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream.into_std()?, place))
}
