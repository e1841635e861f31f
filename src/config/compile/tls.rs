//! `tls`, `inbound.allow` and the TLS of a service: who we are, and who others must be.

use std::path::PathBuf;

use super::{Around, outbound};
use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{
    Address, Allow, PathPattern, PeerName, ServiceTls, TlsFiles, TlsIndex, Wanted,
};
use crate::config::names::parse_name;
use crate::config::patterns::{parse_path_rule, parse_wanted};
use crate::config::read::{At, Map, all, listed};
use crate::config::words::{ALLOW, TLS, nearest};

/// Identities of one file, at most.
const IDENTITIES_MAX: usize = 16;
/// Rules of `allow`, and names of one rule, at most.
const RULES_MAX: usize = 1000;

/// Reads every identity, in file order.
pub(super) fn identities(at: &At<'_>) -> Option<Vec<TlsFiles>> {
    let read = |(name, at): &(&str, At<'_>)| {
        let name = parse_name(name).map_err(|error| at.invalid_key(error)).ok();
        let map = at.map(&TLS)?;
        let file = |word| map.need(word, |at| at.parse("a path", path));
        let (cert, key, ca) = (file("cert"), file("key"), file("ca"));
        Some(TlsFiles {
            name: name?,
            cert: cert?,
            key: key?,
            ca: ca?,
        })
    };
    all(at.named(IDENTITIES_MAX)?.iter().map(read))
}

/// A path; where it leads is for whoever reads it.
pub(super) fn path(text: &str) -> Result<PathBuf, Invalid> {
    match text.is_empty() || text.contains('\0') {
        true => Err(Invalid::new("a path is not empty")),
        false => Ok(PathBuf::from(text)),
    }
}

/// Reads the name of an identity.
pub(super) fn identity(at: &At<'_>, around: &Around) -> Option<TlsIndex> {
    let known = around.identities.as_ref()?;
    at.parse("a name of `tls`", |text| {
        if let Some(index) = known.iter().position(|name| name == text) {
            return Ok(TlsIndex(index));
        }
        let hint = nearest(text, known.iter().map(String::as_str));
        let there = match (&hint, known.is_empty()) {
            (_, true) => "; there is no `tls` section".to_owned(),
            (Some(_), _) => String::new(),
            (None, _) => format!("; there are {}", listed(known)),
        };
        let reason = format!("no entry of `tls` is called {}{there}", quoted(text));
        Err(Invalid::new(reason).hint(hint))
    })
}

/// Reads `tls` and `identity` of a service. Without `identity`, its certificate must have the name by which it is called.
pub(super) fn service(
    map: &Map<'_>,
    addresses: Option<&[Address]>,
    around: &Around,
) -> Option<Option<ServiceTls>> {
    let identity = map.maybe("tls", |at| identity(at, around));
    let expected = map.maybe("identity", |at| {
        at.parse(
            "a DNS name or a URI such as spiffe://shop/billing",
            peer_name,
        )
    });
    if let (Some(at), None) = (map.find("identity"), map.find("tls")) {
        at.error("nobody's certificate is seen without `tls`");
        return None;
    }
    let (Some(identity), expected) = (identity?, expected?) else {
        return Some(None);
    };
    let expected = match (expected, addresses) {
        (Some(expected), _) => expected,
        (None, Some(addresses)) => match one_name(addresses) {
            Some(name) => PeerName::Dns(name.to_owned()),
            None => {
                let at = map.find("tls")?;
                at.error(
                    "its addresses are not all of one DNS name: say by `identity` what its certificate must call it",
                );
                return None;
            }
        },
        (None, None) => return None,
    };
    Some(Some(ServiceTls { identity, expected }))
}

/// The one DNS name of all addresses.
fn one_name(addresses: &[Address]) -> Option<&str> {
    let (first, rest) = addresses.split_first()?;
    let named = first.host.parse::<std::net::IpAddr>().is_err();
    let alike = rest.iter().all(|other| other.host == first.host);
    (named && alike).then_some(first.host.as_str())
}

fn peer_name(text: &str) -> Result<PeerName, Invalid> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let whole = !scheme.is_empty() && !rest.is_empty() && !rest.contains(['*', ' ']);
        if whole && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(PeerName::Uri(text.to_owned()));
        }
        let text = quoted(text);
        return Err(Invalid::new(format!(
            "{text} is not one URI, whole and without `*`"
        )));
    }
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(plain)
    };
    if text.split('.').all(label) && text.len() <= 253 && text.parse::<std::net::IpAddr>().is_err()
    {
        return Ok(PeerName::Dns(text.to_ascii_lowercase()));
    }
    let text = quoted(text);
    Err(Invalid::new(format!(
        "{text} is neither a DNS name nor a URI such as spiffe://shop/billing"
    )))
}

/// Reads `inbound.allow`.
pub(super) fn allow(at: &At<'_>, encrypted: bool) -> Option<Vec<Allow>> {
    let list = at.list(RULES_MAX, "[{ from: \"spiffe://shop/*\" }]")?;
    if list.is_empty() {
        at.warning("an empty list lets nobody call the app");
    }
    all(list.iter().map(|at| rule(at, encrypted)))
}

/// A name of a certificate or its beginning. DNS names have no case.
fn parse_peer(text: &str) -> Result<Wanted, Invalid> {
    if text.is_empty() {
        return Err(Invalid::new("an empty value names nobody"));
    }
    let is_uri = text.contains(':');
    parse_wanted(text).map(|wanted| match wanted {
        Wanted::Exact(name) if !is_uri => Wanted::Exact(name.to_ascii_lowercase()),
        Wanted::Prefix(name) if !is_uri => Wanted::Prefix(name.to_ascii_lowercase()),
        wanted => wanted,
    })
}

fn rule(at: &At<'_>, encrypted: bool) -> Option<Allow> {
    let map = at.map(&ALLOW)?;
    let from = map.or("from", Vec::new(), |at| {
        if !encrypted {
            at.error("who calls is known by its certificate only: this needs `inbound.tls`");
            return None;
        }
        let one = |at: &At<'_>| {
            at.parse(
                "a name of a certificate, such as spiffe://shop/*",
                parse_peer,
            )
        };
        if at.is_list() {
            let names = at.list(RULES_MAX, "[\"spiffe://shop/orders\"]")?;
            if names.is_empty() {
                at.error("an empty list names nobody; to allow everyone, leave `from` out");
                return None;
            }
            return all(names.iter().map(one));
        }
        one(at).map(|name| vec![name])
    });
    let methods = map.or("methods", Vec::new(), |at| {
        let methods = outbound::methods(at)?;
        if methods.contains(&http::Method::CONNECT) {
            at.error("CONNECT is switched off at this door: a tunnel into the app is not offered");
            return None;
        }
        Some(methods)
    });
    let path = map.or("path", PathPattern::Any, |at| {
        at.parse("a path such as /invoices or /invoices/**", parse_path_rule)
    });
    Some(Allow {
        from: from?,
        methods: methods?,
        path: path?,
    })
}
