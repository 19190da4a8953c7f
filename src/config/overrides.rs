//! `--set` in Helm's syntax: `a.b=1,c[0]={x,y},d=a\,b`.

use serde_json::{Map, Value};

/// The greatest index that an override may name.
const MAX_INDEX: usize = 1_000;

/// Why an override cannot be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    #[error("it has no `=`")]
    NoValue,
    #[error("a key is empty or malformed")]
    Key,
    #[error("it goes below a value that is not an object or list")]
    NotAContainer,
}

/// Applies one flag's overrides to `document`.
pub fn apply(document: &mut Value, text: &str) -> Result<(), OverrideError> {
    for pair in split(text, ',') {
        let at = pair.find('=').ok_or(OverrideError::NoValue)?;
        let (key, value) = pair.split_at(at);
        put(document, key, typed(value.strip_prefix('=').unwrap_or(value)))?;
    }
    Ok(())
}

/// Puts `value` at the dotted `key`.
pub fn put(document: &mut Value, key: &str, value: Value) -> Result<(), OverrideError> {
    let mut here = document;
    for step in steps(key)? {
        here = match step {
            Step::Member(name) => {
                if here.is_null() {
                    *here = Value::Object(Map::new());
                }
                here.as_object_mut().ok_or(OverrideError::NotAContainer)?.entry(name).or_insert(Value::Null)
            }
            Step::Index(at) => {
                if here.is_null() {
                    *here = Value::Array(Vec::new());
                }
                let items = here.as_array_mut().ok_or(OverrideError::NotAContainer)?;
                while items.len() <= at {
                    items.push(Value::Null);
                }
                items.get_mut(at).ok_or(OverrideError::Key)?
            }
        };
    }
    *here = value;
    Ok(())
}

enum Step {
    Member(String),
    Index(usize),
}

fn steps(key: &str) -> Result<Vec<Step>, OverrideError> {
    let mut steps = Vec::new();
    for piece in split(key, '.') {
        let (name, mut indexes) = match piece.find('[') {
            Some(at) => piece.split_at(at),
            None => (piece.as_str(), ""),
        };
        if name.is_empty() {
            return Err(OverrideError::Key);
        }
        steps.push(Step::Member(name.replace('\\', "")));
        while let Some(rest) = indexes.strip_prefix('[') {
            let (index, rest) = rest.split_once(']').ok_or(OverrideError::Key)?;
            let index = index.parse().ok().filter(|&index| index <= MAX_INDEX).ok_or(OverrideError::Key)?;
            steps.push(Step::Index(index));
            indexes = rest;
        }
    }
    Ok(steps)
}

/// Splits at `separator`, except after a backslash and within braces.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let (mut escaped, mut depth) = (false, 0usize);
    for c in text.chars() {
        match c {
            '{' if !escaped => depth = depth.saturating_add(1),
            '}' if !escaped => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c == separator && !escaped && depth == 0 {
            pieces.push(String::new());
        } else if let Some(piece) = pieces.last_mut() {
            piece.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    pieces
}

fn typed(text: &str) -> Value {
    if let Some(list) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        let items = split(list, ',').into_iter().filter(|item| !item.is_empty());
        return items.map(|item| typed(&item)).collect();
    }
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        _ => match text.parse::<i64>() {
            Ok(number) if text == "0" || !text.starts_with('0') => Value::from(number),
            _ => Value::from(text.replace('\\', "")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_helms() {
        let mut document = serde_json::json!({"a": {"b": 1, "keep": true}});
        apply(&mut document, r"a.b=2,l={x,y,3},n[1].k=v,t=a\,b,dotted\.key=1,z=007,e=").expect("it applies");
        let want = serde_json::json!({
            "a": {"b": 2, "keep": true}, "l": ["x", "y", 3], "n": [null, {"k": "v"}], "t": "a,b", "dotted.key": 1, "z": "007", "e": ""
        });
        assert_eq!(document, want);
        assert_eq!(apply(&mut document, "nothing"), Err(OverrideError::NoValue));
        assert_eq!(apply(&mut document, "a..b=1"), Err(OverrideError::Key));
        assert_eq!(apply(&mut document, "a.b.c=1"), Err(OverrideError::NotAContainer));
        assert_eq!(apply(&mut document, "x[99999999]=1"), Err(OverrideError::Key));
    }
}
