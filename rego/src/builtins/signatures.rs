//! Types of functions' arguments and results, from `signatures.txt` beside this file.
//!
//! One line is `name(argument, …) -> result`. A type is a scalar's name, `any`, `set[of]`, `array[of]` of any length,
//! `[first, second]` of these items, `{"key": value, keys: values}` and `(this | that)`.
//!
//! Mirrors: the declarations of OPA `v1/ast/builtins.go`, v1.19.0.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::typing::Type;
use crate::value::Value;

static SIGNATURES: LazyLock<HashMap<&'static str, Type>> = LazyLock::new(|| {
    let lines = include_str!("signatures.txt").lines();
    lines.filter_map(|line| Reader { rest: line }.signature()).collect()
});

/// The type of the function `name`.
pub(crate) fn signature(name: &str) -> Option<&'static Type> {
    SIGNATURES.get(name)
}

struct Reader {
    rest: &'static str,
}

impl Reader {
    fn signature(&mut self) -> Option<(&'static str, Type)> {
        let name = self.word();
        self.expect("(")?;
        let args = self.list(")", Self::any_type)?;
        let result = self.expect("->").and_then(|()| self.any_type());
        self.rest.is_empty().then(|| (name, Type::function(args, result)))
    }

    fn any_type(&mut self) -> Option<Type> {
        if self.expect("(").is_some() {
            let mut all = self.any_type()?;
            while self.expect("|").is_some() {
                all = all.or(self.any_type()?);
            }
            self.expect(")")?;
            return Some(all);
        }
        if self.expect("[").is_some() {
            return Some(Type::array(self.list("]", Self::any_type)?, None));
        }
        if self.expect("{").is_some() {
            return self.object();
        }
        match self.word() {
            "any" => Some(Type::any()),
            "null" => Some(Type::Null),
            "boolean" => Some(Type::Boolean),
            "number" => Some(Type::Number),
            "string" => Some(Type::String),
            kind @ ("array" | "set") => {
                self.expect("[")?;
                let of = self.any_type()?;
                self.expect("]")?;
                Some(if kind == "set" { Type::set(of) } else { Type::array(Vec::new(), Some(of)) })
            }
            _ => None,
        }
    }

    fn object(&mut self) -> Option<Type> {
        let mut members = Vec::new();
        let mut rest = None;
        for (key, value) in self.list("}", Self::member)? {
            match key {
                Ok(name) => members.push((Value::from(name), value)),
                Err(key) => rest = Some((key, value)),
            }
        }
        Some(Type::object(members, rest))
    }

    /// A member by its name, or the type of the keys of all others.
    fn member(&mut self) -> Option<(Result<&'static str, Type>, Type)> {
        let key = if self.expect("\"").is_some() {
            let name = self.word();
            self.expect("\"")?;
            Ok(name)
        } else {
            Err(self.any_type()?)
        };
        self.expect(":")?;
        Some((key, self.any_type()?))
    }

    fn list<T>(&mut self, end: &str, read: fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        while self.expect(end).is_none() {
            items.push(read(self)?);
            let _ = self.expect(",");
        }
        Some(items)
    }

    fn expect(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(token)?.trim_start();
        Some(())
    }

    fn word(&mut self) -> &'static str {
        let end = self.rest.find(|char: char| !(char.is_ascii_alphanumeric() || matches!(char, '.' | '_')));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_has_a_type_of_its_own_arity() {
        let untyped = ["print", "internal.test_panic"];
        for builtin in super::super::all().filter(|builtin| !untyped.contains(&builtin.name)) {
            let Some(Type::Function(function)) = signature(builtin.name) else {
                panic!("{} has no line in signatures.txt that can be read", builtin.name)
            };
            assert_eq!(function.args.len(), builtin.arity, "{}", builtin.name);
        }
    }
}
