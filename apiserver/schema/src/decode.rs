//! Request bodies to objects, with Go's eyes: its leniency, its strictness when asked, and its words when it refuses.
//!
//! One visitor walks any serde source (JSON, YAML, a `Value`) along the static type: unknown fields are dropped and noted, duplicate keys
//! noted (the last wins), a wrong type noted (the first is reported), null is the same as absent. The result is normalized.
//! Upstream: `sigs.k8s.io/json`, `apimachinery/pkg/runtime/serializer/json`, `apiserver/pkg/endpoints/handlers/rest.go` (`transformDecodeError`).

use std::collections::HashSet;
use std::fmt;

use api::Status;
use api::field::go_quote;
use api::key::Gvk;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::types::{Kind, Type, lookup};
use crate::{normalize, protobuf, scalar};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
}

/// What to do about unknown and duplicate fields (`fieldValidation=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

const SCHEME: &str = "k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30";
/// Upstream lists no more strict errors than this.
const MAX_STRICT_ERRORS: usize = 100;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct TypeMeta {
    api_version: Value,
    kind: Value,
}

impl TypeMeta {
    /// Errors: a group, version or kind that is none, in the words of upstream's interpreter.
    fn gvk(&self) -> Result<Gvk, String> {
        for (field, value) in [("apiVersion", &self.api_version), ("kind", &self.kind)] {
            if !value.is_string() && !value.is_null() {
                let found = json_type(value);
                return Err(format!("{JSON_ERROR}json: cannot unmarshal {found} into Go struct field .{field} of type string"));
            }
        }
        let api_version = self.api_version.as_str().unwrap_or_default();
        if api_version.matches('/').count() > 1 {
            return Err(format!("unexpected GroupVersion string: {api_version}"));
        }
        let (group, version) = api::key::parse_api_version(api_version);
        Ok(Gvk::new(group, version, self.kind.as_str().unwrap_or_default()))
    }
}

const JSON_ERROR: &str = "couldn't get version/kind; json parse error: ";

/// As Go's JSON decoder calls what it found.
pub(crate) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(_) | Value::Null => "number",
    }
}

/// The kind a body says it is; empty where it says nothing. Errors: 400 for what can't be parsed.
pub fn peek_gvk(body: &[u8], media: Media) -> Result<Gvk, Status> {
    peek(body, media).map_err(Status::bad_request)
}

fn peek(body: &[u8], media: Media) -> Result<Gvk, String> {
    let meta = match media {
        Media::Json => json_meta(body)?,
        Media::Yaml => yaml(body, |d| TypeMeta::deserialize(d)).map_err(|e| format!("error converting YAML to JSON: {e}"))?,
        Media::Protobuf => {
            let (api_version, kind) = protobuf::type_meta(body)?;
            TypeMeta { api_version: api_version.into(), kind: kind.into() }
        }
    };
    meta.gvk()
}

fn json_meta(body: &[u8]) -> Result<TypeMeta, String> {
    let syntax = |e: serde_json::Error| format!("{JSON_ERROR}{}", go_syntax_error(body, &e));
    let other = match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "bool",
        Some(b'-' | b'0'..=b'9') => "number",
        _ => return serde_json::from_slice::<Option<TypeMeta>>(body).map(Option::unwrap_or_default).map_err(syntax),
    };
    serde_json::from_slice::<IgnoredAny>(body).map_err(syntax)?;
    Err(no_meta(other))
}

fn no_meta(found: &str) -> String {
    let meta = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
    format!("{JSON_ERROR}json: cannot unmarshal {found} into Go value of type {meta}")
}

/// The body as an object of kind `expected`, normalized, with `apiVersion` and `kind` set; and warnings.
///
/// Errors: 400, in upstream's words, for what can't be parsed, is of another kind, has wrong types, or (`Strict`) unknown or duplicate fields.
pub fn decode(body: &[u8], media: Media, expected: &Gvk, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    let (mut object, warnings) = decode_as_written(body, media, expected, validation)?;
    settle(expected, &mut object);
    Ok((object, warnings))
}

