//! Addresses: what is called (`host:port`) and what is listened on (`IP:port`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::diagnostic::{Invalid, quoted};
use super::model::Address;

/// Reads `host:port`, where host is a DNS name, an IPv4 address or an IPv6 address in brackets; port 1 to 65535.
///
/// # Errors
///
/// Says what is wrong and, where it can be told, what was meant.
pub fn parse_address(text: &str) -> Result<Address, Invalid> {
    let wrong = |why: &str| Invalid::new(format!("{} is not an address: {why}", quoted(text)));
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = match (scheme, has_port(host)) {
            ("http", false) => format!("{host}:80"),
            ("https", false) => format!("{host}:443"),
            _ => host.to_owned(),
        };
        let hint = parse_address(&host).is_ok().then_some(host);
        return Err(wrong("write `host:port` alone, without a scheme").hint(hint));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(wrong(
            "IPv6 stands in brackets before its port, such as [::1]:80",
        ));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        let hint = parse_port(text)
            .filter(|port| *port > 0)
            .map(|port| format!("127.0.0.1:{port}"));
        return Err(wrong("it must be HOST:PORT").hint(hint));
    };
    let port = match parse_port(port) {
        Some(0) => return Err(wrong("port 0 cannot be called")),
        Some(port) => port,
        None => return Err(wrong("its port is not a number from 1 to 65535")),
    };
    let host = match host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
    {
        Some(inner) => match inner.parse::<Ipv6Addr>() {
            Ok(ip) => ip.to_string(),
            Err(_) => return Err(wrong("only an IPv6 address stands in brackets")),
        },
        None => parse_host(host).map_err(wrong)?,
    };
    Ok(Address { host, port })
}

/// Reads `IP:port`; port 0 lets the system choose.
pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, Invalid> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let hint = parse_port(port).and_then(|port| match host {
        "localhost" => Some(format!("127.0.0.1:{port}")),
        "" | "*" => Some(format!("0.0.0.0:{port}")),
        _ => None,
    });
    let reason = format!(
        "{} is not an address to listen on; write an IP address and a port, such as 127.0.0.1:4140",
        quoted(text)
    );
    Err(Invalid::new(reason).hint(hint))
}

/// Reads a host alone, in lower case: a DNS name or an IPv4 address.
pub(super) fn parse_host(text: &str) -> Result<String, &'static str> {
    const LONGEST: usize = 253;
    if text.is_empty() {
        return Err("its host is missing");
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() > LONGEST {
        return Err("its host is over 253 characters");
    }
    let digits = |letter: char| letter.is_ascii_digit() || letter == '.';
    if name.chars().all(digits) {
        let ip = text
            .parse::<Ipv4Addr>()
            .map_err(|_| "its host is not an IPv4 address")?;
        return Ok(ip.to_string());
    }
    if name.split('.').all(is_label) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("its host is not a DNS name: letters, digits, `-` and `.`")
    }
}

/// Whether two doors cannot both be opened.
pub(super) fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_ip =
        one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    // An unspecified IPv6 address takes IPv4 too, unless the system says otherwise.
    let both = one.is_ipv4() == other.is_ipv4() || takes_both(one) || takes_both(other);
    one.port() != 0 && one.port() == other.port() && same_ip && both
}

/// Whether calls to `address` arrive at the door `door` of this process.
pub(super) fn arrives_at(address: &Address, door: SocketAddr) -> bool {
    let ip = match address.host.as_str() {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host => host.parse::<IpAddr>().ok(),
    };
    let near =
        ip.is_some_and(|ip| ip == door.ip() || (ip.is_loopback() && door.ip().is_unspecified()));
    near && door.port() == address.port
}

fn takes_both(address: SocketAddr) -> bool {
    address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

fn is_label(label: &str) -> bool {
    let word = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    (1..=63).contains(&label.len())
        && label.chars().all(word)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn has_port(host: &str) -> bool {
    host.rsplit_once(':')
        .is_some_and(|(_, port)| parse_port(port).is_some())
}

/// A port in digits, without sign or leading zero.
fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    if digits && !leading_zero {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let shown = |text| parse_address(text).unwrap().to_string();
        assert_eq!(shown("Billing.Shop.svc:4143"), "billing.shop.svc:4143");
        assert_eq!(shown("127.0.0.1:80"), "127.0.0.1:80");
        assert_eq!(shown("[0::1]:80"), "[::1]:80");
        let bad = [
            "",
            ":80",
            "billing",
            "billing:",
            "billing:0",
            "billing:080",
            "billing:+80",
            "a:65536",
            "::1",
            "::1:80",
            "[::1]",
            "[a]:80",
            "010.0.0.1:80",
            "1.2.3:80",
            "-a:80",
            "a..b:80",
            "a b:80",
            "user@host:80",
            "a/b:80",
        ];
        for text in bad {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_url_gets_its_address_as_a_hint() {
        let hint = |text| parse_address(text).unwrap_err().hint;
        assert_eq!(
            hint("http://billing:4143/x").as_deref(),
            Some("billing:4143")
        );
        assert_eq!(hint("https://billing").as_deref(), Some("billing:443"));
        assert_eq!(hint("://"), None);
    }

    #[test]
    fn a_door_is_an_ip_address_and_a_port() {
        assert!(parse_listen("127.0.0.1:0").is_ok());
        assert!(parse_listen("[::]:4140").is_ok());
        assert_eq!(
            parse_listen("localhost:4140").unwrap_err().hint.as_deref(),
            Some("127.0.0.1:4140")
        );
        assert_eq!(
            parse_listen(":4140").unwrap_err().hint.as_deref(),
            Some("0.0.0.0:4140")
        );
        assert_eq!(parse_listen("orders:4140").unwrap_err().hint, None);
    }

    #[test]
    fn doors_collide_on_one_port() {
        let door = |text: &str| text.parse().unwrap();
        assert!(collide(door("0.0.0.0:1"), door("127.0.0.1:1")));
        assert!(collide(door("[::]:1"), door("127.0.0.1:1")));
        assert!(!collide(door("127.0.0.1:1"), door("127.0.0.2:1")));
        assert!(!collide(door("[::1]:1"), door("0.0.0.0:1")));
        assert!(!collide(door("127.0.0.1:0"), door("127.0.0.1:0")));
    }
}
