//! The shape of a row: what the rest of the API server may know about a resource.
//!
//! Rows are built by `const` functions, each naming one departure from the common case
//! (namespaced or not, stored, all verbs, DNS subdomain names, unconditional updates allowed).

use std::borrow::Cow;

use api::{GroupKind, GroupResource, Gvk, key::api_version};
use jiff::Timestamp;
use serde_json::Value;

use crate::{Generic, Strategy, columns, value};

/// Discovery order: alphabetical.
pub const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// One resource of the API.
pub struct Kind {
    pub group: &'static str,
    /// Served versions, preferred first.
    pub versions: &'static [&'static str],
    /// The version its objects are stored in; see [`Storage`] for the group.
    pub storage_version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    pub columns: &'static [Column],
    pub strategy: &'static dyn Strategy,
    pub storage: Storage,
    /// What can be selected besides `metadata.name` and `metadata.namespace`; see [`Kind::field`].
    pub fields: &'static [Selectable],
    pub name_rule: NameRule,
    /// `metadata.generation` starts at 1 and grows whenever anything but metadata and status changes.
    pub has_generation: bool,
    /// A PUT to a name that does not exist creates the object.
    pub allow_create_on_update: bool,
    /// A PUT without resourceVersion overwrites whatever is there.
    pub allow_unconditional_update: bool,
    /// What a DELETE without propagationPolicy does to dependents.
    pub default_propagation: Propagation,
    pub scale: Option<&'static ScalePaths>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Under its own group and plural.
    Own,
    /// The same objects as another resource, seen in another group's form.
    SharedWith { group: &'static str, plural: &'static str },
    /// Never stored: answered when it is created (reviews), or gathered when it is read.
    Virtual,
}

/// What a name must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    Dns1123Subdomain,
    Dns1123Label,
    Dns1035Label,
    PathSegment,
    Ip,
    /// Whatever fits into a URL.
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Orphan,
}

/// `plural/name` with its own verbs and, where it is not the parent's, its own kind.
pub struct Subresource {
    pub name: &'static str,
    pub verbs: &'static [&'static str],
    /// `None`: takes and gives the parent.
    pub served: Option<Served>,
}

/// Group, version and kind of a body that is not its parent's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
}

/// Where an object keeps what `autoscaling/v1 Scale` shows, as JSON pointers.
pub struct ScalePaths {
    pub spec_replicas: &'static str,
    pub status_replicas: &'static str,
    /// A `LabelSelector`, or a plain map of labels (ReplicationController).
    pub selector: &'static str,
}

/// One column of `kubectl get`; `priority` 1 shows with `-o wide` only.
pub struct Column {
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `boolean`.
    pub kind: &'static str,
    pub format: &'static str,
    pub description: &'static str,
    pub priority: i32,
    pub cell: fn(&Value, Timestamp) -> Value,
}

impl Column {
    pub fn render(&self, object: &Value, now: Timestamp) -> Value {
        (self.cell)(object, now)
    }
}

/// A field usable in `--field-selector`.
pub struct Selectable {
    pub field: &'static str,
    /// Dotted paths into the stored object; the first that holds something wins.
    pub paths: &'static [&'static str],
    /// What an absent field counts as: "", "false" or "0".
    pub absent: &'static str,
}

impl Selectable {
    pub fn value<'a>(&self, object: &'a Value) -> Cow<'a, str> {
        self.paths
            .iter()
            .map(|path| value::scalar(value::dotted(object, path)))
            .find(|text| !text.is_empty())
            .unwrap_or(Cow::Borrowed(self.absent))
    }
}

