//! The names of routes and topics, so that a timeline holds two bytes for each and not the text.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// By which route and topic a message goes. Made when a route or a subscription is built; plain numbers afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    pub(super) route: Name,
    pub(super) topic: Name,
}

/// A name's place in the table, from 1; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Name(u16);

impl Name {
    /// This one, or else the other.
    pub(super) fn or(self, other: Self) -> Self {
        match self {
            Self(0) => other,
            known => known,
        }
    }
}

/// Every name that was ever in force. A reload adds to it and takes nothing away, since timelines outlive their routes;
/// after 65,535 names the table is full, and messages of further routes are shown without.
#[derive(Debug, Default)]
pub(super) struct Names {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    texts: Vec<Arc<str>>,
    places: HashMap<Arc<str>, Name>,
}

impl Names {
    /// The place of a name, which is added if it is new.
    pub(super) fn add(&self, text: &str) -> Name {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.places.get(text) {
            return *known;
        }
        let Ok(place) = u16::try_from(table.texts.len() + 1) else {
            return Name::default();
        };
        let text: Arc<str> = Arc::from(text);
        table.texts.push(Arc::clone(&text));
        table.places.insert(text, Name(place));
        Name(place)
    }

    /// The place of a name that some route or topic has or had.
    pub(super) fn find(&self, text: &str) -> Option<Name> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.places.get(text).copied()
    }

    /// The name at a place.
    pub(super) fn text(&self, Name(place): Name) -> Option<Arc<str>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::from(place).checked_sub(1)?;
        table.texts.get(at).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_place_for_ever_and_a_full_table_gives_none() {
        let names = Names::default();
        let first = names.add("create-invoice");
        assert_eq!(names.add("create-invoice"), first);
        assert_eq!(names.find("create-invoice"), Some(first));
        assert_eq!(names.find("other"), None);
        assert_eq!(names.text(first).as_deref(), Some("create-invoice"));
        assert_eq!(names.text(Name::default()), None);
        for n in 1..usize::from(u16::MAX) {
            assert_ne!(names.add(&n.to_string()), Name::default());
        }
        assert_eq!(names.add("one too many"), Name::default());
        assert_eq!(names.add("create-invoice"), first);
    }
}
