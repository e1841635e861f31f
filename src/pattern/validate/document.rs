//! A body as a tree that borrows its text, so that it can be checked against a schema.
//!
//! It takes at most about 50 times the bytes of the body while the check lasts, for the worst of bodies (an array of
//! digits, as its elements are moved to more room); a tree of maps would take more than twice that. Strings without escapes are not copied. Containers may be nested 127 deep, which is the
//! parser's own limit, and numbers are those of an IEEE 754 double or a 64-bit integer; what goes beyond is refused.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use jsonschema::json::cmp::equal_numbers;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

/// Members that are there twice and are told, at most.
const TWICE_MAX: usize = 100;

/// One JSON value.
#[derive(Debug, Clone, Default)]
pub(super) enum Tree<'t> {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'t, str>),
    List(Vec<Tree<'t>>),
    /// By name.
    Object(Vec<(Cow<'t, str>, Tree<'t>)>),
}

/// A whole body.
pub(super) struct Document<'t> {
    pub(super) root: Tree<'t>,
    /// Pointers to members whose name is there twice in one object: readers differ on which of them counts.
    pub(super) twice: Vec<String>,
    /// Bytes of the longest pointer into it.
    pub(super) longest: usize,
    /// Containers in containers, at the deepest place.
    pub(super) depth: usize,
}

/// Why a body is no document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotJson {
    /// What is wrong; repeats nothing of the body.
    pub(super) reason: String,
    /// The first byte that is wrong, counted from 0; the body's length if it ends too soon.
    pub(super) offset: usize,
    /// From 1.
    pub(super) line: usize,
    /// From 1, in bytes.
    pub(super) column: usize,
}

impl<'t> Document<'t> {
    /// Reads a body.
    pub(super) fn parse(body: &'t [u8]) -> Result<Self, NotJson> {
        let text = std::str::from_utf8(body)
            .map_err(|error| NotJson::at(body, error.valid_up_to(), "this byte is not UTF-8"))?;
        let mut state = State::default();
        let mut parser = serde_json::Deserializer::from_str(text);
        let root = Seed(&mut state)
            .deserialize(&mut parser)
            .and_then(|root| parser.end().map(|()| root))
            .map_err(|error| {
                let told = error.to_string();
                let reason = told.split(" at line ").next().unwrap_or_default();
                NotJson::at(body, offset(text, &error), reason)
            })?;
        let State {
            twice,
            longest,
            deepest: depth,
            ..
        } = state;
        Ok(Self {
            root,
            twice,
            longest,
            depth,
        })
    }
}

impl NotJson {
    fn at(body: &[u8], offset: usize, reason: &str) -> Self {
        let before = body.get(..offset).unwrap_or(body);
        let line_start = before.iter().rposition(|byte| *byte == b'\n');
        Self {
            reason: reason.to_owned(),
            offset: before.len(),
            line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
            column: before.len() - line_start.map_or(0, |at| at + 1) + 1,
        }
    }
}

/// Where the parser stopped. It counts columns from the last line's end, and the byte that it has just read with them:
/// a line's end is column 0 of the next line.
fn offset(text: &str, error: &serde_json::Error) -> usize {
    if error.is_eof() {
        return text.len();
    }
    let mut starts = 0;
    for _ in 1..error.line() {
        let rest = text.as_bytes().get(starts..).unwrap_or_default();
        starts += rest
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
    }
    (starts + error.column()).saturating_sub(1).min(text.len())
}

#[derive(Default)]
struct State {
    twice: Vec<String>,
    /// Bytes of the pointer to where the parser is.
    here: usize,
    longest: usize,
    depth: usize,
    deepest: usize,
}

impl State {
    fn enter(&mut self, token: usize) {
        self.here += token + 1;
        self.longest = self.longest.max(self.here);
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
    }

    fn leave(&mut self, token: usize) {
        self.here -= token + 1;
        self.depth -= 1;
    }

    fn note(&mut self, pointer: String) {
        if self.twice.len() < TWICE_MAX {
            self.twice.push(pointer);
        }
    }

    /// Puts a container's own token before what was noted inside it since `from`.
    fn prefix(&mut self, from: usize, token: &str) {
        let token = super::token(token);
        for pointer in self.twice.iter_mut().skip(from) {
            pointer.insert_str(0, &token);
        }
    }
}

struct Seed<'s>(&'s mut State);