impl Kind {
    pub const fn namespaced(
        group: &'static str,
        versions: &'static [&'static str],
        kind: &'static str,
        singular: &'static str,
        plural: &'static str,
    ) -> Kind {
        Kind {
            group,
            versions,
            storage_version: versions[0],
            kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            verbs: ALL_VERBS,
            subresources: &[],
            columns: columns::PLAIN,
            strategy: &Generic,
            storage: Storage::Own,
            fields: &[],
            name_rule: NameRule::Dns1123Subdomain,
            has_generation: false,
            allow_create_on_update: false,
            allow_unconditional_update: true,
            default_propagation: Propagation::Background,
            scale: None,
        }
    }

    pub const fn cluster(
        group: &'static str,
        versions: &'static [&'static str],
        kind: &'static str,
        singular: &'static str,
        plural: &'static str,
    ) -> Kind {
        Kind { namespaced: false, ..Kind::namespaced(group, versions, kind, singular, plural) }
    }

    /// A create-only resource that is answered, not stored.
    pub const fn answered(self) -> Kind {
        Kind { storage: Storage::Virtual, verbs: &["create"], ..self }
    }

    pub const fn short(self, short_names: &'static [&'static str]) -> Kind {
        Kind { short_names, ..self }
    }

    pub const fn category(self, categories: &'static [&'static str]) -> Kind {
        Kind { categories, ..self }
    }

    pub const fn verbs(self, verbs: &'static [&'static str]) -> Kind {
        Kind { verbs, ..self }
    }

    pub const fn sub(self, subresources: &'static [Subresource]) -> Kind {
        Kind { subresources, ..self }
    }

    pub const fn columns(self, columns: &'static [Column]) -> Kind {
        Kind { columns, ..self }
    }

    pub const fn strategy(self, strategy: &'static dyn Strategy) -> Kind {
        Kind { strategy, ..self }
    }

    pub const fn stored(self, storage: Storage) -> Kind {
        Kind { storage, ..self }
    }

    pub const fn fields(self, fields: &'static [Selectable]) -> Kind {
        Kind { fields, ..self }
    }

    pub const fn names(self, name_rule: NameRule) -> Kind {
        Kind { name_rule, ..self }
    }

    pub const fn generation(self) -> Kind {
        Kind { has_generation: true, ..self }
    }

    pub const fn create_on_update(self) -> Kind {
        Kind { allow_create_on_update: true, ..self }
    }

    /// Updates must name the resourceVersion they replace.
    pub const fn conditional_update(self) -> Kind {
        Kind { allow_unconditional_update: false, ..self }
    }

    pub const fn orphans(self) -> Kind {
        Kind { default_propagation: Propagation::Orphan, ..self }
    }

    pub const fn scaled(self, scale: &'static ScalePaths) -> Kind {
        Kind { scale: Some(scale), ..self }
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.group, self.plural)
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind::new(self.group, self.kind)
    }

    /// Group, storage version and kind of the stored form.
    pub fn storage_gvk(&self) -> Gvk {
        let group = match self.storage {
            Storage::SharedWith { group, .. } => group,
            _ => self.group,
        };
        Gvk::new(group, self.storage_version, self.kind)
    }

    /// Whose objects these are: itself, unless it shares another's.
    pub fn storage_resource(&self) -> GroupResource {
        match self.storage {
            Storage::SharedWith { group, plural } => GroupResource::new(group, plural),
            _ => self.group_resource(),
        }
    }

    pub fn api_version(&self, version: &str) -> String {
        api_version(self.group, version)
    }

    pub fn is_virtual(&self) -> bool {
        self.storage == Storage::Virtual
    }

    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Fields that a write of the object (`""`) or of a subresource leaves as they are, so that nobody comes to own them by it.
    /// Upstream: `GetResetFields` of the strategies.
    pub fn reset_fields(&self, subresource: &str) -> &'static [&'static [&'static str]] {
        match subresource {
            "" if self.has_status() => &[&["status"]],
            "status" => &[&["spec"]],
            _ => &[],
        }
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The value of a selectable field of a stored object; `None` if this kind has no such field.
    pub fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        match field {
            "metadata.name" => Some(value::scalar(object.pointer("/metadata/name"))),
            "metadata.namespace" if self.namespaced => Some(value::scalar(object.pointer("/metadata/namespace"))),
            _ => self.fields.iter().find(|f| f.field == field).map(|f| f.value(object)),
        }
    }

    /// The messages a bad name earns; `prefix` is set for generateName, whose end may be a dash.
    pub fn check_name(&self, name: &str, prefix: bool) -> Vec<String> {
        let name = if prefix { mask_trailing_dash(name) } else { Cow::Borrowed(name) };
        self.name_rule.check(&name)
    }
}

impl NameRule {
    pub fn check(self, name: &str) -> Vec<String> {
        use api::names;
        match self {
            NameRule::Dns1123Subdomain => names::is_dns1123_subdomain(name),
            NameRule::Dns1123Label => names::is_dns1123_label(name),
            NameRule::Dns1035Label => names::is_dns1035_label(name),
            NameRule::PathSegment => names::is_path_segment_name(name),
            NameRule::Ip => names::is_valid_ip(name),
            NameRule::Any => Vec::new(),
        }
    }
}

/// Upstream's `maskTrailingDash`: a generateName may end in a dash because a suffix follows.
fn mask_trailing_dash(name: &str) -> Cow<'_, str> {
    match name.strip_suffix('-') {
        Some(head) if !head.is_empty() => Cow::Owned(format!("{}a", &name[..name.len() - 1])),
        _ => Cow::Borrowed(name),
    }
}
