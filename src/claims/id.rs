//! A claim's id: where its body lies and until when, signed, so that nobody can ask for any other bytes.
//!
//! Base64url without padding (RFC 4648 section 5). All begin with a version (1), the tag of whoever made it (4), and the
//! audience (8): the first bytes of SHA-256 of the topic whose records may carry it. Numbers are big-endian.
//!
//! | version | what follows |
//! |---|---|
//! | 2, a folder | segment (8), offset (4), length (4), expiry in seconds since 1970 (8), signature (16) |
//! | 3, a shared place | hour of its end since 1970 (4), length (8), expiry (8), name of the object (32), signature (16) |
//! | 4, nowhere | expiry (8) |
//!
//! The signature is the first 16 bytes of HMAC-SHA256 (RFC 2104) over all before it. Its key lies beside the bodies, so
//! ids outlive a restart exactly as long as they do. The last form leads to nothing but the address that the reader's own
//! config makes of the record's body, so there is nothing to sign in it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// Bytes of a store's key.
pub const KEY_LEN: usize = 32;

const FOLDER: u8 = 2;
const SHARED: u8 = 3;
const NOWHERE: u8 = 4;
const HEAD_LEN: usize = 13;
const FOLDER_LEN: usize = HEAD_LEN + 24;
const SHARED_LEN: usize = HEAD_LEN + 52;
const NOWHERE_LEN: usize = HEAD_LEN + 8;
const SIGNATURE_LEN: usize = 16;
/// Longest text of an id.
pub(super) const TEXT_LEN: usize = (SHARED_LEN + SIGNATURE_LEN).div_ceil(3) * 4;

/// A new key for a store.
///
/// # Errors
/// The machine gives no random bytes.
pub fn new_key() -> io::Result<[u8; KEY_LEN]> {
    let mut key = [0; KEY_LEN];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    Ok(key)
}

/// The topic whose records may carry an id.
pub type Audience = [u8; 8];

/// What stands for a topic in an id.
pub fn audience(topic: &str) -> Audience {
    first(&Sha256::digest(topic))
}

/// The kinds of stores that make ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In a folder of the sidecar that made it.
    Folder,
    /// In a place that many sidecars share.
    Shared,
    /// Nowhere: its service is asked again.
    Nowhere,
}

/// What an id says of itself before anybody has looked at its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// The kind of store.
    pub form: Form,
    /// Whose it is.
    pub tag: [u8; 4],
    /// For whom it is.
    pub audience: Audience,
}

/// Reads what an id says of itself; `None` for what has not the form of one.
pub fn look(id: &str) -> Option<Said> {
    Some(said(&decode(id)?))
}

fn said(bytes: &[u8]) -> Said {
    let form = match bytes[0] {
        FOLDER => Form::Folder,
        SHARED => Form::Shared,
        _ => Form::Nowhere,
    };
    Said {
        form,
        tag: first(&bytes[1..]),
        audience: first(&bytes[5..]),
    }
}

/// The bytes of an id: of a known version, and as many as it has.
fn decode(id: &str) -> Option<Vec<u8>> {
    if id.len() > TEXT_LEN {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(id).ok()?;
    let len = match *bytes.first()? {
        FOLDER => FOLDER_LEN + SIGNATURE_LEN,
        SHARED => SHARED_LEN + SIGNATURE_LEN,
        NOWHERE => NOWHERE_LEN,
        _ => return None,
    };
    (bytes.len() == len).then_some(bytes)
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut first = [0; N];
    first.copy_from_slice(&bytes[..N]);
    first
}

/// Where a claim lies in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// For whom it is.
    pub audience: Audience,
    /// The segment's number.
    pub segment: u64,
    /// Where its record starts in the segment's file.
    pub offset: u32,
    /// Bytes of the body.
    pub length: u32,
    /// Seconds since 1970 until which it is served.
    pub expires: u64,
}

