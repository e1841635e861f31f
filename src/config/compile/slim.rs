//! `slim`: which fields stay in the record and where the whole body goes.

use super::Around;
use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{ClaimIndex, Pointer, Slim, SlimRule};
use crate::config::patterns::parse_pointer;
use crate::config::read::{At, Map, all, listed};
use crate::config::words::{SLIM, nearest};

/// Pointers of one rule, at most.
const POINTERS_MAX: usize = 256;

/// Reads how a body is made small.
pub(super) fn slim(at: &At<'_>, around: &Around) -> Option<Slim> {
    let map = at.map(&SLIM)?;
    let keep = map.maybe("keep", pointers);
    let drop = map.maybe("drop", pointers);
    let claim = claim(&map, around);
    let rule = match (keep?, drop?) {
        (Some(keep), None) => SlimRule::Keep(keep),
        (None, Some(drop)) => SlimRule::Drop(drop),
        (Some(_), Some(_)) => {
            at.error("`keep` and `drop` contradict one another; use one of them");
            return None;
        }
        (None, None) => {
            at.error("say what stays in the record (`keep`) or what does not (`drop`)");
            return None;
        }
    };
    Some(Slim {
        rule,
        claim: claim?,
    })
}

fn pointers(at: &At<'_>) -> Option<Vec<Pointer>> {
    let list = at.list(POINTERS_MAX, "[/id, /total]")?;
    if list.is_empty() {
        at.error("name at least one field, such as /id");
        return None;
    }
    let pointer = |at: &At<'_>| at.parse("a JSON pointer such as /id", parse_pointer);
    let pointers = all(list.iter().map(pointer))?;
    // In order of their tokens, what lies inside a pointer follows it directly.
    let mut order: Vec<usize> = (0..pointers.len()).collect();
    order.sort_by(|one, other| pointers[*one].0.cmp(&pointers[*other].0));
    let mut apart = true;
    let mut outer: Option<&Pointer> = None;
    for index in order {
        let inner = &pointers[index];
        match outer.filter(|outer| inner.0.starts_with(&outer.0)) {
            Some(outer) if outer == inner => list[index].error(format!("`{inner}` is here twice")),
            Some(outer) => {
                list[index].error(format!("`{inner}` is inside `{outer}`, which is here too"))
            }
            None => {
                outer = Some(inner);
                continue;
            }
        }
        apart = false;
    }
    apart.then_some(pointers)
}

/// The store that is named, or the only one.
fn claim(map: &Map<'_>, around: &Around) -> Option<ClaimIndex> {
    let stores = around.claims.as_ref()?;
    if stores.is_empty() {
        map.at()
            .error("the whole body needs a place: add a `claims` section with a store");
        return None;
    }
    let Some(at) = map.find("claim") else {
        if stores.len() == 1 {
            return Some(ClaimIndex(0));
        }
        let stores = listed(stores);
        map.at().error(format!(
            "there are several stores: choose one by `claim`, out of {stores}"
        ));
        return None;
    };
    at.parse("the name of a store", |text| {
        if let Some(index) = stores.iter().position(|name| name == text) {
            return Ok(ClaimIndex(index));
        }
        let hint = nearest(text, stores.iter().map(String::as_str));
        let known = match hint {
            Some(_) => String::new(),
            None => format!("; there are {}", listed(stores)),
        };
        Err(Invalid::new(format!("no store is called {}{known}", quoted(text))).hint(hint))
    })
}
