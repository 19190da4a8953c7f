//! The sources of a snapshot: Rego modules and one data document.

use crate::value::Value;

/// Which Rego a module is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegoVersion {
    V0,
    #[default]
    V1,
}

/// One Rego file.
#[derive(Clone, Debug)]
pub struct Module {
    /// The name that errors give.
    pub path: String,
    pub text: String,
    pub version: RegoVersion,
}

/// Modules and data, gathered from wherever they lie.
#[derive(Clone, Debug)]
pub struct Sources {
    pub modules: Vec<Module>,
    pub data: Value,
}

/// Two files that give one place in `data` different values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("data documents disagree at `data.{0}`")]
pub struct SourceConflict(pub String);

impl Default for Sources {
    fn default() -> Self {
        Self { modules: Vec::new(), data: Value::empty_object() }
    }
}

impl Sources {
    /// Merges `document` into the data under `prefix`; objects merge, anything else must not be there yet.
    pub fn add_data(&mut self, prefix: &[&str], document: Value) -> Result<(), SourceConflict> {
        let wrapped = prefix.iter().rev().fold(document, |inner, key| {
            let mut members = crate::value::Members::default();
            members.put_text(key, inner);
            members.into_value()
        });
        self.data = merge(&self.data, &wrapped, &mut Vec::new())?;
        Ok(())
    }
}

fn merge(into: &Value, from: &Value, path: &mut Vec<String>) -> Result<Value, SourceConflict> {
    let (Value::Object(into), Value::Object(from)) = (into, from) else {
        return Err(SourceConflict(path.join(".")));
    };
    let mut members = into.to_vec();
    for (key, value) in from.iter() {
        path.push(crate::value::as_text(key).unwrap_or("?").to_owned());
        match members.binary_search_by(|(known, _)| known.cmp(key)) {
            Ok(at) => {
                if let Some((_, present)) = members.get_mut(at) {
                    *present = merge(present, value, path)?;
                }
            }
            Err(at) => members.insert(at, (key.clone(), value.clone())),
        }
        path.pop();
    }
    Ok(Value::object(members))
}
