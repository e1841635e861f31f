//! What is said of a configuration that does not fit the world it runs in.

use std::fmt;

use serde::Serialize;

use crate::config::Places;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// A call or a message will fail, or a promise does not hold.
    Error,
    /// It works, but probably not as it is meant; or it could not be checked.
    Warning,
}

/// One thing that a rule found; it knows its path, but not yet its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) severity: Severity,
    /// The path in the file: `outbound.routes[0].publish.topic`.
    pub(crate) path: String,
    /// What it is about at the broker, if anything is.
    pub(crate) subject: Option<Subject>,
    /// What is wrong.
    pub(crate) reason: String,
    /// What to do about it.
    pub(crate) remedy: String,
}

/// Something outside of the file, and how it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Subject {
    /// `topic invoices`, `group orders`, `broker 1`, `name billing.shop.svc`.
    pub(crate) of: String,
    /// The setting, as the broker calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) setting: Option<String>,
    /// Its value there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<String>,
}

/// One thing to tell.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    pub(crate) rule: &'static str,
    pub(crate) severity: Severity,
    file: String,
    line: usize,
    column: usize,
    path: String,
    #[serde(flatten)]
    subject: Option<Subject>,
    reason: String,
    remedy: String,
}

impl Found {
    /// Something that fails.
    pub(crate) fn error(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            path: path.into(),
            subject: None,
            reason: reason.into(),
            remedy: String::new(),
        }
    }

    /// Something that is probably not meant.
    pub(crate) fn warning(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(path, reason)
        }
    }

    /// Says what it is about.
    pub(crate) fn of(mut self, kind: &str, name: impl fmt::Display) -> Self {
        self.subject.get_or_insert_default().of = format!("{kind} {name}");
        self
    }

    /// Says how that is set at the broker.
    pub(crate) fn set(mut self, setting: &str, value: impl fmt::Display) -> Self {
        let subject = self.subject.get_or_insert_default();
        subject.setting = Some(setting.to_owned());
        subject.value = Some(value.to_string());
        self
    }

    /// Says what to do.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// Gives it its place.
    pub(crate) fn at(self, rule: &'static str, places: &Places) -> Finding {
        let told = places.tell(&self.path, self.reason);
        Finding {
            rule,
            severity: self.severity,
            file: told.file,
            line: told.line,
            column: told.column,
            path: told.path,
            subject: self.subject,
            reason: told.reason,
            remedy: self.remedy,
        }
    }
}

impl Finding {
    /// By severity, then by place.
    pub(crate) fn order(&self) -> impl Ord + use<> {
        (self.severity, self.line, self.column, self.rule)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(
            f,
            "{severity}: {}:{}:{}: ",
            self.file, self.line, self.column
        )?;
        write!(f, "{}: {}", self.path, self.reason)?;
        if let Some(Subject { of, setting, value }) = &self.subject {
            match (setting, value) {
                (Some(setting), Some(value)) => write!(f, " ({of}: {setting}={value})")?,
                _ => write!(f, " ({of})")?,
            }
        }
        write!(f, "; {} [{}]", self.remedy, self.rule)
    }
}