/// Where a claim lies in a shared place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// For whom it is.
    pub audience: Audience,
    /// Hours since 1970 after which nobody has a claim on it.
    pub hour: u32,
    /// Bytes of the body.
    pub length: u64,
    /// Seconds since 1970 until which it is served.
    pub expires: u64,
    /// Its name: SHA-256 of the body, or random bytes.
    pub name: [u8; 32],
}

/// The id of a claim that lies nowhere, of the template with this tag.
pub fn nowhere(tag: [u8; 4], audience: Audience, expires: u64) -> String {
    let mut id = Vec::with_capacity(NOWHERE_LEN);
    id.push(NOWHERE);
    id.extend_from_slice(&tag);
    id.extend_from_slice(&audience);
    id.extend_from_slice(&expires.to_be_bytes());
    URL_SAFE_NO_PAD.encode(id)
}

/// Makes and checks the ids of one store.
#[derive(Clone)]
pub struct Signer {
    mac: Hmac<Sha256>,
    tag: [u8; 4],
}

impl Signer {
    /// Signs with a store's key for its owner: a service, whose folder another may inherit, or nobody.
    pub fn new(key: &[u8; KEY_LEN], owner: &str) -> Self {
        // RFC 2104 section 2: a key shorter than the hash's block is followed by zeros.
        let mut block = [0; 64];
        block[..KEY_LEN].copy_from_slice(key);
        let mac = Hmac::<Sha256>::new(&block.into());
        let of_owner = mac
            .clone()
            .chain_update(b"store of ")
            .chain_update(owner)
            .finalize();
        let tag = first(&of_owner.into_bytes());
        Self { mac, tag }
    }

    /// Whether this store made an id, by what the id says.
    pub fn made(&self, said: &Said) -> bool {
        said.tag == self.tag
    }

    /// Whether the other makes the same ids.
    pub fn is_as(&self, other: &Self) -> bool {
        self.tag == other.tag
    }

    /// The id of a claim in a folder.
    pub fn sign(&self, place: &Place) -> String {
        self.signed(FOLDER, place.audience, |id| {
            id.extend_from_slice(&place.segment.to_be_bytes());
            id.extend_from_slice(&place.offset.to_be_bytes());
            id.extend_from_slice(&place.length.to_be_bytes());
            id.extend_from_slice(&place.expires.to_be_bytes());
        })
    }

    /// The id of a claim in a shared place.
    pub fn sign_object(&self, object: &Object) -> String {
        self.signed(SHARED, object.audience, |id| {
            id.extend_from_slice(&object.hour.to_be_bytes());
            id.extend_from_slice(&object.length.to_be_bytes());
            id.extend_from_slice(&object.expires.to_be_bytes());
            id.extend_from_slice(&object.name);
        })
    }

    fn signed(&self, version: u8, audience: Audience, rest: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut id = Vec::with_capacity(SHARED_LEN + SIGNATURE_LEN);
        id.push(version);
        id.extend_from_slice(&self.tag);
        id.extend_from_slice(&audience);
        rest(&mut id);
        let signature = self.mac.clone().chain_update(&id).finalize().into_bytes();
        id.extend_from_slice(&signature[..SIGNATURE_LEN]);
        URL_SAFE_NO_PAD.encode(id)
    }

    /// Where an id points in a folder; `None` for anything that this store did not sign. Expiry is the caller's to judge.
    pub fn verify(&self, id: &str) -> Option<Place> {
        let signed = self.verified(id, Form::Folder)?;
        let rest = &signed[HEAD_LEN..];
        Some(Place {
            audience: said(&signed).audience,
            segment: u64::from_be_bytes(first(rest)),
            offset: u32::from_be_bytes(first(&rest[8..])),
            length: u32::from_be_bytes(first(&rest[12..])),
            expires: u64::from_be_bytes(first(&rest[16..])),
        })
    }

    /// Where an id points in a shared place; as [`Signer::verify`].
    pub fn verify_object(&self, id: &str) -> Option<Object> {
        let signed = self.verified(id, Form::Shared)?;
        let rest = &signed[HEAD_LEN..];
        Some(Object {
            audience: said(&signed).audience,
            hour: u32::from_be_bytes(first(rest)),
            length: u64::from_be_bytes(first(&rest[4..])),
            expires: u64::from_be_bytes(first(&rest[12..])),
            name: first(&rest[20..]),
        })
    }

