//! What a route changes of a call before it is sent, and of its answer before it goes back.

use http::header::{HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};

use crate::config::model::{PathRewrite, Piece, Rewrite};
use crate::error::{Error, Kind};
use crate::service::Request;

/// Changes a canonical request.
///
/// # Errors
/// [`Kind::BadRequest`] for a path that is no longer one.
pub fn request(rule: &Rewrite, request: &mut Request) -> Result<(), Error> {
    // `*` is no path but the whole service (RFC 9112 section 3.2.4).
    if let Some(path) = &rule.path
        && request.uri().path() != "*"
    {
        let query = request.uri().query().map(|query| format!("?{query}"));
        let target = rewritten(path, request.uri().path()) + query.as_deref().unwrap_or("");
        let target = PathAndQuery::try_from(target).map_err(|cause| {
            Error::new(Kind::BadRequest, "the rewritten target is malformed").because(cause)
        })?;
        *request.uri_mut() = Uri::from(target);
    }
    let headers = request.headers_mut();
    if let Some(host) = &rule.host
        && let Ok(host) = HeaderValue::from_str(host)
    {
        headers.insert(HOST, host);
    }
    change(headers, &rule.set, &rule.remove);
    Ok(())
}

/// Changes an answer's headers.
pub fn answer(rule: &Rewrite, headers: &mut HeaderMap) {
    change(headers, &rule.answer_set, &rule.answer_remove);
}

fn change(
    headers: &mut HeaderMap,
    set: &[(http::HeaderName, HeaderValue)],
    remove: &[http::HeaderName],
) {
    for name in remove {
        headers.remove(name);
    }
    for (name, value) in set {
        headers.insert(name.clone(), value.clone());
    }
}

fn rewritten(rule: &PathRewrite, path: &str) -> String {
    let written = match rule {
        PathRewrite::Prefix { instead_of, by } => {
            format!("{by}{}", path.get(*instead_of..).unwrap_or_default())
        }
        PathRewrite::Template(pieces) => {
            let segments: Vec<&str> = path.split('/').skip(1).collect();
            let mut written = String::with_capacity(path.len());
            for piece in pieces {
                match piece {
                    Piece::Text(text) => written.push_str(text),
                    Piece::Segment(at) => written.push_str(segments.get(*at).unwrap_or(&"")),
                    Piece::Rest(from) => {
                        for segment in segments.iter().skip(*from) {
                            written.extend(["/", segment]);
                        }
                    }
                }
            }
            written
        }
    };
    match written.is_empty() {
        true => "/".to_owned(),
        false => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_and_what_follows_stays() {
        let rule = |instead_of, by: &str| PathRewrite::Prefix {
            instead_of,
            by: by.to_owned(),
        };
        assert_eq!(rewritten(&rule(9, "/v2"), "/invoices/7"), "/v2/7");
        assert_eq!(rewritten(&rule(9, "/v2"), "/invoices"), "/v2");
        assert_eq!(rewritten(&rule(9, ""), "/invoices"), "/");
        assert_eq!(rewritten(&rule(0, "/v2"), "/a%2Fb"), "/v2/a%2Fb");
    }

    #[test]
    fn free_segments_are_put_where_the_template_has_them() {
        let rule = PathRewrite::Template(vec![
            Piece::Text("/v2/".to_owned()),
            Piece::Segment(3),
            Piece::Text("/of/".to_owned()),
            Piece::Segment(1),
            Piece::Rest(4),
        ]);
        let check = |path| rewritten(&rule, path);
        assert_eq!(check("/orders/7/lines/2"), "/v2/2/of/7");
        assert_eq!(check("/orders/7/lines/2/a/b"), "/v2/2/of/7/a/b");
    }
}
