//! `# METADATA` comments, for `rego.metadata.rule` and `rego.metadata.chain`.
//!
//! Mirrors: OPA `v1/ast/annotations.go` and the annotations of `v1/ast/parser.go`, v1.19.0.

use std::collections::HashMap;
use std::sync::Arc;

use super::CompileError;
use crate::builtins::parse_yaml;
use crate::syntax::{Comment, ExprKind, Location, Module, Rule, Term, TermKind, Version, parse_query};
use crate::value::Value;

/// The annotations of all modules.
#[derive(Debug, Default)]
pub(super) struct Annotations {
    /// The annotations of one definition, by module and position; in the order of the file.
    rules: HashMap<(usize, Location), Vec<Value>>,
    documents: HashMap<Vec<Value>, Value>,
    packages: HashMap<Vec<Value>, Value>,
    subpackages: HashMap<Vec<Value>, Value>,
}

/// The kind of the annotated statement.
enum Target<'m> {
    Package,
    Import,
    Rule(&'m Rule),
    Nothing,
}

impl Annotations {
    pub(super) fn read(modules: &[(Arc<str>, Module)]) -> Result<Self, Vec<CompileError>> {
        let mut all = Self::default();
        let mut errors = Vec::new();
        for (at, (file, module)) in modules.iter().enumerate() {
            for block in blocks(&module.comments) {
                if let Err(message) = all.add(at, module, &block) {
                    let (code, at, file) = ("rego_parse_error", block.at, file.clone());
                    errors.push(CompileError { code, file, at, message });
                }
            }
        }
        if errors.is_empty() { Ok(all) } else { Err(errors) }
    }

    fn add(&mut self, at: usize, module: &Module, block: &Block) -> Result<(), String> {
        if block.text.trim().is_empty() {
            return Err("expected METADATA block, found whitespace".to_owned());
        }
        let raw = parse_yaml(&block.text)?;
        let target = target(module, block.at);
        let entrypoint = raw.member("entrypoint").is_some_and(Value::is_true);
        let scope = match (text(&raw, "scope")?, &target) {
            (Some(scope), _) => scope,
            (None, Target::Rule(_)) if entrypoint => "document".to_owned(),
            (None, Target::Rule(_)) => "rule".to_owned(),
            (None, Target::Package) => "package".to_owned(),
            (None, Target::Import) => "import".to_owned(),
            (None, Target::Nothing) => String::new(),
        };
        if entrypoint && !["document", "package"].contains(&scope.as_str()) {
            return Err(format!("annotation entrypoint applied to non-document or package scope '{scope}'"));
        }
        let annotation = annotation(&raw, &scope, entrypoint)?;
        let twice = match (scope.as_str(), target) {
            ("rule", Target::Rule(rule)) => {
                self.rules.entry((at, rule.at)).or_default().push(annotation);
                None
            }
            ("document", Target::Rule(rule)) => self.documents.insert(path(module, rule), annotation),
            ("package", Target::Package) => self.packages.insert(package(module), annotation),
            ("subpackages", Target::Package) => self.subpackages.insert(package(module), annotation),
            ("rule" | "document", _) => {
                return Err(format!("annotation scope '{scope}' must be applied to rule"));
            }
            ("package" | "subpackages", _) => {
                return Err(format!("annotation scope '{scope}' must be applied to package"));
            }
            _ => {
                return Err(format!(
                    "invalid annotation scope '{scope}'. Use one of 'rule', 'document', 'package', or 'subpackages'"
                ));
            }
        };
        if twice.is_some() { Err(format!("{scope} annotation redeclared")) } else { Ok(()) }
    }

    /// The annotations that hold for `rule` of the module at `at`.
    pub(super) fn of<'a>(&'a self, at: usize, module: &'a Module, rule: &'a Rule) -> OfRule<'a> {
        OfRule { all: self, at, module, rule }
    }
}

/// The annotations that hold for one rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfRule<'a> {
    all: &'a Annotations,
    at: usize,
    module: &'a Module,
    rule: &'a Rule,
}