/// The same, with nothing filled in: what a server-side apply speaks of is exactly what its author wrote.
pub fn decode_as_written(body: &[u8], media: Media, expected: &Gvk, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    let unrecognized = |why: String| {
        Status::bad_request(format!("the object provided is unrecognized (must be of type {}): {why} ({})", expected.kind, summary(body)))
    };
    let said = peek(body, media).map_err(unrecognized)?;
    let t = lookup(expected).ok_or_else(|| Status::bad_request(not_registered(expected)))?;
    check_kind(&said, expected)?;
    let mut walk = Walk::default();
    let parsed = walk.read(body, media, t);
    walk.finish(parsed, expected, validation)
}

/// The options in a request's body. Errors: the bare reason; upstream puts it into no envelope.
pub fn decode_options(body: &[u8], media: Media, expected: &Gvk) -> Result<Value, String> {
    let said = peek(body, media)?;
    let t = lookup(expected).ok_or_else(|| not_registered(expected))?;
    if let Some((_, why)) = misfit(&said, expected) {
        return Err(why);
    }
    let mut walk = Walk::default();
    let options = walk.read(body, media, t)?;
    walk.verdict(FieldValidation::Ignore)?;
    Ok(options)
}

/// The same for an object that is a tree already (a patch's result).
pub fn decode_value(object: Value, expected: &Gvk, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    let t = lookup(expected).ok_or_else(|| Status::bad_request(not_registered(expected)))?;
    let mut walk = Walk::default();
    let parsed = walk.object(object, t).map_err(|e| e.to_string());
    let (mut object, warnings) = walk.finish(parsed, expected, validation)?;
    settle(expected, &mut object);
    Ok((object, warnings))
}

fn yaml<T>(body: &[u8], read: impl FnOnce(serde_yaml::Deserializer<'_, '_>) -> Result<T, serde_yaml::Error>) -> Result<T, String> {
    let options = serde_yaml::options! { duplicate_keys: serde_yaml::options::DuplicateKeyPolicy::LastWins, legacy_octal_numbers: true, with_snippet: false };
    let text = std::str::from_utf8(body).map_err(|_| "yaml: invalid UTF-8".to_owned())?;
    serde_yaml::with_deserializer_from_str_with_options(text, options, read).map_err(|e| format!("yaml: {e}"))
}

fn not_registered(gvk: &Gvk) -> String {
    format!("no kind {} is registered for version {} in scheme {}", go_quote(&gvk.kind), go_quote(&gvk.api_version()), go_quote(SCHEME))
}

fn cannot_handle(gvk: &Gvk, why: impl fmt::Display) -> Status {
    Status::bad_request(format!("{} in version {} cannot be handled as a {}: {why}", gvk.kind, go_quote(&gvk.version), gvk.kind))
}

/// The one old version still taken: kubectl of before 1.22 drains with it.
const OLD_EVICTION: (&str, &str, &str) = ("policy", "v1beta1", "Eviction");

fn is_old_eviction(said: &Gvk, expected: &Gvk) -> bool {
    (said.group.as_str(), said.version.as_str(), expected.kind.as_str()) == OLD_EVICTION
}

/// What the body leaves out is taken from the request; what it says must fit.
fn check_kind(said: &Gvk, expected: &Gvk) -> Result<(), Status> {
    let anywhere = lookup(&Gvk::new("meta.k8s.io", "v1", &expected.kind)).is_some();
    let same = (&said.group, &said.version) == (&expected.group, &expected.version);
    let version_fits = said.version.is_empty() || same || anywhere || is_old_eviction(said, expected);
    if let Some((full, why)) = misfit(said, expected) {
        let version = go_quote(&full.version);
        return Err(Status::bad_request(format!("{} in version {version} cannot be handled as a {}: {why}", full.kind, expected.kind)));
    }
    if !version_fits {
        let (said, expected) = (said.api_version(), expected.api_version());
        return Err(Status::bad_request(format!(
            "the API version in the data ({said}) does not match the expected API version ({expected})"
        )));
    }
    Ok(())
}

/// What the body says it is, if that is no `expected` in any version, and why.
fn misfit(said: &Gvk, expected: &Gvk) -> Option<(Gvk, String)> {
    if !said.kind.is_empty() && said.kind != expected.kind {
        let version = if said.version.is_empty() { &expected.version } else { &said.version };
        let full = Gvk::new(&said.group, version, &said.kind);
        let why = match lookup(&full) {
            None => not_registered(&full),
            Some(_) => {
                let internal = if expected.group.is_empty() { "core" } else { expected.group.split('.').next().unwrap_or_default() };
                format!("converting ({}.{}) to ({internal}.{}): unknown conversion", full.version, full.kind, expected.kind)
            }
        };
        return Some((full, why));
    }
    let full = Gvk::new(&said.group, &said.version, &expected.kind);
    let anywhere = Gvk::new("meta.k8s.io", "v1", &expected.kind);
    let known = said.version.is_empty() || is_old_eviction(said, expected) || [&full, &anywhere].iter().any(|gvk| lookup(gvk).is_some());
    (!known).then(|| (full.clone(), not_registered(&full)))
}