impl<'t> DeserializeSeed<'t> for Seed<'_> {
    type Value = Tree<'t>;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Tree<'t>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'t> Visitor<'t> for Seed<'_> {
    type Value = Tree<'t>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Tree<'t>, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree<'t>, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree<'t>, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree<'t>, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree<'t>, E> {
        // The parser refuses what no double can hold.
        Ok(Number::from_f64(value).map_or(Tree::Null, Tree::Number))
    }

    fn visit_borrowed_str<E>(self, value: &'t str) -> Result<Tree<'t>, E> {
        Ok(Tree::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree<'t>, E> {
        Ok(Tree::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut seq: A) -> Result<Tree<'t>, A::Error> {
        let Self(state) = self;
        let mut list = Vec::new();
        loop {
            let (index, noted) = (list.len(), state.twice.len());
            let digits = index.checked_ilog10().unwrap_or(0) as usize + 1;
            state.enter(digits);
            let Some(value) = seq.next_element_seed(Seed(state))? else {
                state.leave(digits);
                break;
            };
            state.leave(digits);
            if state.twice.len() > noted {
                state.prefix(noted, &index.to_string());
            }
            list.push(value);
        }
        trim(&mut list);
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Tree<'t>, A::Error> {
        let Self(state) = self;
        let mut members: Vec<(Cow<'t, str>, Tree<'t>)> = Vec::new();
        let mut ordered = true;
        while let Some(Name(name)) = map.next_key()? {
            let noted = state.twice.len();
            state.enter(name.len());
            let value = map.next_value_seed(Seed(state))?;
            state.leave(name.len());
            if state.twice.len() > noted {
                state.prefix(noted, &name);
            }
            ordered = ordered && members.last().is_none_or(|(last, _)| *last < name);
            members.push((name, value));
        }
        if !ordered {
            members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            for pair in members.windows(2) {
                if let [(one, _), (other, _)] = pair
                    && one == other
                {
                    state.note(super::token(one));
                }
            }
            members.dedup_by(|(one, _), (other, _)| one == other);
        }
        trim(&mut members);
        Ok(Tree::Object(members))
    }
}

/// Gives back what a small container has reserved for more: there may be one for every other byte of a body.
fn trim<T>(values: &mut Vec<T>) {
    if values.capacity() >= values.len() * 2 {
        values.shrink_to_fit();
    }
}

/// A member's name.
struct Name<'t>(Cow<'t, str>);

impl<'t> serde::Deserialize<'t> for Name<'t> {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'t> Visitor<'t> for Text {
            type Value = Name<'t>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, value: &'t str) -> Result<Name<'t>, E> {
                Ok(Name(Cow::Borrowed(value)))
            }

            fn visit_str<E>(self, value: &str) -> Result<Name<'t>, E> {
                Ok(Name(Cow::Owned(value.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'t> Tree<'t> {
    /// The member of this name, in an object's members.
    pub(super) fn member<'a>(
        members: &'a [(Cow<'t, str>, Tree<'t>)],
        name: &str,
    ) -> Option<&'a Tree<'t>> {
        const FEW: usize = 8;
        if members.len() <= FEW {
            let mut members = members.iter();
            return members.find(|(one, _)| one == name).map(|(_, value)| value);
        }
        let at = members.binary_search_by(|(one, _)| (**one).cmp(name));
        at.ok()
            .and_then(|at| members.get(at))
            .map(|(_, value)| value)
    }

    /// Equal in the sense of JSON Schema: numbers by their value, objects whatever their order.
    pub(super) fn is(&self, other: &Value) -> bool {
        match (self, other) {
            (Tree::Null, Value::Null) => true,
            (Tree::Bool(one), Value::Bool(other)) => one == other,
            (Tree::Number(one), Value::Number(other)) => equal_numbers(one, other),
            (Tree::Text(one), Value::String(other)) => one == other,
            (Tree::List(one), Value::Array(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.is(other))
            }
            (Tree::Object(one), Value::Object(other)) => {
                let same = |(name, value): &(Cow<'_, str>, Tree<'_>)| {
                    other.get(&**name).is_some_and(|other| value.is(other))
                };
                one.len() == other.len() && one.iter().all(same)
            }
            _ => false,
        }
    }
}

impl PartialEq for Tree<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Tree::Null, Tree::Null) => true,
            (Tree::Bool(one), Tree::Bool(other)) => one == other,
            (Tree::Number(one), Tree::Number(other)) => equal_numbers(one, other),
            (Tree::Text(one), Tree::Text(other)) => one == other,
            (Tree::List(one), Tree::List(other)) => one == other,
            // Both in the order of their names.
            (Tree::Object(one), Tree::Object(other)) => one == other,
            _ => false,
        }
    }
}

