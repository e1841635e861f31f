//! `claims`: the stores of whole bodies.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::diagnostic::{Invalid, quoted};
use crate::config::model::{
    Bucket, ClaimFolder, ClaimObjects, ClaimPlace, ClaimStore, ClaimTemplate, ObjectPlace, Secret,
    Survives, TemplatePart, WhenFull,
};
use crate::config::names::parse_name;
use crate::config::patterns::parse_pointer;
use crate::config::read::{At, Map, all};
use crate::config::words::{CLAIM, S3};

/// Stores of one file, at most.
const STORES_MAX: usize = 32;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const TTL_DEFAULT: Duration = Duration::from_secs(60 * 60);
const MAX_DEFAULT: u64 = 1 << 30;

/// Longest address of an origin.
const TEMPLATE_MAX: usize = 1024;
/// Fields in one, at most.
const FIELDS_MAX: usize = 8;

/// Reads every store, in file order.
pub(super) fn claims(at: &At<'_>) -> Option<Vec<ClaimStore>> {
    let named = at.named(STORES_MAX)?;
    if named.is_empty() {
        at.error("name at least one store, such as `bodies: { disk: /var/lib/wayside/claims }`");
        return None;
    }
    let mut taken: HashMap<String, String> = HashMap::new();
    all(named.iter().map(|(name, at)| {
        let store = store(name, at)?;
        let (word, place, what) = match &store.place {
            ClaimPlace::Disk(disk) => ("disk", disk.path.display().to_string(), "folder"),
            ClaimPlace::Object(objects) => ("object", objects.at.to_string(), "place"),
            ClaimPlace::Origin(template) => ("origin", template.to_string(), "address"),
        };
        if let Some(other) = taken.insert(place, store.name.clone()) {
            let at = at.peek(word).unwrap_or_else(|| at.clone());
            at.error(format!(
                "the store `{other}` has this {what} already; each needs its own"
            ));
            return None;
        }
        Some(store)
    }))
}

/// Bytes that a store takes; as many as there are where that is not ours to say.
pub(super) fn max(store: &ClaimStore) -> u64 {
    match &store.place {
        ClaimPlace::Disk(disk) => disk.max,
        ClaimPlace::Object(_) | ClaimPlace::Origin(_) => u64::MAX,
    }
}

/// Where a store that keeps nothing has its bodies from.
pub(super) fn template_of(store: &ClaimStore) -> Option<ClaimTemplate> {
    match &store.place {
        ClaimPlace::Origin(template) => Some(template.clone()),
        ClaimPlace::Disk(_) | ClaimPlace::Object(_) => None,
    }
}

/// Whether other sidecars get its bodies without asking this one.
pub(super) fn is_shared(store: &ClaimStore) -> bool {
    !matches!(store.place, ClaimPlace::Disk(_))
}

fn store(name: &str, at: &At<'_>) -> Option<ClaimStore> {
    let name = parse_name(name).map_err(|error| at.invalid_key(error)).ok();
    let map = at.map(&CLAIM)?;
    let ttl = map.or("ttl", TTL_DEFAULT, |at| {
        at.duration(Duration::from_secs(1)..=365 * DAY)
    });
    let kinds = ["disk", "object", "origin"].map(|word| map.find(word));
    let place = match kinds {
        [Some(_), None, None] => disk(&map).map(ClaimPlace::Disk),
        [None, Some(_), None] => objects(&map).map(ClaimPlace::Object),
        [None, None, Some(at)] => {
            refuse(
                &map,
                &["survives", "max", "full", "s3"],
                "with `origin` nothing is kept",
            );
            let what = "an address such as http://orders/orders/{/id}";
            at.parse(what, template).map(ClaimPlace::Origin)
        }
        [None, None, None] => {
            at.error("say where the bodies are kept: in a folder (`disk`), in a bucket or a shared folder (`object`), or nowhere, to ask their service again (`origin`)");
            None
        }
        _ => {
            at.error("a store is in one place: use one of `disk`, `object` and `origin`");
            None
        }
    };
    Some(ClaimStore {
        name: name?,
        ttl: ttl?,
        place: place?,
    })
}

/// Notes settings that another kind of store has.
fn refuse(map: &Map<'_>, words: &[&str], why: &str) {
    for word in words {
        if let Some(at) = map.find(word) {
            at.error(format!("this has no effect: {why}"));
        }
    }
}

fn disk(map: &Map<'_>) -> Option<ClaimFolder> {
    refuse(map, &["s3"], "it goes with `object`");
    let path = map.need("disk", |at| at.parse("a folder", folder));
    let max = map.or("max", MAX_DEFAULT, |at| at.size(1 << 20..=1 << 48));
    let full = map.or("full", WhenFull::Refuse, |at| {
        at.word(&[
            ("refuse", Some(WhenFull::Refuse)),
            ("evict", Some(WhenFull::Evict)),
        ])
    });
    let survives = map.maybe("survives", survives);
    if survives == Some(None) {
        map.at().warning(
            "`survives` is not set, so bodies are told to end with the pod (`survives: pod`)",
        );
    }
    Some(ClaimFolder {
        path: path?,
        survives: survives?.unwrap_or(Survives::Pod),
        max: max?,
        full: full?,
    })
}

fn objects(map: &Map<'_>) -> Option<ClaimObjects> {
    refuse(
        map,
        &["max", "full"],
        "how much a shared place takes is its own to say",
    );
    let place = map.need("object", |at| {
        at.parse("s3://BUCKET/PREFIX or a folder", object)
    });
    let s3 = map.or("s3", Bucket::default(), s3);
    let survives = map.or("survives", Survives::Volume, survives);
    let place = match (place?, s3?) {
        (ObjectPlace::S3(place), s3) => ObjectPlace::S3(Bucket {
            name: place.name,
            prefix: place.prefix,
            ..s3
        }),
        (folder, _) => {
            refuse(map, &["s3"], "it goes with `object: s3://BUCKET`");
            folder
        }
    };
    Some(ClaimObjects {
        at: place,
        survives: survives?,
    })
}