/// A patch may not make of an object another kind. Errors: why the patched one is not `expected`.
pub(crate) fn check_patched_kind(object: &Value, expected: &Gvk) -> Result<(), String> {
    let Value::Object(fields) = object else {
        return Err(no_meta(json_type(object)));
    };
    let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
    let said = TypeMeta { api_version: field("apiVersion"), kind: field("kind") }.gvk()?;
    misfit(&said, expected).map_or(Ok(()), |(_, why)| Err(why))
}

/// The body's beginning, as upstream shows it.
fn summary(body: &[u8]) -> String {
    const LENGTH: usize = 30;
    let more = if body.len() > LENGTH { " ..." } else { "" };
    let shown = &body[..body.len().min(LENGTH)];
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(shown)),
        Some(_) => format!("{}{more}", shown.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    }
}

/// serde_json's complaint in the words of Go's scanner.
fn go_syntax_error(body: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let text = error.to_string();
    let line_start = body.split_inclusive(|b| *b == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum::<usize>();
    let Some(at) = body.get(line_start + error.column().saturating_sub(1)).filter(|_| error.is_syntax()) else { return text };
    let place = match text.as_str() {
        t if t.starts_with("expected `,` or `}`") => "after object key:value pair",
        t if t.starts_with("expected `,` or `]`") => "after array element",
        t if t.starts_with("expected `:`") => "after object key",
        t if t.starts_with("key must be a string") || t.starts_with("trailing comma") && *at == b'}' => {
            "looking for beginning of object key string"
        }
        t if t.starts_with("trailing characters") => "after top-level value",
        t if t.starts_with("control character") => "in string literal",
        _ => "looking for beginning of value",
    };
    match at {
        b'\'' => format!("invalid character '\\'' {place}"),
        b'\n' => format!("invalid character '\\n' {place}"),
        other => format!("invalid character '{}' {place}", char::from(*other)),
    }
}

/// In which words a wrong type is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Words {
    /// Go's JSON decoder.
    #[default]
    Json,
    /// apimachinery's converter from maps, which strategic merge patches end in.
    Converter,
}

/// A patched object, checked: the error is the bare reason, for the patch's own envelope. `noted` are strict errors found before.
pub(crate) fn check_patched(
    object: Value,
    gvk: &Gvk,
    words: Words,
    noted: Vec<String>,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), String> {
    let t = lookup(gvk).ok_or_else(|| not_registered(gvk))?;
    let mut walk = Walk { words, strict: noted, ..Walk::default() };
    let mut object = walk.object(object, t).map_err(|e| e.to_string())?;
    let warnings = walk.verdict(validation)?;
    settle(gvk, &mut object);
    set_kind(&mut object, gvk);
    Ok((object, warnings))
}

/// A YAML document, and the first key it has twice, as Go's parser complains of it.
pub(crate) fn yaml_document(body: &[u8]) -> Result<(Value, Option<String>), String> {
    let converting = |why: String| format!("error converting YAML to JSON: {why}");
    let value = yaml(body, |source| Value::deserialize(source)).map_err(converting)?;
    let strict = serde_yaml::options! { legacy_octal_numbers: true, with_snippet: false };
    let text = std::str::from_utf8(body).unwrap_or_default();
    let twice = match serde_yaml::with_deserializer_from_str_with_options(text, strict, |source| Value::deserialize(source)) {
        Err(serde_yaml::Error::DuplicateMappingKey { key, location }) => {
            let key = go_quote(&key.unwrap_or_default());
            Some(converting(format!("yaml: unmarshal errors:\n  line {}: key {key} already set in map", location.line())))
        }
        _ => None,
    };
    Ok((value, twice))
}

