//! Kubernetes' protobuf: the envelope `k8s\0` + `runtime.Unknown`, and messages along the static type.
//!
//! The writer gives the bytes gogo's generated code gives: fields by tag, every field that is no pointer written even when zero, maps by key.
//! Upstream: `apimachinery/pkg/runtime/serializer/protobuf`, `generated.pb.go` of each group.

use api::key::Gvk;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::normalize::{props, zero};
use crate::scalar;
use crate::types::{Field, Kind, Type, lookup, named};

const MAGIC: &[u8] = b"k8s\0";
/// The envelope's last two fields, empty: contentEncoding, contentType.
const CLOSE: &[u8] = &[3 << 3 | 2, 0, 4 << 3 | 2, 0];
/// Nested messages; upstream has no type near it but JSONSchemaProps.
const MAX_DEPTH: usize = 100;

type Result<T> = std::result::Result<T, String>;

/// Objects of unknown kinds give an empty message.
pub fn encode(gvk: &Gvk, object: &Value) -> Vec<u8> {
    let mut out = open_envelope(&gvk.api_version(), &gvk.kind);
    let body = lookup(gvk).map(|t| message(object, t)).unwrap_or_default();
    put_bytes(&mut out, 2, &body);
    out.extend_from_slice(CLOSE);
    out
}

fn open_envelope(api_version: &str, kind: &str) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut out = MAGIC.to_vec();
    put_bytes(&mut out, 1, &meta);
    out
}

/// The message in an envelope, not copied.
pub fn message_of(envelope: &Bytes) -> Bytes {
    self::envelope(envelope).map_or_else(|_| Bytes::new(), |(_, raw)| if raw.is_empty() { Bytes::new() } else { envelope.slice_ref(raw) })
}

/// A list in its envelope, from the messages of its items, piece by piece. `meta` is its ListMeta.
pub fn list(api_version: &str, kind: &str, meta: &Value, items: Vec<Bytes>) -> impl Iterator<Item = Bytes> + Send + use<> {
    let head = |item: &Bytes| {
        let mut head = Vec::new();
        put_varint(&mut head, 2 << 3 | 2);
        put_varint(&mut head, item.len() as u64);
        Bytes::from(head)
    };
    let mut list_meta = Vec::new();
    put_bytes(&mut list_meta, 1, &named("meta/v1.ListMeta").map(|t| message(meta, t)).unwrap_or_default());
    let length = list_meta.len() + items.iter().map(|item| head(item).len() + item.len()).sum::<usize>();
    let mut out = open_envelope(api_version, kind);
    put_varint(&mut out, 2 << 3 | 2);
    put_varint(&mut out, length as u64);
    out.append(&mut list_meta);
    let items = items.into_iter().flat_map(move |item| [head(&item), item]);
    [Bytes::from(out)].into_iter().chain(items).chain([Bytes::from_static(CLOSE)])
}

/// One frame of a watch: its length in four bytes, then a WatchEvent (without an envelope) around an object (with one).
pub fn watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let (mut raw, mut event) = (Vec::with_capacity(object.len() + 8), Vec::with_capacity(object.len() + 32));
    put_bytes(&mut raw, 1, object);
    put_bytes(&mut event, 1, kind.as_bytes());
    put_bytes(&mut event, 2, &raw);
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &event].concat()
}

fn message(value: &Value, t: &Type) -> Vec<u8> {
    let mut out = Vec::new();
    let mut fields: Vec<&Field> = t.fields.iter().filter(|f| f.tag != 0).collect();
    fields.sort_by_key(|f| f.tag);
    for field in fields {
        if field.inline {
            let inner = field.kind.as_struct().map(|t| message(value, t)).unwrap_or_default();
            put_bytes(&mut out, field.tag, &inner);
            continue;
        }
        match value.get(field.name).filter(|v| !v.is_null()) {
            Some(value) => put(&mut out, field.tag, field.kind, value),
            None if field.pointer || matches!(field.kind, Kind::List(_) | Kind::Map(_) | Kind::Bytes) => {}
            None if field.kind == Kind::Items => {}
            None => put(&mut out, field.tag, field.kind, &zero(field.kind)),
        }
    }
    out
}