fn object(text: &str) -> Result<ObjectPlace, Invalid> {
    let Some(bucket) = text.strip_prefix("s3://") else {
        let path = text.strip_prefix("file://").unwrap_or(text);
        return match path.contains("://") {
            true => Err(Invalid::new(format!(
                "{} is not available in this version; use s3://BUCKET/PREFIX or a folder",
                quoted(text)
            ))),
            false => folder(path).map(ObjectPlace::Folder),
        };
    };
    let (name, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
    let letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    if !(3..=63).contains(&name.len()) || !name.bytes().all(letter) {
        let reason = format!(
            "{} is not a bucket: its name has 3 to 63 small letters, digits, `-` and `.`",
            quoted(name)
        );
        return Err(Invalid::new(reason));
    }
    let prefix = prefix.trim_matches('/');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    if prefix.len() > 256 || prefix.contains("//") || !prefix.bytes().all(plain) {
        let reason = format!(
            "{} is not a prefix of letters, digits and `-_./`",
            quoted(prefix)
        );
        return Err(Invalid::new(reason));
    }
    Ok(ObjectPlace::S3(Bucket {
        name: name.to_owned(),
        prefix: prefix.to_owned(),
        ..Bucket::default()
    }))
}

fn s3(at: &At<'_>) -> Option<Bucket> {
    let map = at.map(&S3)?;
    let endpoint = map.maybe("endpoint", |at| {
        at.parse("an address such as http://minio:9000", endpoint)
    });
    let region = map.maybe("region", |at| at.parse("a region", word));
    let id = map.maybe("access_key", |at| at.parse("the id of a key", word));
    let key = map.maybe("secret_key", At::secret);
    let key = match (id?, key?) {
        (Some(id), Some(key)) => Some((id, Secret::new(key))),
        (None, None) => None,
        _ => {
            at.error("`access_key` and `secret_key` go together; without both the environment's are used");
            return None;
        }
    };
    Some(Bucket {
        endpoint: endpoint?,
        region: region?,
        key,
        ..Bucket::default()
    })
}

fn endpoint(text: &str) -> Result<String, Invalid> {
    let uri: Option<http::Uri> = text.parse().ok();
    let sound = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|at| !at.as_str().contains('@'))
            && matches!(
                uri.path_and_query().map(|path| path.as_str()),
                None | Some("/")
            )
    });
    match sound {
        true => Ok(text.trim_end_matches('/').to_owned()),
        false => Err(Invalid::new(format!(
            "{} is not an address such as http://minio:9000",
            quoted(text)
        ))),
    }
}

fn word(text: &str) -> Result<String, Invalid> {
    match !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic())
    {
        true => Ok(text.to_owned()),
        false => Err(Invalid::new("expected up to 128 letters without spaces")),
    }
}

/// Reads `http://SERVICE/PATH` with fields of the body in braces. `GET` may stand before it.
fn template(text: &str) -> Result<ClaimTemplate, Invalid> {
    let wrong = |why: &str| Err(Invalid::new(format!("{} {why}", quoted(text))));
    if text.len() > TEMPLATE_MAX {
        return Err(Invalid::new(format!(
            "an address is at most {TEMPLATE_MAX} bytes long"
        )));
    }
    let address = text.strip_prefix("GET ").unwrap_or(text);
    let Some(rest) = address.strip_prefix("http://") else {
        return wrong(
            "does not begin with http://SERVICE/; how the service is reached is said in `services`",
        );
    };
    let Some((service, _)) = rest.split_once('/') else {
        return wrong("has no path, such as /orders/{/id}");
    };
    let service = parse_name(service)?;
    let mut parts = Vec::new();
    let mut left = &rest[service.len()..];
    while !left.is_empty() {
        let (text, field) = match left.split_once('{') {
            None => (left, None),
            Some((text, after)) => match after.split_once('}') {
                None => return wrong("has a `{` without its `}`"),
                Some((pointer, after)) => (text, Some((pointer, after))),
            },
        };
        let plain =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/?".contains(&byte);
        if !text.bytes().all(plain) {
            return wrong("has a letter that no path or query has");
        }
        if !text.is_empty() {
            parts.push(TemplatePart::Text(text.to_owned()));
        }
        left = match field {
            None => "",
            Some((pointer, after)) => {
                if matches!(parts.last(), Some(TemplatePart::Field(_))) {
                    return wrong("has two fields with nothing between them");
                }
                parts.push(TemplatePart::Field(parse_pointer(pointer)?));
                after
            }
        };
    }
    let template = ClaimTemplate { service, parts };
    match template.fields().count() {
        0 => wrong(
            "has no field of the body, such as {/id}: every message would have the same address",
        ),
        1..=FIELDS_MAX => Ok(template),
        _ => wrong("has more than 8 fields"),
    }
}

/// Reads what a folder outlives.
pub(super) fn survives(at: &At<'_>) -> Option<Survives> {
    at.word(&[
        ("pod", Some(Survives::Pod)),
        ("volume", Some(Survives::Volume)),
    ])
}

/// Reads a folder.
pub(super) fn folder(text: &str) -> Result<PathBuf, Invalid> {
    if text.is_empty() || text.contains('\0') {
        return Err(Invalid::new(format!("{} is not a folder", quoted(text))));
    }
    // Compared as components, so that `a/` and `a` are the same folder.
    Ok(PathBuf::from(text).components().collect())
}
