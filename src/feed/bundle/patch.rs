//! The changes of a delta bundle.
//!
//! Mirrors: `PatchOperation` of OPA `v1/bundle/bundle.go` and `applyPatches` of `v1/bundle/store.go`, v1.19.0. All of a delta
//! counts, or none of it: values are changed on a copy.

use std::collections::BTreeMap;

use crate::feed::DATA;
use crate::opa::rest::percent_decoded;
use crate::value::{JsonLimits, Value, parse_json};

/// Changes of one delta.
const MAX_PATCHES: usize = 1_000_000;
/// Segments of one path; with the value there, still no deeper than data may be.
const MAX_PATH: usize = 60;

/// Nesting of a whole `patch.json`: four levels of its own, and values.
const PATCHES: JsonLimits = JsonLimits { depth: DATA.depth / 2 + 4, ..DATA };

/// The operation at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sets the value; objects on the way are made.
    Upsert(Value),
    Replace(Value),
    Remove,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    pub path: Vec<String>,
    pub operation: Operation,
}

/// Why a delta is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("it is not JSON with a list `data` of objects with `op` and `path`")]
    Shape,
    #[error("bad patch operation: {0}")]
    Operation(String),
    #[error("error parsing patch path `{0}`")]
    Path(String),
    #[error("it has more than 1,000,000 changes")]
    TooMany,
    #[error("path `/{0}` not found")]
    Missing(String),
    #[error("`/{0}` leads through something that is neither an object nor a list")]
    Through(String),
}

impl Patch {
    /// The changes of a `patch.json`.
    pub fn parse_all(bytes: &[u8]) -> Result<Vec<Self>, PatchError> {
        let document = parse_json(bytes, PATCHES).map_err(|_| PatchError::Shape)?;
        let list = match document.member("data") {
            None | Some(Value::Null) if matches!(document, Value::Object(_)) => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            _ => return Err(PatchError::Shape),
        };
        if list.len() > MAX_PATCHES {
            return Err(PatchError::TooMany);
        }
        list.iter().map(Self::parse).collect()
    }

    fn parse(change: &Value) -> Result<Self, PatchError> {
        let text = |name: &str| change.member(name).and_then(Value::as_str).ok_or(PatchError::Shape);
        let value = || change.member("value").cloned().unwrap_or_default();
        let operation = match text("op")? {
            "upsert" => Operation::Upsert(value()),
            "replace" => Operation::Replace(value()),
            "remove" => Operation::Remove,
            other => return Err(PatchError::Operation(other.to_owned())),
        };
        let spelled = text("path")?;
        let refused = || PatchError::Path(spelled.to_owned());
        let segment = |part: &str| Some(percent_decoded(part)?.replace("~1", "/").replace("~0", "~"));
        let path: Option<Vec<String>> = spelled.trim_matches('/').split('/').map(segment).collect();
        let path = path.filter(|path| path.len() <= MAX_PATH && path.iter().all(|part| !part.is_empty()));
        Ok(Self { path: path.ok_or_else(refused)?, operation })
    }
}

/// A value that is being changed: opened where a path leads through, so that many changes copy nothing twice.
enum Node {
    Closed(Value),
    Object(BTreeMap<Value, Node>),
    Array(Vec<Node>),
}

impl Node {
    fn open(self) -> Self {
        match self {
            Self::Closed(Value::Object(members)) => {
                Self::Object(members.iter().map(|(key, value)| (key.clone(), Self::Closed(value.clone()))).collect())
            }
            Self::Closed(Value::Array(items)) => Self::Array(items.iter().cloned().map(Self::Closed).collect()),
            other => other,
        }
    }

    fn close(self) -> Value {
        match self {
            Self::Closed(value) => value,
            Self::Object(members) => {
                Value::object(members.into_iter().map(|(key, node)| (key, node.close())).collect())
            }
            Self::Array(items) => Value::array(items.into_iter().map(Self::close).collect()),
        }
    }