fn put(out: &mut Vec<u8>, tag: u32, kind: Kind, value: &Value) {
    match kind {
        Kind::Bool => put_varint_field(out, tag, u64::from(value.as_bool().unwrap_or_default())),
        Kind::Int32 | Kind::Int64 => put_varint_field(out, tag, value.as_i64().unwrap_or_default() as u64),
        Kind::Float64 => {
            put_varint(out, u64::from(tag << 3 | 1));
            out.extend_from_slice(&value.as_f64().unwrap_or_default().to_le_bytes());
        }
        Kind::String => put_bytes(out, tag, value.as_str().unwrap_or_default().as_bytes()),
        Kind::List(element) => value.as_array().into_iter().flatten().for_each(|item| put(out, tag, *element, item)),
        Kind::Map(element) => {
            for (key, item) in value.as_object().into_iter().flatten() {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, key.as_bytes());
                put(&mut entry, 2, *element, item);
                put_bytes(out, tag, &entry);
            }
        }
        kind => put_bytes(out, tag, &as_bytes(kind, value)),
    }
}

/// The content of a length-delimited field.
fn as_bytes(kind: Kind, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let text = value.as_str().unwrap_or_default();
    match kind {
        Kind::Struct(_) => return kind.as_struct().map(|t| message(value, t)).unwrap_or_default(),
        Kind::Bytes => return scalar::base64_bytes(text).unwrap_or_default(),
        Kind::Time | Kind::MicroTime => {
            if let Some((seconds, nanos)) = scalar::seconds_nanos(text) {
                put_varint_field(&mut out, 1, seconds as u64);
                put_varint_field(&mut out, 2, i64::from(nanos) as u64);
            }
        }
        Kind::Quantity => put_bytes(&mut out, 1, text.as_bytes()),
        Kind::IntOrString => {
            put_varint_field(&mut out, 1, u64::from(value.is_string()));
            put_varint_field(&mut out, 2, value.as_i64().unwrap_or_default() as u64);
            put_bytes(&mut out, 3, text.as_bytes());
        }
        Kind::Raw if !value.is_null() => put_bytes(&mut out, 1, value.to_string().as_bytes()),
        Kind::Items => value.as_array().into_iter().flatten().for_each(|item| put(&mut out, 1, Kind::String, item)),
        Kind::PropsOrBool => {
            put_varint_field(&mut out, 1, u64::from(value.as_bool().unwrap_or(true)));
            put_props(&mut out, 2, value);
        }
        Kind::PropsOrArray => {
            put_props(&mut out, 1, value);
            value.as_array().into_iter().flatten().for_each(|item| put_props(&mut out, 2, item));
        }
        Kind::PropsOrStrings => {
            put_props(&mut out, 1, value);
            value.as_array().into_iter().flatten().for_each(|item| put(&mut out, 2, Kind::String, item));
        }
        _ => {}
    }
    out
}

fn put_props(out: &mut Vec<u8>, tag: u32, value: &Value) {
    if let (Value::Object(_), Some(t)) = (value, props()) {
        put_bytes(out, tag, &message(value, t));
    }
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_varint_field(out: &mut Vec<u8>, tag: u32, n: u64) {
    put_varint(out, u64::from(tag << 3));
    put_varint(out, n);
}

fn put_bytes(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    put_varint(out, u64::from(tag << 3 | 2));
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// `apiVersion` and `kind` of the envelope.
pub(crate) fn type_meta(body: &[u8]) -> Result<(String, String)> {
    let (meta, _) = envelope(body)?;
    let (mut api_version, mut kind) = (String::new(), String::new());
    for_each(meta, |tag, wire| {
        match (tag, wire) {
            (1, Wire::Bytes(b)) => api_version = utf8(b)?,
            (2, Wire::Bytes(b)) => kind = utf8(b)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok((api_version, kind))
}

fn envelope(body: &[u8]) -> Result<(&[u8], &[u8])> {
    let unknown =
        body.strip_prefix(MAGIC).ok_or("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
    let (mut meta, mut raw): (&[u8], &[u8]) = (&[], &[]);
    for_each(unknown, |tag, wire| {
        match (tag, wire) {
            (1, Wire::Bytes(b)) => meta = b,
            (2, Wire::Bytes(b)) => raw = b,
            _ => {}
        }
        Ok(())
    })?;
    Ok((meta, raw))
}

/// A body with its envelope, as JSON of type `t`; not normalized.
pub(crate) fn decode(body: &[u8], t: &'static Type) -> Result<Value> {
    let (_, raw) = envelope(body)?;
    let mut map = Map::new();
    read_message(raw, t, &mut map, 0)?;
    Ok(Value::Object(map))
}

#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

fn for_each<'a>(mut bytes: &'a [u8], mut f: impl FnMut(u32, Wire<'a>) -> Result<()>) -> Result<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let wire = match key & 7 {
            0 => Wire::Varint(varint(&mut bytes)?),
            1 => Wire::Fixed(u64::from_le_bytes(take(&mut bytes, 8)?.try_into().map_err(|_| EOF)?)),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| EOF)?;
                Wire::Bytes(take(&mut bytes, length)?)
            }
            5 => Wire::Fixed(u64::from(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().map_err(|_| EOF)?))),
            other => return Err(format!("proto: illegal wireType {other}")),
        };
        let tag = u32::try_from(key >> 3).ok().filter(|tag| *tag != 0).ok_or("proto: illegal tag 0")?;
        f(tag, wire)?;
    }
    Ok(())
}

const EOF: &str = "unexpected EOF";

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(length).ok_or(EOF)?;
    *bytes = tail;
    Ok(head)
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(n);
        }
    }
    Err("proto: integer overflow".to_owned())
}

