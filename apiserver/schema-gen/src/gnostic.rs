//! The v2 document as gnostic's `openapi.v2.Document` in protobuf: what Go clients before OpenAPI v3 read.
//!
//! A table of messages, only of what our document uses; a member without a place in it is an error, so nothing is lost silently.
//! Free-form values (`x-kubernetes-…`, defaults) travel as YAML text; JSON is YAML.
//! Upstream: `gnostic/openapiv2/OpenAPIv2.proto`, `kube-openapi/pkg/handler` (`ToProtoBinary`).

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// A message: JSON member, tag and form, by tag; and the tag of its vendor extensions (0 = it has none).
struct Message {
    fields: &'static [(&'static str, u32, Form)],
    extensions: u32,
}

/// How a JSON value is written as a field.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Flag,
    /// `Any { yaml = 2 }`.
    Any,
    Is(&'static Message),
    /// A repeated field, of an array.
    Each(&'static Form),
    /// A repeated field of `{ name = 1, value = 2 }`, of an object.
    Named(&'static Form),
    /// A message whose only field is this.
    In(u32, &'static Form),
    /// `ParametersItem`, by the parameter's `in`.
    Parameter,
}

use Form::{Any, Each, Flag, In, Is, Named, Parameter, Text};

const TEXTS: Form = Each(&Text);

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Text),
        ("info", 2, Is(&INFO)),
        ("paths", 8, In(2, &Named(&Is(&PATH_ITEM)))),
        ("definitions", 9, In(1, &Named(&Is(&SCHEMA)))),
        ("security", 12, Each(&In(1, &Named(&In(1, &TEXTS))))),
        ("securityDefinitions", 13, In(1, &Named(&In(2, &Is(&API_KEY))))),
    ],
    extensions: 16,
};

static INFO: Message = Message { fields: &[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)], extensions: 7 };

static API_KEY: Message =
    Message { fields: &[("type", 1, Text), ("name", 2, Text), ("in", 3, Text), ("description", 4, Text)], extensions: 5 };

static PATH_ITEM: Message = Message {
    fields: &[
        ("get", 2, Is(&OPERATION)),
        ("put", 3, Is(&OPERATION)),
        ("post", 4, Is(&OPERATION)),
        ("delete", 5, Is(&OPERATION)),
        ("options", 6, Is(&OPERATION)),
        ("head", 7, Is(&OPERATION)),
        ("patch", 8, Is(&OPERATION)),
        ("parameters", 9, Each(&Parameter)),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, TEXTS),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, TEXTS),
        ("consumes", 7, TEXTS),
        ("parameters", 8, Each(&Parameter)),
        ("responses", 9, In(1, &Named(&In(1, &Is(&RESPONSE))))),
        ("schemes", 10, TEXTS),
        ("deprecated", 11, Flag),
    ],
    extensions: 13,
};

static RESPONSE: Message = Message { fields: &[("description", 1, Text), ("schema", 2, In(1, &Is(&SCHEMA)))], extensions: 5 };

static BODY: Message = Message {
    fields: &[("description", 1, Text), ("name", 2, Text), ("in", 3, Text), ("required", 4, Flag), ("schema", 5, Is(&SCHEMA))],
    extensions: 6,
};

static QUERY: Message = Message {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 6, Text),
        ("format", 7, Text),
        ("uniqueItems", 20, Flag),
    ],
    extensions: 23,
};

static PATH: Message = Message {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("uniqueItems", 19, Flag),
    ],
    extensions: 22,
};

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("pattern", 13, Text),
        ("required", 19, TEXTS),
        ("enum", 20, Each(&Any)),
        ("additionalProperties", 21, In(1, &Is(&SCHEMA))),
        ("type", 22, In(1, &Text)),
        ("items", 23, In(1, &Is(&SCHEMA))),
        ("allOf", 24, Each(&Is(&SCHEMA))),
        ("properties", 25, In(1, &Named(&Is(&SCHEMA)))),
    ],
    extensions: 31,
};

/// The document's bytes. Errors: a member that the table above lacks, or one of another type.
pub fn encode(document: &Value) -> Result<Vec<u8>> {
    message(document, &DOCUMENT)
}

fn message(value: &Value, t: &Message) -> Result<Vec<u8>> {
    let members = object(value)?;
    let mut out = Vec::new();
    for (name, tag, form) in t.fields {
        if let Some(value) = members.get(*name) {
            put(&mut out, *tag, *form, value).with_context(|| (*name).to_owned())?;
        }
    }
    for (name, value) in members.iter().filter(|(name, _)| t.fields.iter().all(|(known, ..)| known != name)) {
        if t.extensions == 0 || !name.starts_with("x-") {
            bail!("no place for {name}");
        }
        put_bytes(&mut out, t.extensions, &named(name, Any, value)?);
    }
    Ok(out)
}

fn put(out: &mut Vec<u8>, tag: u32, form: Form, value: &Value) -> Result<()> {
    match form {
        Text => match value.as_str().with_context(|| format!("not a text: {value}"))? {
            "" => {}
            text => put_bytes(out, tag, text.as_bytes()),
        },
        Flag if value.as_bool().with_context(|| format!("not true or false: {value}"))? => {
            put_varint(out, u64::from(tag << 3));
            put_varint(out, 1);
        }
        Flag => {}
        Each(form) => {
            for item in value.as_array().with_context(|| format!("not a list: {value}"))? {
                put(out, tag, *form, item)?;
            }
        }
        Named(form) => {
            for (name, item) in object(value)? {
                put_bytes(out, tag, &named(name, *form, item).with_context(|| name.clone())?);
            }
        }
        Is(t) => put_bytes(out, tag, &message(value, t)?),
        Any => put_bytes(out, tag, &single(2, Text, &Value::String(format!("{value}\n")))?),
        In(inner, form) => put_bytes(out, tag, &single(inner, *form, value)?),
        Parameter => put_bytes(out, tag, &single(1, parameter(value)?, value)?),
    }
    Ok(())
}

// `Parameter { body_parameter = 1, non_body_parameter = 2 { query = 3, path = 4 } }`.
static IN_BODY: Form = In(1, &Is(&BODY));
static IN_QUERY: Form = In(2, &In(3, &Is(&QUERY)));
static IN_PATH: Form = In(2, &In(4, &Is(&PATH)));

fn parameter(value: &Value) -> Result<Form> {
    Ok(match value["in"].as_str() {
        Some("body") => IN_BODY,
        Some("query") => IN_QUERY,
        Some("path") => IN_PATH,
        other => bail!("a parameter in {other:?}"),
    })
}

fn single(tag: u32, form: Form, value: &Value) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    put(&mut out, tag, form, value)?;
    Ok(out)
}

fn named(name: &str, form: Form, value: &Value) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, name.as_bytes());
    put(&mut out, 2, form, value)?;
    Ok(out)
}

fn object(value: &Value) -> Result<&Map<String, Value>> {
    value.as_object().with_context(|| format!("not an object: {value}"))
}

fn put_bytes(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    put_varint(out, u64::from(tag << 3 | 2));
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