impl OfRule<'_> {
    fn own(&self) -> &[Value] {
        self.all.rules.get(&(self.at, self.rule.at)).map_or(&[], Vec::as_slice)
    }

    /// The result of `rego.metadata.rule()`.
    pub(super) fn primary(&self) -> Value {
        self.own().first().cloned().unwrap_or_else(Value::empty_object)
    }

    /// The result of `rego.metadata.chain()`: from the rule outward.
    pub(super) fn chain(&self) -> Value {
        let (path, package) = (path(self.module, self.rule), package(self.module));
        let mut links: Vec<Value> = self.own().iter().rev().map(|it| link(&path, Some(it))).collect();
        if links.is_empty() {
            links.push(link(&path, None));
        }
        links.extend(self.all.documents.get(&path).map(|it| link(&path, Some(it))));
        links.extend(self.all.packages.get(&package).map(|it| link(&package, Some(it))));
        for len in (1..=package.len()).rev() {
            let outer = package.get(..len).unwrap_or_default();
            links.extend(self.all.subpackages.get(outer).map(|it| link(outer, Some(it))));
        }
        Value::array(links)
    }
}

fn link(path: &[Value], annotations: Option<&Value>) -> Value {
    let mut members = vec![(Value::from("path"), Value::array(path.to_vec()))];
    members.extend(annotations.map(|it| (Value::from("annotations"), it.clone())));
    Value::object(members)
}

/// The YAML of one comment.
struct Block {
    at: Location,
    text: String,
}

fn blocks(comments: &[Comment]) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    // The row of the line before, inside a block.
    let mut open: Option<u32> = None;
    for comment in comments {
        let text = comment.text.strip_prefix('#').unwrap_or(&comment.text);
        let follows = open.is_some_and(|row| comment.at.row == row.saturating_add(1) && comment.at.col == 1);
        if let (true, Some(block)) = (follows, blocks.last_mut()) {
            block.text.push_str(text.strip_prefix(' ').unwrap_or(text));
            block.text.push('\n');
            open = Some(comment.at.row);
        } else if text.trim().starts_with("METADATA") {
            blocks.push(Block { at: comment.at, text: String::new() });
            open = Some(comment.at.row);
        } else {
            open = None;
        }
    }
    blocks
}

/// The first statement after a position.
fn target(module: &Module, at: Location) -> Target<'_> {
    if module.at.row > at.row {
        return Target::Package;
    }
    let import = module.imports.iter().map(|it| it.at).filter(|it| it.row > at.row).min();
    let rule = module.rules.iter().filter(|it| it.at.row > at.row).min_by_key(|it| it.at);
    match (import, rule) {
        (Some(import), Some(rule)) if import > rule.at => Target::Rule(rule),
        (Some(_), _) => Target::Import,
        (None, Some(rule)) => Target::Rule(rule),
        (None, None) => Target::Nothing,
    }
}

fn package(module: &Module) -> Vec<Value> {
    module.package.iter().map(|part| Value::from(&**part)).collect()
}

/// The path of a rule as far as it is constant.
fn path(module: &Module, rule: &Rule) -> Vec<Value> {
    let mut path = package(module);
    let mut parts = rule.head.path.iter();
    path.extend(parts.next().and_then(|name| as_text(name)).map(Value::from));
    path.extend(parts.map_while(|part| match &part.kind {
        TermKind::String(text) => Some(Value::from(&**text)),
        _ => None,
    }));
    path
}

fn as_text(term: &Term) -> Option<&str> {
    match &term.kind {
        TermKind::Var(text) | TermKind::String(text) => Some(text),
        _ => None,
    }
}

/// The member `name` as text; a number or boolean as it was written.
fn text(raw: &Value, name: &str) -> Result<Option<String>, String> {
    match raw.member(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok((!text.is_empty()).then(|| text.to_string())),
        Some(other @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(other.to_string())),
        Some(other) => Err(format!("yaml: unmarshal errors: cannot unmarshal {} into {name} (string)", other.kind())),
    }
}

fn list<'r>(raw: &'r Value, name: &str) -> Result<&'r [Value], String> {
    match raw.member(name) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(format!("yaml: unmarshal errors: cannot unmarshal {} into {name} (list)", other.kind())),
    }
}

