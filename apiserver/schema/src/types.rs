//! What a type is: its fields with everything the Go struct's tags and comments say of them.
//!
//! The table itself ([`TYPES`]) is static data; nothing is built at run time.
//! Upstream: the structs of `k8s.io/api` (v1.33) and what Go's `reflect` tells of them.

use api::key::Gvk;

pub use crate::generated::TYPES;

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int32,
    Int64,
    Float64,
    String,
    /// base64 in JSON.
    Bytes,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// As Go prints durations; an int64 of nanoseconds in protobuf.
    Duration,
    Quantity,
    IntOrString,
    /// Any JSON, kept as it is: RawExtension, JSON, FieldsV1.
    Raw,
    /// A list of strings which protobuf wraps in a message of its own (ExtraValue, Verbs).
    Items,
    /// JSONSchemaPropsOrBool, ..OrArray, ..OrStringArray.
    PropsOrBool,
    PropsOrArray,
    PropsOrStrings,
    /// Index into [`TYPES`].
    Struct(u16),
    List(&'static Kind),
    /// Keys are strings.
    Map(&'static Kind),
}

/// How server-side apply merges a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Not said: atomic.
    Unset,
    Atomic,
    Set,
    /// By these keys.
    Map(&'static [&'static str]),
}

#[derive(Debug)]
pub struct Field {
    /// JSON name; empty for an inlined struct, whose fields belong to the outer object.
    pub name: &'static str,
    /// Protobuf tag; 0 for what protobuf leaves out.
    pub tag: u32,
    /// The Go type as Go prints it, without the pointer.
    pub go: &'static str,
    pub kind: Kind,
    pub pointer: bool,
    pub omitempty: bool,
    pub inline: bool,
    /// The comment says `+optional`.
    pub optional: bool,
    /// A map or struct that server-side apply takes as a whole.
    pub atomic: bool,
    pub list: ListType,
    /// `merge`, `replace`, `retainKeys`, or several with commas; empty if none.
    pub patch_strategy: &'static str,
    pub merge_key: &'static str,
    /// JSON of the comment's `+default`.
    pub default: Option<&'static str>,
}

#[derive(Debug)]
pub struct Type {
    /// Go name, `core/v1.Pod`.
    pub go: &'static str,
    pub group: &'static str,
    /// Empty unless the type has `kind` and `apiVersion`.
    pub version: &'static str,
    /// `+structType=atomic`.
    pub atomic: bool,
    pub fields: &'static [Field],
}

impl Type {
    pub fn name(&self) -> &'static str {
        self.go.rsplit('.').next().unwrap_or(self.go)
    }

    pub fn is_kind(&self) -> bool {
        !self.version.is_empty()
    }

    /// By JSON name, looking through inlined structs.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        for field in self.fields {
            if field.inline {
                if let Some(found) = field.kind.as_struct().and_then(|t| t.field(name)) {
                    return Some(found);
                }
            } else if field.name == name {
                return Some(field);
            }
        }
        None
    }

    /// The fields of the JSON object, inlined ones in their place.
    pub fn for_each_field(&self, f: &mut impl FnMut(&'static Field)) {
        for field in self.fields {
            match field.kind.as_struct() {
                Some(inlined) if field.inline => inlined.for_each_field(f),
                _ => f(field),
            }
        }
    }
}

impl Kind {
    pub fn as_struct(self) -> Option<&'static Type> {
        match self {
            Kind::Struct(i) => Some(&TYPES[i as usize]),
            _ => None,
        }
    }

    /// The struct behind lists and maps.
    pub fn innermost(self) -> Option<&'static Type> {
        match self {
            Kind::List(inner) | Kind::Map(inner) => inner.innermost(),
            other => other.as_struct(),
        }
    }
}

/// Meta types that every group serves as its own.
const EVERYWHERE: &[&str] =
    &["DeleteOptions", "CreateOptions", "UpdateOptions", "PatchOptions", "GetOptions", "ListOptions", "Status", "WatchEvent"];

/// The type of a kind. Options, Status and WatchEvent exist in every group, the others of meta in `meta.k8s.io/v1` too.
pub fn lookup(gvk: &Gvk) -> Option<&'static Type> {
    if EVERYWHERE.contains(&gvk.kind.as_str()) || gvk.group == "meta.k8s.io" {
        return by_go_name(&["meta/v1.", &gvk.kind]);
    }
    TYPES.iter().find(|t| t.is_kind() && t.version == gvk.version && t.group == gvk.group && t.name() == gvk.kind)
}

fn by_go_name(parts: &[&str]) -> Option<&'static Type> {
    let name = parts.concat();
    TYPES.binary_search_by(|t| t.go.cmp(&name)).ok().map(|i| &TYPES[i])
}

/// By Go name, such as `core/v1.PodSpec`.
pub fn named(go: &str) -> Option<&'static Type> {
    by_go_name(&[go])
}

pub(crate) const fn ty(go: &'static str, atomic: bool, fields: &'static [Field]) -> Type {
    Type { go, group: "", version: "", atomic, fields }
}

pub(crate) const fn kind(go: &'static str, group: &'static str, version: &'static str, atomic: bool, fields: &'static [Field]) -> Type {
    Type { go, group, version, atomic, fields }
}

pub(crate) const fn field(name: &'static str, tag: u32, go: &'static str, kind: Kind) -> Field {
    Field {
        name,
        tag,
        go,
        kind,
        pointer: false,
        omitempty: false,
        inline: false,
        optional: false,
        atomic: false,
        list: ListType::Unset,
        patch_strategy: "",
        merge_key: "",
        default: None,
    }
}

/// The table's words.
impl Field {
    pub(crate) const fn pointer(self) -> Field {
        Field { pointer: true, ..self }
    }
    pub(crate) const fn omitempty(self) -> Field {
        Field { omitempty: true, ..self }
    }
    pub(crate) const fn inline(self) -> Field {
        Field { inline: true, ..self }
    }
    pub(crate) const fn optional(self) -> Field {
        Field { optional: true, ..self }
    }
    pub(crate) const fn atomic(self) -> Field {
        let list = match self.kind {
            Kind::List(_) => ListType::Atomic,
            _ => ListType::Unset,
        };
        Field { atomic: true, list, ..self }
    }
    pub(crate) const fn set(self) -> Field {
        Field { list: ListType::Set, ..self }
    }
    pub(crate) const fn map_list(self, keys: &'static [&'static str]) -> Field {
        Field { list: ListType::Map(keys), ..self }
    }
    pub(crate) const fn patch(self, patch_strategy: &'static str, merge_key: &'static str) -> Field {
        Field { patch_strategy, merge_key, ..self }
    }
    pub(crate) const fn default(self, json: &'static str) -> Field {
        Field { default: Some(json), ..self }
    }
}