    fn change(&mut self, path: &[String], patch: &Patch) -> Result<(), PatchError> {
        let place = || patch.path.join("/");
        let missing = || PatchError::Missing(place());
        let Some((first, rest)) = path.split_first() else { return Err(PatchError::Path(place())) };
        *self = std::mem::replace(self, Self::Closed(Value::Null)).open();
        match self {
            Self::Object(members) => {
                let key = Value::from(first.as_str());
                match (&patch.operation, rest.is_empty()) {
                    (Operation::Remove, true) => members.remove(&key).map(drop).ok_or_else(missing),
                    (Operation::Replace(_), true) if !members.contains_key(&key) => Err(missing()),
                    (Operation::Upsert(value) | Operation::Replace(value), true) => {
                        members.insert(key, Self::Closed(value.clone()));
                        Ok(())
                    }
                    (Operation::Upsert(_), false) => {
                        members.entry(key).or_insert_with(|| Self::Object(BTreeMap::new())).change(rest, patch)
                    }
                    (_, false) => members.get_mut(&key).ok_or_else(missing)?.change(rest, patch),
                }
            }
            Self::Array(items) => {
                let index = first.parse::<usize>().ok().filter(|index| index.to_string() == *first);
                let known = index.filter(|index| *index < items.len());
                match (&patch.operation, rest.is_empty()) {
                    (Operation::Upsert(value), true) => {
                        let end = if first == "-" { Some(items.len()) } else { index };
                        let at = end.filter(|at| *at <= items.len()).ok_or_else(missing)?;
                        items.insert(at, Self::Closed(value.clone()));
                        Ok(())
                    }
                    (Operation::Remove, true) => {
                        items.remove(known.ok_or_else(missing)?);
                        Ok(())
                    }
                    (Operation::Replace(value), true) => {
                        let item = known.and_then(|at| items.get_mut(at)).ok_or_else(missing)?;
                        *item = Self::Closed(value.clone());
                        Ok(())
                    }
                    (_, false) => known.and_then(|at| items.get_mut(at)).ok_or_else(missing)?.change(rest, patch),
                }
            }
            Self::Closed(_) => Err(PatchError::Through(place())),
        }
    }
}

/// The data after all changes, in order.
pub fn apply_all(patches: &[Patch], data: &Value) -> Result<Value, PatchError> {
    let mut root = Node::Closed(data.clone());
    for patch in patches {
        root.change(&patch.path, patch)?;
    }
    Ok(root.close())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::json_text;

    fn after(data: &str, patches: &str) -> Result<String, PatchError> {
        let data = parse_json(data.as_bytes(), DATA).expect("JSON");
        let patches = Patch::parse_all(format!("{{\"data\": [{patches}]}}").as_bytes())?;
        apply_all(&patches, &data).map(|data| json_text(&data))
    }

    #[test]
    fn changes_follow_opa() {
        let data = r#"{"a":{"b":[1,2],"x/y":1}}"#;
        for (patches, want) in [
            (r#"{"op":"upsert","path":"/a/c/d","value":true}"#, r#"{"a":{"b":[1,2],"c":{"d":true},"x/y":1}}"#),
            (r#"{"op":"upsert","path":"a/b/-","value":3}"#, r#"{"a":{"b":[1,2,3],"x/y":1}}"#),
            (r#"{"op":"upsert","path":"a/b/0","value":0}"#, r#"{"a":{"b":[0,1,2],"x/y":1}}"#),
            (r#"{"op":"replace","path":"/a/b/1","value":{"z":[]}}"#, r#"{"a":{"b":[1,{"z":[]}],"x/y":1}}"#),
            (r#"{"op":"remove","path":"/a/b"}"#, r#"{"a":{"x/y":1}}"#),
            (r#"{"op":"remove","path":"/a/x~1y"},{"op":"remove","path":"/a/b/0"}"#, r#"{"a":{"b":[2]}}"#),
            (r#"{"op":"remove","path":"/a/x%2Fy/"}"#, r#"{"a":{"b":[1,2]}}"#),
            (r#"{"op":"upsert","path":"/a","value":1}"#, r#"{"a":1}"#),
        ] {
            assert_eq!(after(data, patches).as_deref(), Ok(want), "{patches}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let data = r#"{"a":{"b":[1,2],"t":"x"}}"#;
        for (patches, want) in [
            (r#"{"op":"remove","path":"/a/none"}"#, PatchError::Missing("a/none".to_owned())),
            (r#"{"op":"replace","path":"/z","value":1}"#, PatchError::Missing("z".to_owned())),
            (r#"{"op":"replace","path":"/z/y","value":1}"#, PatchError::Missing("z/y".to_owned())),
            (r#"{"op":"upsert","path":"/a/b/3","value":1}"#, PatchError::Missing("a/b/3".to_owned())),
            (r#"{"op":"upsert","path":"/a/b/01","value":1}"#, PatchError::Missing("a/b/01".to_owned())),
            (r#"{"op":"remove","path":"/a/b/-"}"#, PatchError::Missing("a/b/-".to_owned())),
            (r#"{"op":"upsert","path":"/a/t/u","value":1}"#, PatchError::Through("a/t/u".to_owned())),
            (r#"{"op":"add","path":"/a","value":1}"#, PatchError::Operation("add".to_owned())),
            (r#"{"op":"upsert","path":"/","value":{}}"#, PatchError::Path("/".to_owned())),
            (r#"{"op":"upsert","path":"/a/%zz","value":{}}"#, PatchError::Path("/a/%zz".to_owned())),
            (r#"{"op":"remove"}"#, PatchError::Shape),
            ("1", PatchError::Shape),
        ] {
            assert_eq!(after(data, patches), Err(want), "{patches}");
        }
        for junk in ["[]", "{", r#"{"data": {}}"#] {
            assert_eq!(Patch::parse_all(junk.as_bytes()), Err(PatchError::Shape), "{junk}");
        }
    }
}
