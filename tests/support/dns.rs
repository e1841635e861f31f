//! A name server on loopback that knows one list of IPv4 addresses, whatever it is asked for (RFC 1035 section 4).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A running name server. It ends when dropped.
pub(crate) struct Dns {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    answers: Arc<Mutex<(Vec<Ipv4Addr>, u32)>>,
    asked: Arc<Mutex<usize>>,
    serving: JoinHandle<()>,
}

impl Dns {
    /// Starts one that answers with these addresses, which hold for `ttl` seconds.
    pub(crate) async fn start(addresses: &[Ipv4Addr], ttl: u32) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = socket.local_addr().expect("the socket is bound");
        let answers = Arc::new(Mutex::new((addresses.to_vec(), ttl)));
        let asked = Arc::new(Mutex::new(0));
        let serving = Handle::current().spawn(serve(socket, answers.clone(), asked.clone()));
        Self {
            address,
            answers,
            asked,
            serving,
        }
    }

    /// Answers with other addresses from now on.
    pub(crate) fn now(&self, addresses: &[Ipv4Addr]) {
        self.answers.lock().expect("no holder panics").0 = addresses.to_vec();
    }

    /// How often it was asked for IPv4 addresses.
    pub(crate) fn asked(&self) -> usize {
        *self.asked.lock().expect("no holder panics")
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(
    socket: UdpSocket,
    answers: Arc<Mutex<(Vec<Ipv4Addr>, u32)>>,
    asked: Arc<Mutex<usize>>,
) {
    let mut packet = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut packet).await {
        let query = &packet[..length];
        let name = query[12..]
            .iter()
            .position(|byte| *byte == 0)
            .expect("a name ends")
            + 13;
        let question = &query[12..name + 4];
        let for_ipv4 = query[name..name + 2] == [0, 1];
        let (addresses, ttl) = answers.lock().expect("no holder panics").clone();
        let addresses = if for_ipv4 { addresses } else { Vec::new() };
        *asked.lock().expect("no holder panics") += usize::from(for_ipv4);
        let count = u8::try_from(addresses.len()).expect("a handful");
        // The same id; an answer, recursion available; one question, so many answers.
        let mut answer = [
            &query[..2],
            &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0],
            question,
        ]
        .concat();
        for address in addresses {
            answer.extend([0xc0, 12, 0, 1, 0, 1]);
            answer.extend(ttl.to_be_bytes());
            answer.extend([0, 4]);
            answer.extend(address.octets());
        }
        socket
            .send_to(&answer, from)
            .await
            .expect("loopback takes it");
    }
}
