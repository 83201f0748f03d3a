//! JSON patch (RFC 6902), as lenient as upstream's library: what is missing from an object reads as null, so that it can be copied and
//! replaced, and list indices may count from the end.
//!
//! Upstream: `gopkg.in/evanphx/json-patch.v4` (`patch.go`).

use serde_json::Value;

/// What an operation meets at a path's end: its parent, and the key in it.
enum Place<'a> {
    Field(&'a mut serde_json::Map<String, Value>, String),
    Element(&'a mut Vec<Value>, String),
}

/// Every operation in turn. `None`: one does not apply.
pub fn apply(document: &mut Value, operations: &[Value]) -> Option<()> {
    operations.iter().try_for_each(|operation| step(document, operation))
}

fn step(document: &mut Value, operation: &Value) -> Option<()> {
    let path = operation.get("path")?.as_str()?;
    let value = operation.get("value").cloned();
    match operation.get("op")?.as_str()? {
        "add" => add(document, path, value.unwrap_or_default()),
        "remove" => remove(document, path).map(drop),
        "replace" if path.is_empty() => {
            *document = value.filter(|value| value.is_object() || value.is_array())?;
            Some(())
        }
        "replace" => replace(document, path, value.unwrap_or_default()),
        "move" => {
            let value = remove(document, operation.get("from")?.as_str()?)?;
            add(document, path, value)
        }
        "copy" => {
            let value = get(document, operation.get("from")?.as_str()?)?;
            add(document, path, value)
        }
        "test" if path.is_empty() => (value.as_ref() == Some(&*document)).then_some(()),
        "test" => {
            let found = get(document, path)?;
            let same = value.as_ref() == Some(&found) || found.is_null() && value.is_none();
            same.then_some(())
        }
        _ => None,
    }
}

fn find<'a>(document: &'a mut Value, path: &str) -> Option<Place<'a>> {
    let unescaped = |step: &str| step.replace("~1", "/").replace("~0", "~");
    let (parents, last) = path.rsplit_once('/')?;
    let last = unescaped(last);
    let mut parent = document;
    for step in parents.split('/').skip(1).map(unescaped) {
        parent = match parent {
            Value::Object(fields) => fields.get_mut(&step)?,
            Value::Array(items) => {
                let index = index(&step, items.len())?;
                items.get_mut(index)?
            }
            _ => return None,
        };
    }
    match parent {
        Value::Object(fields) => Some(Place::Field(fields, last)),
        Value::Array(items) => Some(Place::Element(items, last)),
        _ => None,
    }
}

/// An index of `0..count`; a negative one counts from the end.
fn index(step: &str, count: usize) -> Option<usize> {
    let index: i64 = step.parse().ok()?;
    let index = if index < 0 { index + count as i64 } else { index };
    usize::try_from(index).ok().filter(|index| *index < count)
}

fn get(document: &mut Value, path: &str) -> Option<Value> {
    match find(document, path)? {
        Place::Field(fields, name) => Some(fields.get(&name).cloned().unwrap_or_default()),
        Place::Element(items, step) => items.get(index(&step, items.len())?).cloned(),
    }
}

fn add(document: &mut Value, path: &str, value: Value) -> Option<()> {
    match find(document, path)? {
        Place::Field(fields, name) => drop(fields.insert(name, value)),
        Place::Element(items, step) if step == "-" => items.push(value),
        Place::Element(items, step) => items.insert(index(&step, items.len() + 1)?, value),
    }
    Some(())
}

fn remove(document: &mut Value, path: &str) -> Option<Value> {
    match find(document, path)? {
        Place::Field(fields, name) => fields.remove(&name),
        Place::Element(items, step) => Some(items.remove(index(&step, items.len())?)),
    }
}

fn replace(document: &mut Value, path: &str, value: Value) -> Option<()> {
    match find(document, path)? {
        Place::Field(fields, name) => drop(fields.insert(name, value)),
        Place::Element(items, step) => {
            let index = index(&step, items.len())?;
            items[index] = value;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn applies_as_upstream() {
        let document = json!({"a": {"b": 1, "c/d": "x", "n": null}, "list": [1, 2, 3]});
        let cases = [
            ("add", json!([{"op": "add", "path": "/a/new", "value": [1]}]), Some(("/a/new", json!([1])))),
            ("add nothing", json!([{"op": "add", "path": "/a/new"}]), Some(("/a/new", json!(null)))),
            ("add into nothing", json!([{"op": "add", "path": "/x/y", "value": 1}]), None),
            ("add at the root", json!([{"op": "add", "path": "", "value": {}}]), None),
            ("append", json!([{"op": "add", "path": "/list/-", "value": 4}]), Some(("/list", json!([1, 2, 3, 4])))),
            ("insert", json!([{"op": "add", "path": "/list/1", "value": 4}]), Some(("/list", json!([1, 4, 2, 3])))),
            ("insert from the end", json!([{"op": "add", "path": "/list/-1", "value": 4}]), Some(("/list", json!([1, 2, 3, 4])))),
            ("insert beyond", json!([{"op": "add", "path": "/list/4", "value": 4}]), None),
            ("remove", json!([{"op": "remove", "path": "/a/c~1d"}]), Some(("/a", json!({"b": 1, "n": null})))),
            ("remove what is not there", json!([{"op": "remove", "path": "/a/x"}]), None),
            ("remove from the end", json!([{"op": "remove", "path": "/list/-1"}]), Some(("/list", json!([1, 2])))),
            ("replace what is not there", json!([{"op": "replace", "path": "/a/x", "value": 1}]), Some(("/a/x", json!(1)))),
            ("replace beyond", json!([{"op": "replace", "path": "/list/3", "value": 1}]), None),
            ("replace all", json!([{"op": "replace", "path": "", "value": {"z": 1}}]), Some(("/z", json!(1)))),
            ("replace all by a scalar", json!([{"op": "replace", "path": "", "value": 1}]), None),
            ("copy what is not there", json!([{"op": "copy", "from": "/a/x", "path": "/y"}]), Some(("/y", json!(null)))),
            ("move", json!([{"op": "move", "from": "/a/b", "path": "/y"}]), Some(("/y", json!(1)))),
            ("move what is not there", json!([{"op": "move", "from": "/a/x", "path": "/y"}]), None),
            ("test", json!([{"op": "test", "path": "/a/b", "value": 1}]), Some(("/a/b", json!(1)))),
            ("test fails", json!([{"op": "test", "path": "/a/b", "value": 2}]), None),
            ("test null", json!([{"op": "test", "path": "/a/x"}, {"op": "test", "path": "/a/n", "value": null}]), Some(("/a/b", json!(1)))),
            ("no operation", json!([{"op": "explode", "path": "/a/b"}]), None),
            ("through a scalar", json!([{"op": "add", "path": "/a/b/c", "value": 1}]), None),
        ];
        for (what, operations, expected) in cases {
            let mut patched = document.clone();
            let applied = apply(&mut patched, operations.as_array().unwrap());
            let found = applied.map(|()| expected.as_ref().and_then(|(at, _)| patched.pointer(at)).cloned());
            assert_eq!(found, expected.clone().map(|(_, value)| Some(value)), "{what}");
        }
    }
}