    fn verified(&self, id: &str, form: Form) -> Option<Vec<u8>> {
        let mut bytes = decode(id)?;
        let said = said(&bytes);
        if said.form != form || !self.made(&said) {
            return None;
        }
        let signature = bytes.split_off(bytes.len() - SIGNATURE_LEN);
        // In constant time: how much of a guess is right must not show.
        let mac = self.mac.clone().chain_update(&bytes);
        mac.verify_truncated_left(&signature).ok()?;
        Some(bytes)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        audience: *b"for whom",
        segment: u64::MAX - 7,
        offset: 32,
        length: 1_000_000,
        expires: 1_800_000_000,
    };

    #[test]
    fn an_id_leads_back_to_its_place() {
        let signer = Signer::new(&[7; KEY_LEN], "orders");
        let id = signer.sign(&PLACE);
        assert_eq!(signer.verify(&id), Some(PLACE));
        assert_eq!(
            Signer::new(&[7; KEY_LEN], "orders").verify(&id),
            Some(PLACE)
        );
    }

    #[test]
    fn an_id_of_a_shared_place_leads_back_to_it_and_to_no_folder() {
        let signer = Signer::new(&[7; KEY_LEN], "");
        let object = Object {
            audience: audience("orders"),
            hour: 500_000,
            length: 1 << 40,
            expires: 1_800_000_000,
            name: [9; 32],
        };
        let id = signer.sign_object(&object);
        assert_eq!(
            (id.len(), signer.verify_object(&id)),
            (TEXT_LEN, Some(object))
        );
        assert_eq!(signer.verify(&id), None);
        assert_eq!(signer.verify_object(&signer.sign(&PLACE)), None);
        for at in 0..id.len() {
            let mut changed = id.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(signer.verify_object(&changed), None, "{changed}");
        }
    }

    #[test]
    fn an_id_says_what_it_is_and_for_whom() {
        let signer = Signer::new(&[7; KEY_LEN], "orders");
        let said = look(&signer.sign(&PLACE)).unwrap();
        assert_eq!((said.form, said.audience), (Form::Folder, *b"for whom"));
        assert!(signer.made(&said) && !Signer::new(&[7; KEY_LEN], "billing").made(&said));
        let said = look(&nowhere(*b"http", audience("orders"), 7)).unwrap();
        assert_eq!((said.form, said.tag), (Form::Nowhere, *b"http"));
        assert_eq!(said.audience, audience("orders"));
        assert_ne!(audience("orders"), audience("orders.dead"));
        for garbage in ["", "AQID", "AgID", &"A".repeat(108), &"B".repeat(4000), "é"] {
            assert_eq!(look(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn any_change_of_an_id_is_noticed() {
        let signer = Signer::new(&[7; KEY_LEN], "orders");
        let id = signer.sign(&PLACE);
        for at in 0..id.len() {
            for other in "AQgw09-_=. \0".chars() {
                let changed: String = id
                    .char_indices()
                    .map(|(n, old)| if n == at { other } else { old })
                    .collect();
                assert_eq!(
                    signer.verify(&changed).is_some(),
                    changed == id,
                    "{changed}"
                );
            }
            assert_eq!(signer.verify(&id[..at]), None);
        }
        assert_eq!(signer.verify(&format!("{id}A")), None);
        assert_eq!(signer.verify("é"), None);
    }

    #[test]
    fn another_key_or_service_does_not_know_the_id() {
        let id = Signer::new(&[7; KEY_LEN], "orders").sign(&PLACE);
        assert_eq!(Signer::new(&[8; KEY_LEN], "orders").verify(&id), None);
        assert_eq!(Signer::new(&[7; KEY_LEN], "billing").verify(&id), None);
    }

    #[test]
    fn the_key_is_never_printed() {
        assert_eq!(
            format!("{:?}", Signer::new(&[7; KEY_LEN], "orders")),
            "Signer([redacted])"
        );
    }
}
