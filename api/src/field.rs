//! Field paths and field errors, in upstream's words.
//!
//! Upstream: `apimachinery/pkg/util/validation/field/{path,errors}.go`.

use std::fmt;

use serde_json::Value;

/// `spec.containers[0].env[1].name`, `metadata.labels[app]`. `Path::nil()` prints `<nil>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn nil() -> Self {
        Path(String::new())
    }

    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Path::new(name) } else { Path(format!("{}.{name}", self.0)) }
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Path(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Path(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl ErrorKind {
    /// The machine-readable cause: `FieldValueInvalid`.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::Internal => "InternalError",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        }
    }
}

/// One thing wrong with one field. Displays as `spec.replicas: Invalid value: -1: must be …`.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub kind: ErrorKind,
    pub field: String,
    pub bad_value: Value,
    pub detail: String,
}

pub type ErrorList = Vec<Error>;

impl Error {
    fn new(kind: ErrorKind, path: &Path, bad_value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Error { kind, field: path.to_string(), bad_value: bad_value.into(), detail: detail.into() }
    }

    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Error::new(ErrorKind::Required, path, "", detail)
    }

    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, path, value, detail)
    }

    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Error::new(ErrorKind::TypeInvalid, path, value, detail)
    }

    /// `supported values: "A", "B"`, in the order given (upstream sorts where it takes a set).
    pub fn not_supported<S: AsRef<str>>(path: &Path, value: impl Into<Value>, valid: &[S]) -> Self {
        let quoted: Vec<String> = valid.iter().map(|v| format!("{:?}", v.as_ref())).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Error::new(ErrorKind::NotSupported, path, value, detail)
    }

    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Error::new(ErrorKind::Duplicate, path, value, "")
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Error::new(ErrorKind::Forbidden, path, "", detail)
    }

    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Error::new(ErrorKind::NotFound, path, value, "")
    }

    /// `max` in bytes. The value itself is left out of the message, as upstream does since 1.32.
    pub fn too_long(path: &Path, _value: impl Into<Value>, max: usize) -> Self {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Error::new(ErrorKind::TooLong, path, "<value omitted>", format!("may not be more than {max} {unit}"))
    }

    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Error::new(ErrorKind::TooMany, path, actual, format!("must have at most {max} {unit}"))
    }

    pub fn internal(path: &Path, error: impl fmt::Display) -> Self {
        Error::new(ErrorKind::Internal, path, Value::Null, error.to_string())
    }

    /// The error without its field: what stands in `Status.details.causes[].message`.
    pub fn body(&self) -> String {
        let words = self.kind.words();
        let head = match self.kind {
            ErrorKind::Required | ErrorKind::Forbidden | ErrorKind::TooLong | ErrorKind::Internal => words.to_owned(),
            _ => format!("{words}: {}", go_value(&self.bad_value)),
        };
        if self.detail.is_empty() { head } else { format!("{head}: {}", self.detail) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A value as Go's error printing shows it: strings quoted, scalars plain, lists of strings as Go writes them, structures as JSON.
fn go_value(value: &Value) -> String {
    match value {
        Value::String(text) => go_quote(text),
        // A nil pointer, which upstream replaces by this text before it prints.
        Value::Null => "\"null\"".to_owned(),
        Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_string) => {
            format!("[]string{{{}}}", items.iter().map(go_value).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// Go's `%q`.
pub fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Upstream's `ToAggregate`: one error plain, several in brackets, repeats dropped.
pub fn aggregate(errors: &[Error]) -> String {
    let mut seen = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    match seen.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_upstream() {
        let spec = Path::new("spec");
        let cases = [
            (Error::required(&spec.child("selector"), ""), "spec.selector: Required value"),
            (
                Error::invalid(&spec.child("replicas"), -1, "must be greater than or equal to 0"),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                Error::not_supported(&spec.child("x").index(0).child("y"), "z", &["A", "B"]),
                r#"spec.x[0].y: Unsupported value: "z": supported values: "A", "B""#,
            ),
            (Error::duplicate(&Path::new("m").key("a/b"), "v"), r#"m[a/b]: Duplicate value: "v""#),
            (Error::too_long(&spec, "abc", 2), "spec: Too long: may not be more than 2 bytes"),
            (Error::too_many(&spec, 3, 2), "spec: Too many: 3: must have at most 2 items"),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }
}
