//! The key of a body that nothing is cut from, in one pass that makes nothing: the way of most messages, which costs a
//! third of what the walk does.
//!
//! It answers only where it is sure: JSON to the last byte, objects alone on the way to the key, no escape in the key. For
//! all else it says so, and the [`walk`](super::walk), which has every rule and every error, decides.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The text of the scalar at `pointer`: its inner text for a string, its JSON text for a number or boolean. `Some(None)`
/// where the document has no such thing there, or null, or a container. `None` where the walk must look.
pub(super) fn key<'t>(text: &'t str, pointer: &[String]) -> Option<Option<&'t str>> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let found = Below(pointer).deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    let Some(raw) = found.map(RawValue::get) else {
        return Some(None);
    };
    match raw.as_bytes().first()? {
        b'"' if raw.contains('\\') => None,
        b'"' => raw.get(1..raw.len() - 1).map(Some),
        b'{' | b'[' | b'n' => Some(None),
        _ => Some(Some(raw)),
    }
}

/// What lies below a value, by these tokens. Of equal names the last one counts, even without the key.
struct Below<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for Below<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        match self.0.is_empty() {
            true => serde::Deserialize::deserialize(reader).map(Some),
            false => reader.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Below<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object or a scalar")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let Some((first, below)) = self.0.split_first() else {
            return Err(A::Error::custom("no token is left"));
        };
        let mut found = None;
        while let Some(wanted) = members.next_key_seed(Named(first))? {
            if wanted {
                found = members.next_value_seed(Below(below))?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    // Nothing lies below a scalar.

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Whether a name is this one.
struct Named<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<bool, D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}
