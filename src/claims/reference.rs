//! What stands behind `/.wayside/claims/` in the address that the app gets: all that the receiving sidecar needs to
//! fetch the body, so that it has to remember nothing.
//!
//! It is opaque to the app and not signed: it names a service, never an address to connect to, and the claim's own id
//! is signed by the sidecar that keeps the body. Whoever forges one can only ask services of the config for claims that
//! he has the ids of.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::id;
use crate::error::{Error, Kind};

/// Longest text that is looked at, in bytes.
const TEXT_MAX: usize = 4096;
const VERSION: u8 = 2;
/// Longest service name that the config allows.
const ORIGIN_MAX: usize = 63;
/// Longest `host:port`: 253 characters of a DNS name and a port.
const INSTANCE_MAX: usize = 253 + 6;
/// Longest address at an origin, and longest media type.
const PATH_MAX: usize = 1024;
const TYPE_MAX: usize = 255;

/// Where a message's whole body is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The service that keeps it: a name for the config to resolve.
    pub origin: String,
    /// Which of its instances, as `host:port`; only a hint, to be used if the service resolves to it. Empty if unknown.
    pub instance: String,
    /// The claim's id there.
    pub claim: String,
    /// Its path and query at the origin's own API, if that is where it is. Only a path that the config's template could
    /// make is asked for.
    pub path: String,
    /// The body's media type; empty for JSON.
    pub media_type: String,
    /// SHA-256 of the body.
    pub digest: [u8; 32],
    /// Bytes of the body.
    pub size: u64,
    /// Until when it is served, in whole seconds.
    pub expires: SystemTime,
    /// When the message was made, in whole seconds: what is not found soon after may yet be.
    pub made: SystemTime,
    /// Stands for the subscription whose app got it, so that its hydrations are counted there.
    pub reader: [u8; 4],
}

impl Reference {
    /// The text for a URL's path segment; `None` if a part has not its form, which a record from elsewhere may cause.
    pub fn encode(&self) -> Option<String> {
        let seconds = |time: SystemTime| Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs());
        let (expires, made) = (seconds(self.expires)?, seconds(self.made)?);
        if !self.is_sound() {
            return None;
        }
        let mut bytes = vec![VERSION];
        for text in [
            &self.origin,
            &self.instance,
            &self.claim,
            &self.path,
            &self.media_type,
        ] {
            bytes.extend_from_slice(&u16::try_from(text.len()).ok()?.to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes.extend_from_slice(&self.digest);
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&expires.to_be_bytes());
        bytes.extend_from_slice(&made.to_be_bytes());
        bytes.extend_from_slice(&self.reader);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads the text back.
    ///
    /// # Errors
    /// [`Kind::Unknown`] for anything that [`Reference::encode`] does not write.
    pub fn decode(text: &str) -> Result<Self, Error> {
        let unknown = || Error::new(Kind::Unknown, "no claim has this reference");
        if text.len() > TEXT_MAX {
            return Err(unknown());
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|cause| unknown().because(cause))?;
        parse(&bytes).filter(Self::is_sound).ok_or_else(unknown)
    }

    fn is_sound(&self) -> bool {
        let name = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=ORIGIN_MAX).contains(&self.origin.len())
            && self.instance.len() <= INSTANCE_MAX
            && (1..=id::TEXT_LEN).contains(&self.claim.len())
            && self.origin.bytes().all(name)
            && self.instance.bytes().all(host)
            && self.claim.bytes().all(token)
            && self.path.len() <= PATH_MAX
            && self.path.bytes().all(|byte| byte.is_ascii_graphic())
            && (self.path.is_empty() || self.path.starts_with('/'))
            && self.media_type.len() <= TYPE_MAX
            && self
                .media_type
                .bytes()
                .all(|byte| matches!(byte, b' '..=b'~'))
    }
}