impl Eq for Tree<'_> {}

impl Hash for Tree<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Tree::Null => {}
            Tree::Bool(value) => value.hash(state),
            // Equal numbers hash alike, whichever way they are written and held.
            Tree::Number(number) => {
                let value = number.as_f64().unwrap_or_default();
                let zero = value.partial_cmp(&0.0) == Some(Ordering::Equal);
                (if zero { 0 } else { value.to_bits() }).hash(state);
            }
            Tree::Text(text) => text.hash(state),
            Tree::List(list) => list.hash(state),
            Tree::Object(members) => members.hash(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Document<'_> {
        Document::parse(text.as_bytes()).expect("it is JSON")
    }

    #[test]
    fn a_body_that_is_not_json_is_told_by_its_first_wrong_byte() {
        let check = |body: &[u8], expected: (usize, usize, usize), reason: &str| {
            let error = Document::parse(body).err().expect("it is not JSON");
            assert_eq!(
                (error.offset, error.line, error.column),
                expected,
                "{error:?}"
            );
            assert!(error.reason.contains(reason), "{error:?}");
        };
        check(b"", (0, 1, 1), "EOF");
        check(b"{\"a\":1", (6, 1, 7), "EOF");
        check(b"{\n \"a\": tru\n}", (11, 2, 10), "expected ident");
        check(b"{\"a\":1}x", (7, 1, 8), "trailing");
        check(b"[1,]", (3, 1, 4), "trailing comma");
        check(b"{\"a\":\"\xff\"}", (6, 1, 7), "not UTF-8");
        check(b"[1e999]", (5, 1, 6), "number out of range");
        let deep = "[".repeat(100_000);
        check(deep.as_bytes(), (127, 1, 128), "recursion limit");
    }

    #[test]
    fn a_member_that_is_there_twice_is_told_by_its_pointer() {
        let document =
            parse(r#"{"a":[{"b":1,"c":{"x/y":1,"x/y":2},"b":2}],"a~":{"a":1,"\u0061":1}}"#);
        let mut twice = document.twice;
        twice.sort();
        assert_eq!(twice, ["/a/0/b", "/a/0/c/x~1y", "/a~0/a"]);
        let many: String = (0..500).map(|n| format!("\"{n}\":1,\"{n}\":1,")).collect();
        let many = format!("{{{}\"z\":1}}", many);
        assert_eq!(parse(&many).twice.len(), TWICE_MAX);
    }

    #[test]
    fn a_value_is_small() {
        assert!(size_of::<Tree<'_>>() <= 32, "{}", size_of::<Tree<'_>>());
    }

    #[test]
    fn the_longest_pointer_and_the_deepest_place_are_known() {
        assert_eq!((parse("1").longest, parse("1").depth), (0, 0));
        assert_eq!(parse(r#"[{"a":[]},[]]"#).depth, 3);
        assert_eq!(
            parse(r#"{"ab":[1,{"cde":1}],"x":1}"#).longest,
            "/ab/1/cde".len()
        );
    }

    #[test]
    fn values_are_equal_by_what_they_mean() {
        let same = |one: &str, other: &str| {
            let expected: Value = serde_json::from_str(other).expect("it is JSON");
            let (left, right) = (parse(one).root, parse(other).root);
            assert_eq!(left == right, left.is(&expected), "{one} and {other}");
            let hash = |tree: &Tree<'_>| {
                use std::hash::DefaultHasher;
                let mut hasher = DefaultHasher::new();
                tree.hash(&mut hasher);
                hasher.finish()
            };
            assert!(
                left != right || hash(&left) == hash(&right),
                "{one} and {other}"
            );
            left == right
        };
        assert!(same("1", "1.0") && same("0", "-0.0") && same("[1,null]", "[1e0,null]"));
        assert!(same(r#"{"a":1,"b":"\u0061"}"#, r#"{"b":"a","a":1}"#));
        assert!(!same("1", "\"1\"") && !same("[1]", "[1,1]") && !same("{}", "[]"));
        assert!(!same(r#"{"a":1}"#, r#"{"a":1,"b":1}"#) && !same("true", "false"));
        assert!(!same("9007199254740993", "9007199254740992"));
    }
}
