//! A claim's id: where its body lies and until when, signed, so that nobody can ask for any other bytes.
//!
//! Base64url without padding (RFC 4648 section 5) of 45 bytes: version (1), store tag (4), segment (8), offset (4),
//! length (4), expiry in seconds since 1970 (8), and the first 16 bytes of HMAC-SHA256 (RFC 2104) over all before it.
//! Numbers are big-endian. The key stays in the store's folder, so ids outlive a restart exactly as long as the bodies.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Bytes of a store's key.
pub const KEY_LEN: usize = 32;

const VERSION: u8 = 1;
const SIGNED_LEN: usize = 29;
const SIGNATURE_LEN: usize = 16;
const ID_LEN: usize = SIGNED_LEN + SIGNATURE_LEN;
/// Longest text of an id.
pub(super) const TEXT_LEN: usize = ID_LEN.div_ceil(3) * 4;

/// Where a claim lies in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The segment's number.
    pub segment: u64,
    /// Where its record starts in the segment's file.
    pub offset: u32,
    /// Bytes of the body.
    pub length: u32,
    /// Seconds since 1970 until which it is served.
    pub expires: u64,
}

/// Makes and checks the ids of one store.
#[derive(Clone)]
pub struct Signer {
    mac: Hmac<Sha256>,
    tag: [u8; 4],
}

impl Signer {
    /// Signs for one service with its store's key. A folder that another service inherits has other ids.
    pub fn new(key: &[u8; KEY_LEN], service: &str) -> Self {
        // RFC 2104 section 2: a key shorter than the hash's block is followed by zeros.
        let mut block = [0; 64];
        block[..KEY_LEN].copy_from_slice(key);
        let mac = Hmac::<Sha256>::new(&block.into());
        let mut tag = [0; 4];
        let of_service = mac
            .clone()
            .chain_update(b"store of ")
            .chain_update(service)
            .finalize();
        tag.copy_from_slice(&of_service.into_bytes()[..4]);
        Self { mac, tag }
    }

    /// The id of a claim.
    pub fn sign(&self, place: &Place) -> String {
        let mut id = Vec::with_capacity(ID_LEN);
        id.push(VERSION);
        id.extend_from_slice(&self.tag);
        id.extend_from_slice(&place.segment.to_be_bytes());
        id.extend_from_slice(&place.offset.to_be_bytes());
        id.extend_from_slice(&place.length.to_be_bytes());
        id.extend_from_slice(&place.expires.to_be_bytes());
        let signature = self.mac.clone().chain_update(&id).finalize().into_bytes();
        id.extend_from_slice(&signature[..SIGNATURE_LEN]);
        URL_SAFE_NO_PAD.encode(id)
    }

    /// Where an id points; `None` for anything that this store did not sign. Expiry is the caller's to judge.
    pub fn verify(&self, id: &str) -> Option<Place> {
        let mut bytes = [0; ID_LEN];
        if id.len() != TEXT_LEN || URL_SAFE_NO_PAD.decode_slice(id, &mut bytes) != Ok(ID_LEN) {
            return None;
        }
        let (signed, signature) = bytes.split_at(SIGNED_LEN);
        if signed[0] != VERSION || signed[1..5] != self.tag {
            return None;
        }
        // In constant time: how much of a guess is right must not show.
        self.mac
            .clone()
            .chain_update(signed)
            .verify_truncated_left(signature)
            .ok()?;
        Some(Place {
            segment: u64::from_be_bytes(signed[5..13].try_into().ok()?),
            offset: u32::from_be_bytes(signed[13..17].try_into().ok()?),
            length: u32::from_be_bytes(signed[17..21].try_into().ok()?),
            expires: u64::from_be_bytes(signed[21..29].try_into().ok()?),
        })
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
        segment: u64::MAX - 7,
        offset: 32,
        length: 1_000_000,
        expires: 1_800_000_000,
    };

    #[test]
    fn an_id_leads_back_to_its_place() {
        let signer = Signer::new(&[7; KEY_LEN], "orders");
        let id = signer.sign(&PLACE);
        assert_eq!(id.len(), TEXT_LEN);
        assert_eq!(signer.verify(&id), Some(PLACE));
        assert_eq!(
            Signer::new(&[7; KEY_LEN], "orders").verify(&id),
            Some(PLACE)
        );
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