fn parse(bytes: &[u8]) -> Option<Reference> {
    let mut rest = bytes.strip_prefix(&[VERSION])?;
    let mut text = || {
        let (len, after) = rest.split_first_chunk()?;
        let (text, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        rest = after;
        String::from_utf8(text.to_vec()).ok()
    };
    let (origin, instance, claim) = (text()?, text()?, text()?);
    let (path, media_type) = (text()?, text()?);
    let (digest, rest) = rest.split_first_chunk()?;
    let (size, rest) = rest.split_first_chunk()?;
    let (expires, rest) = rest.split_first_chunk()?;
    let (made, rest) = rest.split_first_chunk()?;
    let reader = rest.try_into().ok()?;
    let time = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    Some(Reference {
        origin,
        instance,
        claim,
        path,
        media_type,
        digest: *digest,
        size: u64::from_be_bytes(*size),
        expires: time(u64::from_be_bytes(*expires))?,
        made: time(u64::from_be_bytes(*made))?,
        reader,
    })
}

#[cfg(test)]
impl Default for Reference {
    fn default() -> Self {
        Self {
            origin: String::new(),
            instance: String::new(),
            claim: String::new(),
            path: String::new(),
            media_type: String::new(),
            digest: [0; 32],
            size: 0,
            expires: UNIX_EPOCH,
            made: UNIX_EPOCH,
            reader: [0; 4],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> Reference {
        Reference {
            origin: "orders".into(),
            instance: "10.0.0.7:4143".into(),
            claim: "AQID-_".into(),
            path: "/orders/o-1?full=1".into(),
            media_type: "image/png".into(),
            digest: [9; 32],
            size: 1 << 40,
            expires: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            made: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            reader: *b"read",
        }
    }

    #[test]
    fn a_reference_comes_back_as_it_was() {
        for instance in ["10.0.0.7:4143", "[::1]:4143", ""] {
            let reference = Reference {
                instance: instance.into(),
                ..reference()
            };
            let text = reference.encode().expect("it is sound");
            assert_eq!(
                Reference::decode(&text).expect("it was just encoded"),
                reference
            );
        }
    }

    #[test]
    fn the_longest_one_fits_the_limit() {
        let longest = Reference {
            origin: "o".repeat(ORIGIN_MAX),
            instance: "i".repeat(INSTANCE_MAX),
            claim: "c".repeat(id::TEXT_LEN),
            path: format!("/{}", "p".repeat(PATH_MAX - 1)),
            media_type: "m".repeat(TYPE_MAX),
            ..reference()
        };
        let text = longest.encode().expect("it is sound");
        assert!(text.len() <= TEXT_MAX);
        assert_eq!(
            Reference::decode(&text).expect("it was just encoded"),
            longest
        );
    }

    #[test]
    fn parts_that_could_change_the_address_are_refused() {
        for unsound in [
            Reference {
                origin: "a/b".into(),
                ..reference()
            },
            Reference {
                origin: String::new(),
                ..reference()
            },
            Reference {
                origin: "o".repeat(64),
                ..reference()
            },
            Reference {
                instance: "user@host:1".into(),
                ..reference()
            },
            Reference {
                claim: "../admin".into(),
                ..reference()
            },
            Reference {
                claim: "x\r\ny".into(),
                ..reference()
            },
            Reference {
                path: "http://elsewhere/".into(),
                ..reference()
            },
            Reference {
                path: "/a b".into(),
                ..reference()
            },
            Reference {
                media_type: "x\r\ny: z".into(),
                ..reference()
            },
            Reference {
                expires: UNIX_EPOCH - Duration::from_secs(1),
                ..reference()
            },
        ] {
            assert_eq!(unsound.encode(), None, "{unsound:?}");
        }
    }

    #[test]
    fn garbage_is_an_unknown_claim() {
        let text = reference().encode().expect("it is sound");
        let mut garbage = vec![
            String::new(),
            "é".into(),
            "=".into(),
            "A".repeat(8192),
            format!("{text}AAAA"),
        ];
        garbage.extend((0..text.len()).map(|end| text[..end].to_owned()));
        let forged = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        garbage.extend([forged(&[1, 255, 255]), forged(&[2]), forged(&[0; 60])]);
        let mut rng = fastrand::Rng::with_seed(1);
        garbage
            .extend((0..2_000).map(|_| forged(&std::array::from_fn::<u8, 90, _>(|_| rng.u8(..3)))));
        for text in garbage {
            assert_eq!(
                Reference::decode(&text).expect_err(&text).kind(),
                Kind::Unknown
            );
        }
    }
}
