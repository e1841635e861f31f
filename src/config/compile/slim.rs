//! `slim`: which fields stay in the record and where the whole body goes.

use super::Around;
use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{ClaimIndex, ClaimTemplate, Pointer, Slim, SlimRule};
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
    let over = map.maybe("over", |at| at.bytes(16..=256 << 20));
    let whole_over = map.maybe("whole_over", |at| at.bytes(0..=256 << 20));
    let claim = claim(&map, around);
    let rule = match (keep?, drop?, over?) {
        (Some(keep), None, None) => SlimRule::Keep(keep),
        (None, Some(fields), over) => SlimRule::Drop { fields, over },
        (None, None, Some(over)) => SlimRule::Drop {
            fields: Vec::new(),
            over: Some(over),
        },
        (Some(_), Some(_), _) => {
            at.error("`keep` and `drop` contradict one another; use one of them");
            return None;
        }
        (Some(_), None, Some(_)) => {
            at.error(
                "`keep` and `over` contradict one another: what is kept stays whatever its size; use one of them",
            );
            return None;
        }
        (None, None, None) => {
            at.error(
                "say what stays in the record (`keep`) or what does not (`drop`, or `over` a size)",
            );
            return None;
        }
    };
    let (whole_over, claim) = (whole_over?, claim?);
    let origin = around.origins.get(claim.0).and_then(Option::as_ref);
    if let Some(template) = origin {
        address_can_be_made(&map, &rule, template)?;
        if let Some(at) = map.find("whole_over") {
            at.error("the store keeps nothing and makes the address of a body of its fields, which only JSON has");
            return None;
        }
    }
    Some(Slim {
        rule,
        whole_over,
        claim,
    })
}

pub(super) fn pointers(at: &At<'_>) -> Option<Vec<Pointer>> {
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

/// Whether the fields stay in the record of which a reader makes the body's address.
fn address_can_be_made(map: &Map<'_>, rule: &SlimRule, template: &ClaimTemplate) -> Option<()> {
    let inside =
        |all: &[Pointer], one: &Pointer| all.iter().any(|outer| one.0.starts_with(&outer.0));
    let stays = |field: &&Pointer| match rule {
        SlimRule::Keep(fields) => inside(fields, field),
        SlimRule::Drop { fields, .. } => !inside(fields, field),
    };
    let Some(lost) = template.fields().find(|field| !stays(field)) else {
        return Some(());
    };
    let at = map.find("keep").or_else(|| map.find("drop"));
    at.unwrap_or_else(|| map.at().clone()).error(format!(
        "`{lost}` must stay in the record: the address of the body is made of it (`{template}`)"
    ));
    None
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