fn utf8(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "proto: string field contains invalid UTF-8".to_owned())
}

fn read_message(bytes: &[u8], t: &'static Type, map: &mut Map<String, Value>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err("proto: message nested too deeply".to_owned());
    }
    for_each(bytes, |tag, wire| {
        let Some(field) = t.fields.iter().find(|field| field.tag == tag) else { return Ok(()) };
        if let (true, Wire::Bytes(inner), Some(t)) = (field.inline, wire, field.kind.as_struct()) {
            return read_message(inner, t, map, depth + 1);
        }
        let value = match field.kind {
            Kind::List(element) => {
                let item = read(wire, *element, depth + 1)?;
                if let Some(Value::Array(items)) = map.get_mut(field.name) {
                    items.push(item);
                    return Ok(());
                }
                Value::Array(vec![item])
            }
            Kind::Map(element) => {
                let (key, item) = read_entry(wire, *element, depth + 1)?;
                if let Some(Value::Object(entries)) = map.get_mut(field.name) {
                    entries.insert(key, item);
                    return Ok(());
                }
                Value::Object(Map::from_iter([(key, item)]))
            }
            kind => read(wire, kind, depth + 1)?,
        };
        map.insert(field.name.to_owned(), value);
        Ok(())
    })
}

fn read_entry(wire: Wire<'_>, element: Kind, depth: usize) -> Result<(String, Value)> {
    let Wire::Bytes(entry) = wire else { return Err("proto: wrong wireType for a map".to_owned()) };
    let (mut key, mut value) = (String::new(), Value::Null);
    for_each(entry, |tag, wire| {
        match (tag, wire) {
            (1, Wire::Bytes(b)) => key = utf8(b)?,
            (2, wire) => value = read(wire, element, depth)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok((key, if value.is_null() { zero(element) } else { value }))
}

fn read(wire: Wire<'_>, kind: Kind, depth: usize) -> Result<Value> {
    Ok(match (kind, wire) {
        (Kind::Bool, Wire::Varint(n)) => Value::Bool(n != 0),
        (Kind::Int32, Wire::Varint(n)) => Value::from(n as i32),
        (Kind::Int64, Wire::Varint(n)) => Value::from(n as i64),
        (Kind::Float64, Wire::Fixed(n)) => scalar::float(f64::from_bits(n)),
        (Kind::String, Wire::Bytes(b)) => Value::from(utf8(b)?),
        (Kind::Bytes, Wire::Bytes(b)) => Value::from(scalar::to_base64(b)),
        (Kind::Struct(_), Wire::Bytes(b)) => {
            let mut map = Map::new();
            if let Some(t) = kind.as_struct() {
                read_message(b, t, &mut map, depth)?;
            }
            Value::Object(map)
        }
        (_, Wire::Bytes(b)) => read_special(b, kind, depth)?,
        _ => return Err("proto: wrong wireType".to_owned()),
    })
}

/// Types whose message is not their JSON form.
fn read_special(bytes: &[u8], kind: Kind, depth: usize) -> Result<Value> {
    let mut numbers = [0i64; 4];
    let mut texts: Vec<(u32, &[u8])> = Vec::new();
    let mut props = Vec::new();
    for_each(bytes, |tag, wire| {
        match wire {
            Wire::Varint(n) => drop(numbers.get_mut(tag as usize).map(|slot| *slot = n as i64)),
            Wire::Bytes(b) => texts.push((tag, b)),
            Wire::Fixed(_) => {}
        }
        Ok(())
    })?;
    let text = |wanted: u32| texts.iter().find(|(tag, _)| *tag == wanted).map(|(_, b)| utf8(b)).transpose();
    if matches!(kind, Kind::PropsOrBool | Kind::PropsOrArray | Kind::PropsOrStrings) {
        for (tag, bytes) in &texts {
            if kind != Kind::PropsOrStrings || *tag == 1 {
                props.push(read(Wire::Bytes(bytes), Kind::Struct(crate::generated::JSON_SCHEMA_PROPS), depth + 1)?);
            }
        }
    }
    let single = texts.first().is_some_and(|(tag, _)| *tag == 1);
    Ok(match kind {
        Kind::Time | Kind::MicroTime if bytes.is_empty() => Value::Null,
        Kind::Time | Kind::MicroTime => scalar::from_seconds_nanos(numbers[1], numbers[2] as i32).map_or(Value::Null, Value::from),
        Kind::Quantity => Value::from(text(1)?.unwrap_or_else(|| "0".to_owned())),
        Kind::IntOrString if numbers[1] == 0 => Value::from(numbers[2] as i32),
        Kind::IntOrString => Value::from(text(3)?.unwrap_or_default()),
        Kind::Raw => raw(texts.first().map_or(&[], |(_, b)| *b), depth)?,
        Kind::Items => Value::from(texts.iter().map(|(_, b)| utf8(b)).collect::<Result<Vec<_>>>()?),
        Kind::PropsOrBool => props.pop().unwrap_or(Value::Bool(numbers[1] != 0)),
        Kind::PropsOrArray | Kind::PropsOrStrings if single => props.pop().unwrap_or(Value::Null),
        Kind::PropsOrArray => Value::Array(props),
        Kind::PropsOrStrings => Value::from(texts.iter().map(|(_, b)| utf8(b)).collect::<Result<Vec<_>>>()?),
        _ => return Err("proto: wrong wireType".to_owned()),
    })
}

/// Free-form content: JSON, or an enveloped object.
fn raw(bytes: &[u8], depth: usize) -> Result<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if !bytes.starts_with(MAGIC) {
        return serde_json::from_slice(bytes).map_err(|e| e.to_string());
    }
    let (api_version, kind) = type_meta(bytes)?;
    let gvk = Gvk::from_api_version(&api_version, &kind);
    let t =
        lookup(&gvk).filter(|_| depth < MAX_DEPTH).ok_or_else(|| format!("no kind {kind:?} is registered for version {api_version:?}"))?;
    let mut object = decode(bytes, t)?;
    crate::normalize(&gvk, &mut object);
    if let Value::Object(map) = &mut object {
        map.insert("apiVersion".to_owned(), api_version.into());
        map.insert("kind".to_owned(), kind.into());
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_from_its_items_is_the_list_encoded() {
        let gvk = |kind: &str| Gvk::new("", "v1", kind);
        let items: Vec<Value> = ["a", "b"].iter().map(|name| json!({"metadata": {"name": name}, "data": {"k": "v".repeat(200)}})).collect();
        let meta = json!({"resourceVersion": "7", "continue": "x", "remainingItemCount": 3});
        let messages: Vec<Bytes> = items.iter().map(|item| message_of(&encode(&gvk("ConfigMap"), item).into())).collect();
        let whole = encode(&gvk("ConfigMapList"), &json!({"metadata": meta, "items": items}));
        assert_eq!(list("v1", "ConfigMapList", &meta, messages).flatten().collect::<Vec<u8>>(), whole);
        let none = encode(&gvk("ConfigMapList"), &json!({"metadata": {}, "items": []}));
        assert_eq!(list("v1", "ConfigMapList", &json!({}), Vec::new()).flatten().collect::<Vec<u8>>(), none);
    }

    #[test]
    fn an_event_is_framed_by_its_length() {
        let frame = watch_event("ADDED", b"k8s\0xyz");
        let (length, event) = frame.split_at(4);
        assert_eq!(length, (event.len() as u32).to_be_bytes());
        assert_eq!(event, b"\x0a\x05ADDED\x12\x09\x0a\x07k8s\0xyz");
    }
}