/// A free-form JSON document, and its duplicate fields.
pub(crate) fn free_form(body: &[u8]) -> Result<(Value, Vec<String>), String> {
    let mut walk = Walk { free_form_strict: true, ..Walk::default() };
    let mut source = serde_json::Deserializer::from_slice(body);
    let value = Seed { walk: &mut walk, kind: Kind::Raw, owner: "", go: "map[string]interface {}" }.deserialize(&mut source);
    let value = value.and_then(|value| source.end().map(|()| value)).map_err(|e| go_syntax_error(body, &e))?;
    Ok((value, walk.strict))
}

/// Normalizes. An empty list of managers, which Go tells from none, becomes the list that says the same: reset.
fn settle(gvk: &Gvk, object: &mut Value) {
    if let Some(list) = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).filter(|list| list.is_empty()) {
        list.push(Value::Object(Map::new()));
    }
    normalize(gvk, object);
}

fn set_kind(object: &mut Value, gvk: &Gvk) {
    if let Value::Object(map) = object {
        map.insert("apiVersion".to_owned(), gvk.api_version().into());
        map.insert("kind".to_owned(), gvk.kind.clone().into());
    }
}

enum Step {
    Field(&'static str),
    Key(String),
    Index(usize),
}

/// What was found on the way.
#[derive(Default)]
struct Walk {
    path: Vec<Step>,
    strict: Vec<String>,
    words: Words,
    /// Duplicate keys of free-form objects count.
    free_form_strict: bool,
    /// The first value of a wrong type.
    type_error: Option<String>,
    /// The first value that a type's own parser refused; Go stops there.
    value_error: Option<String>,
}

impl Walk {
    fn object<'de, D: Deserializer<'de>>(&mut self, source: D, t: &'static Type) -> Result<Value, D::Error> {
        let index = crate::types::TYPES.iter().position(|known| std::ptr::eq(known, t)).unwrap_or_default();
        Seed { walk: self, kind: Kind::Struct(index as u16), owner: "", go: t.go }.deserialize(source)
    }

    fn read(&mut self, body: &[u8], media: Media, t: &'static Type) -> Result<Value, String> {
        let parsed = match media {
            Media::Json => {
                let mut source = serde_json::Deserializer::from_slice(body);
                self.object(&mut source, t).map_err(|e| go_syntax_error(body, &e))
            }
            Media::Yaml => yaml(body, |d| self.object(d, t)),
            Media::Protobuf => protobuf::decode(body, t),
        };
        // `null` is an object with nothing in it.
        parsed.map(|value| if value.is_null() && self.type_error.is_none() { Value::Object(Map::new()) } else { value })
    }

    fn finish(self, parsed: Result<Value, String>, gvk: &Gvk, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
        let mut object = parsed.map_err(|e| cannot_handle(gvk, e))?;
        let warnings = self.verdict(validation).map_err(|e| cannot_handle(gvk, e))?;
        set_kind(&mut object, gvk);
        Ok((object, warnings))
    }

    /// Warnings, or why the object is refused.
    fn verdict(self, validation: FieldValidation) -> Result<Vec<String>, String> {
        if let Some(error) = self.value_error.or(self.type_error) {
            return Err(error);
        }
        match validation {
            FieldValidation::Strict if !self.strict.is_empty() => Err(format!("strict decoding error: {}", self.strict.join(", "))),
            FieldValidation::Warn => Ok(self.strict),
            _ => Ok(Vec::new()),
        }
    }

    fn note(&mut self, what: &str, name: &str) {
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Index(i) => path.push_str(&format!("[{i}]")),
                Step::Field(name) => push_name(&mut path, name),
                Step::Key(name) => push_name(&mut path, name),
            }
        }
        push_name(&mut path, name);
        if self.strict.len() < MAX_STRICT_ERRORS {
            self.strict.push(format!("{what} field {}", go_quote(&path)));
        }
    }
}

fn push_name(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// One value of a known kind.
struct Seed<'w> {
    walk: &'w mut Walk,
    kind: Kind,
    /// Go name of the struct that holds the field.
    owner: &'static str,
    /// Go type of the value.
    go: &'static str,
}

