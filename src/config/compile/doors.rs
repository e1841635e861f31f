//! The doors: where each listens, and that no two want the same place.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::{Around, tls};
use crate::config::address::{arrives_at, collide, parse_listen};
use crate::config::model::{Config, Inbound};
use crate::config::read::{At, Map};
use crate::config::words::{DOOR, INBOUND};

/// Where the app's calls leave unless the file says otherwise.
pub(super) const OUTBOUND_DEFAULT: SocketAddr = local(4140);
const ADMIN_DEFAULT: SocketAddr = local(4191);

const fn local(port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

/// Reads where a door listens.
pub(super) fn listen(at: &At<'_>) -> Option<SocketAddr> {
    at.parse("an address such as 127.0.0.1:4140", parse_listen)
}

/// Reads `inbound`.
pub(super) fn inbound(at: &At<'_>, around: &Around) -> Option<Inbound> {
    let map = at.map(&INBOUND)?;
    let listen = map.need("listen", listen);
    let encrypted = map.find("tls").is_some();
    let tls = map.maybe("tls", |at| tls::identity(at, around));
    let allow = map.maybe("allow", |at| tls::allow(at, encrypted));
    if map.find("allow").is_none() {
        at.warning(match encrypted {
            true => "there is no `allow`: everyone with a certificate of the CA may call the app",
            false => "there is no `allow`: everyone who reaches this port may call the app",
        });
    }
    Some(Inbound {
        listen: listen?,
        tls: tls?,
        allow: allow?,
    })
}

/// Reads `probe`.
pub(super) fn probe(at: &At<'_>) -> Option<SocketAddr> {
    at.map(&DOOR)?.need("listen", listen)
}

/// Reads `admin`.
pub(super) fn admin(file: &Map<'_>) -> Option<SocketAddr> {
    file.or("admin", ADMIN_DEFAULT, |at| {
        at.map(&DOOR)?.or("listen", ADMIN_DEFAULT, |at| {
            let address = listen(at)?;
            if !address.ip().is_loopback() {
                at.warning(
                    "everyone who reaches this port may do what is meant for this machine alone",
                );
            }
            Some(address)
        })
    })
}

/// Refuses two doors at one place, and an app that is one of our own doors.
pub(super) fn check(file: &Map<'_>, config: &Config) {
    let mut doors: Vec<(&str, SocketAddr)> = vec![("admin", config.admin)];
    doors.extend(
        config
            .outbound
            .iter()
            .map(|outbound| ("outbound", outbound.listen)),
    );
    doors.extend(
        config
            .inbound
            .iter()
            .map(|inbound| ("inbound", inbound.listen)),
    );
    doors.extend(config.probe.map(|probe| ("probe", probe)));
    for (index, (name, address)) in doors.iter().enumerate() {
        let earlier = doors[..index]
            .iter()
            .find(|(_, other)| collide(*address, *other));
        let Some((other, taken)) = earlier else {
            continue;
        };
        // One of them may be a default, which has no place in the file.
        let at = place(file, name).map(|at| (at, other, taken));
        let at = at.or_else(|| place(file, other).map(|at| (at, name, address)));
        if let Some((at, other, taken)) = at {
            at.error(format!(
                "`{other}` listens on {taken} already; each door needs its own port"
            ));
        }
    }
    if let (Some(at), Some(app)) = (file.find("app"), &config.app)
        && let Some((name, _)) = doors.iter().find(|(_, door)| arrives_at(app, *door))
    {
        at.error(format!(
            "this is the sidecar's own `{name}` door, not the app's address"
        ));
    }
}

fn place<'a>(file: &Map<'a>, section: &str) -> Option<At<'a>> {
    file.find(section)?.peek("listen")
}