fn annotation(raw: &Value, scope: &str, entrypoint: bool) -> Result<Value, String> {
    if !matches!(raw, Value::Object(_) | Value::Null) {
        return Err(format!("yaml: unmarshal errors: cannot unmarshal {} into annotations", raw.kind()));
    }
    let mut members = vec![(Value::from("scope"), Value::from(scope))];
    for name in ["title", "description"] {
        members.extend(text(raw, name)?.map(|text| (Value::from(name), Value::from(text))));
    }
    if entrypoint {
        members.push((Value::from("entrypoint"), Value::Bool(true)));
    }
    let mut lists = vec![("organizations", list(raw, "organizations")?.to_vec())];
    for (name, read) in [
        ("related_resources", related_resource as fn(&Value) -> Result<Value, String>),
        ("authors", author),
        ("schemas", schema),
    ] {
        lists.push((name, list(raw, name)?.iter().map(read).collect::<Result<_, _>>()?));
    }
    let lists = lists.into_iter().filter(|(_, items)| !items.is_empty());
    members.extend(lists.map(|(name, items)| (Value::from(name), Value::array(items))));
    for name in ["custom", "labels"] {
        match raw.member(name) {
            Some(map @ Value::Object(inner)) if !inner.is_empty() => members.push((Value::from(name), map.clone())),
            None | Some(Value::Null | Value::Object(_)) => {}
            Some(other) => {
                return Err(format!("yaml: unmarshal errors: cannot unmarshal {} into {name} (map)", other.kind()));
            }
        }
    }
    Ok(Value::object(members))
}

fn trimmed(object: &Value, name: &str) -> Option<Value> {
    object.member(name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty()).map(Value::from)
}

fn related_resource(given: &Value) -> Result<Value, String> {
    match given {
        Value::String(text) if text.is_empty() => {
            Err("invalid related-resource definition: ref URL may not be empty string".to_owned())
        }
        Value::String(_) => Ok([("ref", given.clone())].into_iter().collect()),
        Value::Object(_) => {
            let reference = trimmed(given, "ref").ok_or_else(|| {
                format!("invalid related-resource definition {given}: 'ref' value required in object")
            })?;
            let description = trimmed(given, "description").map(|text| ("description", text));
            Ok(std::iter::once(("ref", reference)).chain(description).collect())
        }
        _ => Err(format!("invalid related-resource definition {given}: invalid value type, must be string or map")),
    }
}

fn author(given: &Value) -> Result<Value, String> {
    let refused = |why: &str| Err(format!("invalid author definition {given}: {why}"));
    let (name, email) = match given {
        Value::String(text) => {
            let mut words: Vec<&str> = text.split_whitespace().collect();
            let Some(last) = words.last() else { return refused("author is an empty string") };
            let email = last.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
            if email.is_some() {
                words.pop();
            }
            let full = |text: &str| (!text.is_empty()).then(|| Value::from(text));
            (full(&words.join(" ")), email.and_then(full))
        }
        Value::Object(_) => (trimmed(given, "name"), trimmed(given, "email")),
        _ => return refused("invalid value type, must be string or map"),
    };
    if name.is_none() && email.is_none() && given.as_str().is_none() {
        return refused("'name' and/or 'email' values required in object");
    }
    Ok([name.map(|it| ("name", it)), email.map(|it| ("email", it))].into_iter().flatten().collect())
}

fn schema(given: &Value) -> Result<Value, String> {
    let pair = given.as_object().and_then(|object| object.iter().next());
    let (path, schema) = pair.ok_or_else(|| "invalid document reference".to_owned())?;
    let path = path.as_str().and_then(reference).ok_or_else(|| "invalid document reference".to_owned())?;
    let (name, schema) = match schema {
        Value::String(text) => {
            let schema = reference(text).filter(|path| path.first().and_then(Value::as_str) == Some("schema"));
            ("schema", Value::array(schema.ok_or_else(|| "invalid schema reference".to_owned())?))
        }
        Value::Object(_) => ("definition", schema.clone()),
        _ => return Err("invalid schema declaration".to_owned()),
    };
    Ok([("path", Value::array(path)), (name, schema)].into_iter().collect())
}

/// The parts of a reference such as `input.user`.
fn reference(text: &str) -> Option<Vec<Value>> {
    let body = parse_query(text, Version::V1).ok()?;
    let [expr] = body.as_slice() else { return None };
    let ExprKind::Term(term) = &expr.kind else { return None };
    match &term.kind {
        TermKind::Var(name) => Some(vec![Value::from(&**name)]),
        TermKind::Ref(head, parts) => {
            std::iter::once(&**head).chain(parts).map(|part| as_text(part).map(Value::from)).collect()
        }
        _ => None,
    }
}
