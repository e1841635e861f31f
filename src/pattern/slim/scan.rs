//! The key of a body that nothing is cut from, in one pass that makes nothing: the way of most messages, which costs a
//! third of what the walk does.
//!
//! It answers only where it is sure: JSON to the last byte, objects alone on the way to the key, no escape in their names or
//! in the key. For all else it says so, and the [`walk`](super::walk), which has every rule and every error, decides.

/// Containers that a skipped value may nest: one bit each.
const DEPTH_MAX: u32 = u64::BITS;
/// Tokens of a pointer, each of which is a call deeper.
const TOKENS_MAX: usize = 16;

const LOW: u64 = u64::from_ne_bytes([0x01; 8]);
const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);

/// The text of the scalar at `pointer`: its inner text for a string, its JSON text for a number or boolean. `Some(None)`
/// where the document has no such thing there, or null, or a container. `None` where the walk must look.
pub(super) fn key<'t>(text: &'t str, pointer: &[String]) -> Option<Option<&'t str>> {
    let mut scan = Scan { text, at: 0 };
    if pointer.len() > TOKENS_MAX || scan.take()? != b'{' {
        return None;
    }
    let key = scan.object(pointer)?;
    scan.peek().is_none().then_some(key)
}

/// A document and how much of it was read.
struct Scan<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Scan<'t> {
    /// The next byte that is not whitespace; it is not read yet.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = self.here()?;
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Reads the next byte that is not whitespace.
    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn here(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Reads an object behind its brace and finds the key in it. Of equal names the last one counts, even without the key.
    fn object(&mut self, pointer: &[String]) -> Option<Option<&'t str>> {
        let (first, below) = pointer.split_first()?;
        let mut key = None;
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(key);
        }
        loop {
            if self.name()? != first.as_str() {
                self.value()?;
            } else if below.is_empty() {
                key = self.scalar()?;
            } else {
                key = match self.peek()? {
                    b'{' => {
                        self.at += 1;
                        self.object(below)?
                    }
                    // A token may be an index.
                    b'[' => return None,
                    _ => {
                        self.value()?;
                        None
                    }
                };
            }
            match self.take()? {
                b',' => {}
                b'}' => return Some(key),
                _ => return None,
            }
        }
    }

    /// Reads a name and its colon; one with an escape is the walk's.
    fn name(&mut self) -> Option<&'t str> {
        if self.take()? != b'"' {
            return None;
        }
        let (start, plain) = (self.at, self.string()?);
        let name = self.text.get(start..self.at - 1)?;
        (plain && self.take()? == b':').then_some(name)
    }

    /// Reads the value that is the key, if it is one.
    fn scalar(&mut self) -> Option<Option<&'t str>> {
        let (first, start) = (self.peek()?, self.at);
        self.value()?;
        let text = self.text.get(start..self.at)?;
        match first {
            b'n' | b'{' | b'[' => Some(None),
            b'"' if text.contains('\\') => None,
            b'"' => Some(text.get(1..text.len() - 1)),
            _ => Some(Some(text)),
        }
    }

    /// Reads a value of any kind, without recursion.
    fn value(&mut self) -> Option<()> {
        // A bit for each container that is open, the innermost lowest: one for an object.
        let (mut depth, mut objects) = (0, 0_u64);
        loop {
            let first = self.take()?;
            match first {
                b'"' => self.string().map(drop)?,
                b'{' | b'[' => {
                    let object = first == b'{';
                    if self.peek()? == if object { b'}' } else { b']' } {
                        self.at += 1;
                    } else if depth == DEPTH_MAX {
                        return None;
                    } else {
                        (depth, objects) = (depth + 1, objects << 1 | u64::from(object));
                        if object {
                            self.skip_name()?;
                        }
                        continue;
                    }
                }
                b'-' | b'0'..=b'9' => self.number(first)?,
                b't' => self.word("rue")?,
                b'f' => self.word("alse")?,
                b'n' => self.word("ull")?,
                _ => return None,
            }
            loop {
                if depth == 0 {
                    return Some(());
                }
                match (self.take()?, objects & 1 == 1) {
                    (b',', true) => {
                        self.skip_name()?;
                        break;
                    }
                    (b',', false) => break,
                    (b'}', true) | (b']', false) => (depth, objects) = (depth - 1, objects >> 1),
                    _ => return None,
                }
            }
        }
    }

    fn skip_name(&mut self) -> Option<()> {
        if self.take()? != b'"' {
            return None;
        }
        self.string()?;
        (self.take()? == b':').then_some(())
    }

    /// Reads a string behind its opening quote, with the closing one: true if it has no escape.
    fn string(&mut self) -> Option<bool> {
        let mut plain = true;
        loop {
            self.at += self.text.as_bytes().get(self.at..).and_then(special)?;
            match self.here()? {
                b'"' => {
                    self.at += 1;
                    return Some(plain);
                }
                b'\\' => {
                    plain = false;
                    let escape = self.text.as_bytes().get(self.at + 1..)?;
                    self.at += match escape {
                        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
                        [b'u', a, b, c, d, ..]
                            if [a, b, c, d].iter().all(|it| it.is_ascii_hexdigit()) =>
                        {
                            6
                        }
                        _ => return None,
                    };
                }
                // A control character.
                _ => return None,
            }
        }
    }

    /// Reads what is left of a number (RFC 8259 section 6) behind its first byte.
    fn number(&mut self, first: u8) -> Option<()> {
        let first = match first {
            b'-' => {
                self.at += 1;
                *self.text.as_bytes().get(self.at - 1)?
            }
            digit => digit,
        };
        match first {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        if self.here() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if let Some(b'e' | b'E') = self.here() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.here() {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Some(())
    }

    fn digits(&mut self) {
        while self.here().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Option<()> {
        let start = self.at;
        self.digits();
        (self.at > start).then_some(())
    }

    fn word(&mut self, rest: &str) -> Option<()> {
        let found = self.text.as_bytes().get(self.at..self.at + rest.len())?;
        self.at += rest.len();
        (found == rest.as_bytes()).then_some(())
    }
}

/// Where a quote, a backslash or a control character is: eight bytes at a time.
fn special(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*eight);
        // The lowest set bit is exact; a borrow can only set one above it.
        let is = |byte: u8| {
            let zero = word ^ (LOW * u64::from(byte));
            zero.wrapping_sub(LOW) & !zero
        };
        let control = word.wrapping_sub(LOW * 0x20) & !word;
        let found = (is(b'"') | is(b'\\') | control) & HIGH;
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += eight.len();
    }
    let rest = bytes.get(at..)?.iter();
    rest.copied()
        .position(|byte| byte < 0x20 || byte == b'"' || byte == b'\\')
        .map(|more| at + more)
}
