//! What is told of a violation: where, by which keyword, and why, in words that repeat the schema and never the body.

use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind as Broken};
use serde_json::Value;

use super::{TOLD_MAX, cut, token};
use crate::error::Violation;

/// The violations that one error of the library stands for: a list of names is one for each.
pub(super) fn told(error: &ValidationError<'_>) -> Vec<Violation> {
    let kind = error.kind();
    let at = error.instance_path().as_str();
    let one = |pointer: String| Violation {
        pointer: Some(cut(&pointer)),
        keyword: Some(kind.keyword().to_owned()),
        reason: reason(kind),
    };
    match kind {
        Broken::Required { property } => {
            vec![one(format!(
                "{at}{}",
                token(property.as_str().unwrap_or_default())
            ))]
        }
        Broken::AdditionalProperties { unexpected }
        | Broken::UnevaluatedProperties { unexpected } => unexpected
            .iter()
            .take(TOLD_MAX + 1)
            .map(|name| one(format!("{at}{}", token(name))))
            .collect(),
        _ => vec![one(at.to_owned())],
    }
}

/// Completes "POINTER …".
fn reason(kind: &Broken) -> String {
    match kind {
        Broken::Required { .. } => "is required".to_owned(),
        Broken::AdditionalProperties { .. } | Broken::UnevaluatedProperties { .. } => {
            "is not a member that the schema knows".to_owned()
        }
        Broken::AdditionalItems { .. } | Broken::UnevaluatedItems { .. } => {
            "has elements that the schema does not know".to_owned()
        }
        Broken::Type { kind } => format!("must be {}", types(kind)),
        Broken::Constant { expected_value } => format!("must be {}", shown(expected_value)),
        Broken::Enum { options } => format!("must be one of {}", shown(options)),
        Broken::Pattern { pattern } => {
            format!(
                "must match the pattern {}",
                shown(&Value::from(pattern.as_str()))
            )
        }
        Broken::Format { format } => format!("must have the format {}", cut(format)),
        Broken::Minimum { .. }
        | Broken::Maximum { .. }
        | Broken::ExclusiveMinimum { .. }
        | Broken::ExclusiveMaximum { .. }
        | Broken::MultipleOf { .. } => number(kind),
        Broken::MinLength { .. }
        | Broken::MaxLength { .. }
        | Broken::MinItems { .. }
        | Broken::MaxItems { .. }
        | Broken::MinProperties { .. }
        | Broken::MaxProperties { .. } => length(kind),
        Broken::UniqueItems => "has an element twice".to_owned(),
        Broken::Contains => "has not the elements that the schema asks for".to_owned(),
        Broken::AnyOf { .. } | Broken::OneOfNotValid { .. } => {
            "is none of the choices that the schema gives".to_owned()
        }
        Broken::OneOfMultipleValid { .. } => {
            "is more than one of the choices that the schema gives, and must be one".to_owned()
        }
        Broken::Not { .. } => "is what the schema rules out".to_owned(),
        Broken::FalseSchema => "must not be there".to_owned(),
        Broken::PropertyNames { error } => {
            format!("has a member whose name {}", reason(error.kind()))
        }
        Broken::ContentEncoding { content_encoding } => {
            format!("must be encoded as {}", cut(content_encoding))
        }
        Broken::ContentMediaType { content_media_type } => {
            format!("must hold {}", cut(content_media_type))
        }
        Broken::FromUtf8 { .. } => "must hold UTF-8".to_owned(),
        Broken::BacktrackLimitExceeded { .. }
        | Broken::RegexEngineFailure { .. }
        | Broken::Referencing(_)
        | Broken::Custom { .. } => "could not be checked".to_owned(),
    }
}

fn types(kind: &TypeKind) -> String {
    let names: Vec<String> = match kind {
        TypeKind::Single(one) => vec![one.to_string()],
        TypeKind::Multiple(set) => set.iter().map(|one| one.to_string()).collect(),
    };
    format!("of type {}", names.join(" or "))
}

fn number(kind: &Broken) -> String {
    match kind {
        Broken::Minimum { limit } => format!("must be at least {limit}"),
        Broken::Maximum { limit } => format!("must be at most {limit}"),
        Broken::ExclusiveMinimum { limit } => format!("must be more than {limit}"),
        Broken::ExclusiveMaximum { limit } => format!("must be less than {limit}"),
        Broken::MultipleOf { multiple_of } => format!("must be a multiple of {multiple_of}"),
        _ => String::new(),
    }
}

fn length(kind: &Broken) -> String {
    match kind {
        Broken::MinLength { limit } => format!("must have at least {limit} characters"),
        Broken::MaxLength { limit } => format!("must have at most {limit} characters"),
        Broken::MinItems { limit } => format!("must have at least {limit} elements"),
        Broken::MaxItems { limit } => format!("must have at most {limit} elements"),
        Broken::MinProperties { limit } => format!("must have at least {limit} members"),
        Broken::MaxProperties { limit } => format!("must have at most {limit} members"),
        _ => String::new(),
    }
}

/// A value of the schema.
fn shown(value: &Value) -> String {
    cut(&value.to_string())
}