impl Seed<'_> {
    fn wrong(self, found: &str) -> Value {
        if self.walk.type_error.is_none() && self.walk.words == Words::Converter {
            self.walk.type_error = Some(self.converter_error(found));
        } else if self.walk.type_error.is_none() {
            let fields: Vec<&str> =
                self.walk.path.iter().filter_map(|s| if let Step::Field(name) = s { Some(*name) } else { None }).collect();
            let into = if self.owner.is_empty() { "value".to_owned() } else { format!("struct field {}.{}", self.owner, fields.join(".")) };
            self.walk.type_error = Some(format!("json: cannot unmarshal {found} into Go {into} of type {}", self.go));
        }
        Value::Null
    }

    fn converter_error(&self, found: &str) -> String {
        let found = match found {
            "array" => "slice",
            "object" => "map",
            text if text.starts_with("number") && text.contains('.') => "float64",
            text if text.starts_with("number") => "int64",
            other => other,
        };
        let source = match found {
            "slice" => "[]interface {}",
            "map" => "map[string]interface {}",
            scalar => scalar,
        };
        match self.kind {
            Kind::Struct(_) => format!("cannot restore struct from: {found}"),
            Kind::List(_) | Kind::Items => format!("cannot restore slice from {found}"),
            Kind::Map(_) => format!("cannot restore map from {found}"),
            _ => format!("cannot convert {source} to {}", self.go),
        }
    }

    fn refuse(self, error: String) -> Value {
        self.walk.value_error.get_or_insert(error);
        Value::Null
    }

    /// apimachinery's converter does as Go's conversions do: what does not fit loses its upper bits.
    fn converted(&self, number: i128) -> Option<Value> {
        let wide = i64::try_from(number).unwrap_or(i64::MIN);
        match self.kind {
            Kind::Int32 if self.walk.words == Words::Converter => Some(Value::from(wide as i32)),
            Kind::Int64 if self.walk.words == Words::Converter => Some(Value::from(wide)),
            _ => None,
        }
    }

    fn integer(self, number: i128) -> Value {
        if let Some(value) = self.converted(number) {
            return value;
        }
        let fits = match self.kind {
            Kind::Int32 => i32::try_from(number).is_ok(),
            Kind::Int64 => i64::try_from(number).is_ok(),
            Kind::Float64 => return scalar::float(number as f64),
            Kind::Quantity => return self.parsed(scalar::quantity(&number.to_string())),
            Kind::IntOrString => i32::try_from(number).is_ok(),
            Kind::Raw => {
                return i64::try_from(number).map(Value::from).or_else(|_| u64::try_from(number).map(Value::from)).unwrap_or(Value::Null);
            }
            _ => return self.wrong("number"),
        };
        if fits { Value::from(number as i64) } else { self.wrong(&format!("number {number}")) }
    }

    fn parsed(self, result: Result<String, String>) -> Value {
        match result {
            Ok(text) => Value::String(text),
            Err(error) => self.refuse(error),
        }
    }

    /// The Go type of a list's or map's elements.
    fn element_go(&self) -> &'static str {
        let rest = self.go.strip_prefix("[]").or_else(|| self.go.strip_prefix("map[").and_then(|r| r.split_once(']')).map(|(_, r)| r));
        rest.unwrap_or(self.go).trim_start_matches('*')
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.go)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(match self.kind {
            Kind::Bool | Kind::Raw | Kind::PropsOrBool => Value::Bool(value),
            _ => self.wrong("bool"),
        })
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(self.integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(self.integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(self.integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        if value.fract() == 0.0
            && let Some(value) = self.converted(value as i128)
        {
            return Ok(value);
        }
        Ok(match self.kind {
            Kind::Float64 => scalar::float(value),
            Kind::Raw => Value::from(value),
            Kind::Quantity => self.parsed(scalar::quantity(&value.to_string())),
            Kind::Int32 | Kind::Int64 | Kind::IntOrString => self.wrong(&format!("number {value:?}")),
            _ => self.wrong("number"),
        })
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(match self.kind {
            Kind::String | Kind::Raw | Kind::IntOrString | Kind::Duration => Value::from(value),
            Kind::Bytes => self.parsed(scalar::base64(value)),
            Kind::Time => self.parsed(scalar::time(value)),
            Kind::MicroTime => self.parsed(scalar::micro_time(value)),
            Kind::Quantity => self.parsed(scalar::quantity(value)),
            _ => self.wrong("string"),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let (kind, go) = match self.kind {
            Kind::List(element) => (*element, self.element_go()),
            Kind::Items | Kind::PropsOrStrings => (Kind::String, "string"),
            Kind::PropsOrArray => (Kind::Struct(crate::generated::JSON_SCHEMA_PROPS), "v1.JSONSchemaProps"),
            Kind::Raw => (Kind::Raw, "interface {}"),
            _ => {
                while source.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(self.wrong("array"));
            }
        };
        let mut items = Vec::new();
        loop {
            self.walk.path.push(Step::Index(items.len()));
            let next = source.next_element_seed(Seed { walk: self.walk, kind, owner: self.owner, go })?;
            self.walk.path.pop();
            match next {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, source: A) -> Result<Value, A::Error> {
        match self.kind {
            Kind::Struct(_) => self.fields(source),
            Kind::PropsOrBool | Kind::PropsOrArray | Kind::PropsOrStrings => {
                let kind = Kind::Struct(crate::generated::JSON_SCHEMA_PROPS);
                Seed { kind, go: "v1.JSONSchemaProps", ..self }.fields(source)
            }
            Kind::Map(element) => {
                let go = self.element_go();
                self.entries(source, *element, go, true)
            }
            Kind::Raw => {
                let checked = self.walk.free_form_strict;
                self.entries(source, Kind::Raw, "interface {}", checked)
            }
            _ => {
                let mut source = source;
                while source.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(self.wrong("object"))
            }
        }
    }
}

impl Seed<'_> {
    fn fields<'de, A: MapAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let t = self.kind.as_struct().ok_or_else(|| A::Error::custom("not a struct"))?;
        let (mut map, mut seen) = (Map::new(), HashSet::new());
        while let Some(name) = source.next_key::<String>()? {
            let (field_name, kind, go): (&'static str, _, _) = match t.field(&name) {
                Some(field) => (field.name, field.kind, field.go),
                None if t.is_kind() && name == "kind" => ("kind", Kind::String, "string"),
                None if t.is_kind() && name == "apiVersion" => ("apiVersion", Kind::String, "string"),
                None => {
                    self.walk.note("unknown", &name);
                    source.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if !seen.insert(field_name) {
                self.walk.note("duplicate", &name);
            }
            self.walk.path.push(Step::Field(field_name));
            let value = source.next_value_seed(Seed { walk: self.walk, kind, owner: t.name(), go })?;
            self.walk.path.pop();
            if !value.is_null() {
                map.insert(name, value);
            }
        }
        Ok(Value::Object(map))
    }

    fn entries<'de, A: MapAccess<'de>>(self, mut source: A, kind: Kind, go: &'static str, checked: bool) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = source.next_key::<String>()? {
            if checked && map.contains_key(&name) {
                self.walk.note("duplicate", &name);
            }
            self.walk.path.push(Step::Key(name.clone()));
            let value = source.next_value_seed(Seed { walk: self.walk, kind, owner: self.owner, go })?;
            self.walk.path.pop();
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Gvk {
        Gvk::new("apps", "v1", "Deployment")
    }

    fn refused(body: &str, media: Media) -> String {
        decode(body.as_bytes(), media, &deployment(), FieldValidation::Strict).unwrap_err().message
    }

    #[test]
    fn refusals_read_as_upstreams() {
        let head = "Deployment in version \"v1\" cannot be handled as a Deployment: ";
        let cases = [
            (r#"{"spec":{"replicas":"3"}}"#, format!("{head}json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32")),
            (r#"{"spec":{"replicas":1.5}}"#, format!("{head}json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32")),
            (r#"{"spec":[]}"#, format!("{head}json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec")),
            (
                r#"{"spec":{"template":{"spec":{"containers":{}}}}}"#,
                format!("{head}json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container"),
            ),
            (
                r#"{"spec":{"template":{"spec":{"containers":[{"image":1}]}}}}"#,
                format!("{head}json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.image of type string"),
            ),
            (
                r#"{"metadata":{"labels":{"a":true}}}"#,
                format!("{head}json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string"),
            ),
            (
                r#"{"spec":{"foo":1,"replicas":1,"replicas":2,"template":{"spec":{"containers":[{"bar":1}]}}}}"#,
                format!("{head}strict decoding error: unknown field \"spec.foo\", duplicate field \"spec.replicas\", unknown field \"spec.template.spec.containers[0].bar\""),
            ),
            (
                r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}}}"#,
                format!("{head}quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
            ),
            (
                r#"{"kind":"Pod","apiVersion":"v1"}"#,
                "Pod in version \"v1\" cannot be handled as a Deployment: converting (v1.Pod) to (apps.Deployment): unknown conversion".to_owned(),
            ),
            (
                r#"{"kind":"Deployment","apiVersion":"apps/v9"}"#,
                "Deployment in version \"v9\" cannot be handled as a Deployment: no kind \"Deployment\" is registered for version \"apps/v9\" in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\"".to_owned(),
            ),
            (
                "[]",
                "the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b5d)".to_owned(),
            ),
            (
                r#"{"kind":5}"#,
                "the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; json parse error: json: cannot unmarshal number into Go struct field .kind of type string ({\"kind\":5})".to_owned(),
            ),
            (
                r#"{"apiVersion":"a/b/c"}"#,
                "the object provided is unrecognized (must be of type Deployment): unexpected GroupVersion string: a/b/c ({\"apiVersion\":\"a/b/c\"})".to_owned(),
            ),
            (
                r#"{"kind":"Deployment""#,
                "the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; json parse error: unexpected end of JSON input ({\"kind\":\"Deployment\")".to_owned(),
            ),
        ];
        for (body, message) in cases {
            assert_eq!(refused(body, Media::Json), message, "{body}");
        }
    }

    #[test]
    fn an_eviction_may_be_of_the_old_version() {
        let gvk = |group, version| Gvk::new(group, version, "Eviction");
        let mut object = serde_json::json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "web"}});
        let body = object.to_string();
        let decoded = decode(body.as_bytes(), Media::Json, &gvk("policy", "v1"), FieldValidation::Strict).unwrap().0;
        assert_eq!((decoded["metadata"]["name"].as_str(), decoded["apiVersion"].as_str()), (Some("web"), Some("policy/v1")));
        object["apiVersion"] = "policy/v1beta2".into();
        let body = object.to_string();
        assert!(decode(body.as_bytes(), Media::Json, &gvk("policy", "v1"), FieldValidation::Strict).is_err());
    }

    #[test]
    fn unknown_fields_warn_and_are_dropped() {
        let body = br#"{"spec":{"foo":1}}"#;
        let (object, warnings) = decode(body, Media::Json, &deployment(), FieldValidation::Warn).unwrap();
        assert_eq!(warnings, ["unknown field \"spec.foo\""]);
        assert_eq!(object["spec"].get("foo"), None);
        assert_eq!(object["kind"], "Deployment");
        let (_, warnings) = decode(body, Media::Json, &deployment(), FieldValidation::Ignore).unwrap();
        assert!(warnings.is_empty());
    }

    #[test]
    fn yaml_reads_as_go_reads_it() {
        let body = "metadata:\n  name: web\nspec:\n  paused: yes\n  template:\n    spec:\n      volumes:\n      - name: v\n        configMap: {name: c, defaultMode: 0644}\n      containers:\n      - name: a\n        resources: {limits: {cpu: 1, memory: 1024Mi}}\n";
        let (object, _) = decode(body.as_bytes(), Media::Yaml, &deployment(), FieldValidation::Strict).unwrap();
        assert_eq!(object["spec"]["paused"], true);
        let pod = &object["spec"]["template"]["spec"];
        assert_eq!(pod["volumes"][0]["configMap"]["defaultMode"], 420);
        assert_eq!(pod["containers"][0]["resources"]["limits"], serde_json::json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(refused("spec: {replicas: 1, replicas: 2}", Media::Yaml).split(": ").last(), Some("duplicate field \"spec.replicas\""));
    }

    #[test]
    fn written_as_go_writes() {
        let (object, _) = decode(b"{}", Media::Json, &deployment(), FieldValidation::Strict).unwrap();
        let expected = serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"creationTimestamp": null},
            "spec": {"selector": null, "strategy": {}, "template": {"metadata": {"creationTimestamp": null}, "spec": {"containers": null}}},
            "status": {},
        });
        assert_eq!(object, expected);
        let bytes = crate::encode_protobuf(&deployment(), &object);
        assert_eq!(decode(&bytes, Media::Protobuf, &deployment(), FieldValidation::Strict).unwrap().0, expected);
        let (written, _) =
            decode_as_written(b"{\"spec\":{\"paused\":false}}", Media::Json, &deployment(), FieldValidation::Strict).unwrap();
        assert_eq!(written["spec"], serde_json::json!({"paused": false}));
    }
}
