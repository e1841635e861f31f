//! The headers of one record, as its maker, the broker's client and the spool hand it on.

use std::borrow::Cow;

/// The headers of a record, in order. Names that are known cost nothing, and all values share one buffer, so that a record
/// has two pieces of memory however many headers it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// The names, and where the value of each ends.
    names: Vec<(Cow<'static, str>, usize)>,
    values: Vec<u8>,
}

impl Headers {
    /// None.
    pub const fn new() -> Self {
        Self {
            names: Vec::new(),
            values: Vec::new(),
        }
    }

    /// None, with room for so many and their values.
    pub fn with_capacity(count: usize, bytes: usize) -> Self {
        Self {
            names: Vec::with_capacity(count),
            values: Vec::with_capacity(bytes),
        }
    }

    /// Adds one.
    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, value: &[u8]) {
        self.put(name, &[value]);
    }

    /// Adds one whose value is made of parts.
    pub fn put(&mut self, name: impl Into<Cow<'static, str>>, parts: &[&[u8]]) {
        for part in parts {
            self.values.extend_from_slice(part);
        }
        self.names.push((name.into(), self.values.len()));
    }

    /// Adds one whose value is a text.
    pub fn text(&mut self, name: &'static str, value: &dyn std::fmt::Display) {
        use std::io::Write as _;
        // Writing to memory does not fail.
        if write!(self.values, "{value}").is_ok() {
            self.names.push((Cow::Borrowed(name), self.values.len()));
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The bytes of all names and values.
    pub fn bytes(&self) -> usize {
        let names = self.names.iter().map(|(name, _)| name.len());
        names.sum::<usize>() + self.values.len()
    }

    /// The first value of that name.
    pub fn get(&self, wanted: &str) -> Option<&[u8]> {
        let found = self.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| value)
    }

    /// Each name and value, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &[u8])> {
        self.entries().map(|(name, value)| (&**name, value))
    }

    /// The same with the names as they are held, for a copy that costs as little.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&Cow<'static, str>, &[u8])> {
        let mut start = 0;
        self.names.iter().map(move |(name, end)| {
            let value = &self.values[start..*end];
            start = *end;
            (name, value)
        })
    }
}

impl<N: Into<Cow<'static, str>>, V: AsRef<[u8]>> FromIterator<(N, V)> for Headers {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(headers: T) -> Self {
        let mut all = Self::new();
        for (name, value) in headers {
            all.push(name, value.as_ref());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stay_in_order_with_empty_values_and_names_that_come_twice() {
        let mut headers: Headers = [("a", "1"), ("b", ""), ("a", "22")].into_iter().collect();
        headers.put("c".to_owned(), &[b"\xff", b"", b"\x00"]);
        let all: Vec<_> = headers.iter().collect();
        let wanted: [(&str, &[u8]); 4] =
            [("a", b"1"), ("b", b""), ("a", b"22"), ("c", b"\xff\x00")];
        assert_eq!(all, wanted);
        assert_eq!((headers.len(), headers.bytes()), (4, 9));
        assert_eq!(headers.get("a"), Some(&b"1"[..]));
        assert_eq!((headers.get("b"), headers.get("d")), (Some(&b""[..]), None));
    }
}
