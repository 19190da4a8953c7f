//! What is refused when a policy is loaded, because it would misbehave when it is asked: calls to functions that do not
//! exist, rules that depend on themselves, and data under rules.
//!
//! Mirrors: OPA's compiler stages `CheckRecursion`, `CheckUndefinedFuncs` and the rule/data conflict check
//! (`v1/ast/compile.go`, v1.9.0), as far as the engine behind this store needs them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::engine::ast::{Module, Rule, RuleHead};
use super::refs::{Mention, Mentions, head, package, static_path};
use crate::value::{Value, member};

/// One reason for refusing a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub file: String,
    /// Zero when the engine's message holds the place itself.
    pub line: u32,
    /// OPA's code, such as `rego_type_error`.
    pub code: &'static str,
    pub message: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}: {}", self.file, self.code, self.message),
            line => write!(f, "{}:{line}: {}: {}", self.file, self.code, self.message),
        }
    }
}

/// All definitions that share one path.
struct Node<'a> {
    file: &'a str,
    line: u32,
    function: bool,
    depends_on: Vec<usize>,
}

/// Every rule of the policy by its path under `data`.
pub struct RuleTree<'a> {
    nodes: Vec<Node<'a>>,
    by_path: BTreeMap<Vec<String>, usize>,
}

/// A module and the name of its file.
pub type NamedModule<'a> = (&'a str, &'a Module);

/// Everything wrong with the modules together; `is_builtin` knows the functions that the engine has.
pub fn audit(modules: &[NamedModule<'_>], data: &Value, is_builtin: impl Fn(&str) -> bool) -> Vec<Rejection> {
    let mut tree = RuleTree::of(modules);
    let mut rejections = tree.data_conflicts(data);
    for &(file, module) in modules {
        let scope = Scope { package: package(module), imports: imports(module) };
        for rule in &module.policy {
            let mentions = Mentions::of(rule);
            let Some(from) = tree.node_of(&scope.package, rule) else { continue };
            for mention in &mentions.found {
                let target = scope.resolve(mention, &mentions, &tree);
                let targets = target.map(|path| tree.reached_by(&path)).unwrap_or_default();
                if mention.call && !targets.iter().any(|&at| tree.is_function(at)) {
                    let name = mention.path.join(".");
                    if !is_builtin(&name) {
                        rejections.push(undefined_function(file, mention, &name));
                    }
                }
                tree.depend(from, targets);
            }
        }
    }
    rejections.extend(tree.recursion());
    rejections
}

fn undefined_function(file: &str, mention: &Mention, name: &str) -> Rejection {
    let hint = if name.starts_with("io.jwt.") || name == "http.send" { " (this preview engine lacks it)" } else { "" };
    Rejection {
        file: file.to_owned(),
        line: mention.line,
        code: "rego_type_error",
        message: format!("undefined function {name}{hint}"),
    }
}

/// How names are resolved in one module.
struct Scope {
    package: Vec<String>,
    imports: HashMap<String, Vec<String>>,
}

fn imports(module: &Module) -> HashMap<String, Vec<String>> {
    let mut imports = HashMap::new();
    for import in &module.imports {
        let (path, _) = static_path(&import.refr);
        let alias = import.r#as.as_ref().map(|alias| alias.text().to_owned()).or_else(|| path.last().cloned());
        if let Some(alias) = alias {
            imports.insert(alias, path);
        }
    }
    imports
}

impl Scope {
    /// The path under `data` that a mention reads, if it reads any.
    fn resolve(&self, mention: &Mention, mentions: &Mentions, tree: &RuleTree<'_>) -> Option<Vec<String>> {
        let (first, rest) = mention.path.split_first()?;
        if first == "data" {
            return Some(rest.to_vec());
        }
        if first == "input" || mentions.locals.contains(first) {
            return None;
        }
        if let Some(imported) = self.imports.get(first) {
            let (root, path) = imported.split_first()?;
            return (root == "data").then(|| [path, rest].concat());
        }
        let own = [self.package.as_slice(), std::slice::from_ref(first)].concat();
        tree.holds(&own).then(|| [self.package.as_slice(), &mention.path].concat())
    }
}

impl<'a> RuleTree<'a> {
    pub fn of(modules: &[NamedModule<'a>]) -> Self {
        let mut tree = Self { nodes: Vec::new(), by_path: BTreeMap::new() };
        for &(file, module) in modules {
            let package = package(module);
            for rule in &module.policy {
                let path = rule_path(&package, rule);
                let function = matches!(**rule, Rule::Spec { head: RuleHead::Func { .. }, .. })
                    || matches!(&**rule, Rule::Default { args, .. } if !args.is_empty());
                let next = tree.nodes.len();
                if *tree.by_path.entry(path).or_insert(next) == next {
                    tree.nodes.push(Node { file, line: rule.span().line, function, depends_on: Vec::new() });
                }
            }
        }
        tree
    }

    /// Whether `path` is exactly the path of a rule that is no function.
    pub fn is_rule(&self, path: &[String]) -> bool {
        self.by_path.get(path).is_some_and(|&at| !self.is_function(at))
    }

    /// Whether a rule stands at `path` or below it.
    pub fn holds(&self, path: &[String]) -> bool {
        self.below(path).next().is_some()
    }

    fn below(&self, path: &[String]) -> impl Iterator<Item = usize> {
        self.by_path.range(path.to_vec()..).take_while(move |(known, _)| known.starts_with(path)).map(|(_, &at)| at)
    }

    fn is_function(&self, at: usize) -> bool {
        self.nodes.get(at).is_some_and(|node| node.function)
    }

    fn node_of(&self, package: &[String], rule: &Rule) -> Option<usize> {
        self.by_path.get(&rule_path(package, rule)).copied()
    }

    /// The rules that reading `path` evaluates: those on the way to it, and those below it.
    fn reached_by(&self, path: &[String]) -> Vec<usize> {
        let above = (1..path.len()).filter_map(|len| self.by_path.get(path.get(..len)?).copied());
        above.chain(self.below(path)).collect()
    }

    fn depend(&mut self, from: usize, targets: Vec<usize>) {
        if let Some(node) = self.nodes.get_mut(from) {
            node.depends_on.extend(targets);
        }
    }

    /// Rules that reach themselves, found by colouring.
    fn recursion(&self) -> Vec<Rejection> {
        #[derive(Clone, Copy, PartialEq)]
        enum Colour {
            New,
            Open,
            Done,
        }
        let mut colours = vec![Colour::New; self.nodes.len()];
        let mut rejections = Vec::new();
        for start in 0..self.nodes.len() {
            let mut stack = vec![(start, 0usize)];
            while let Some((at, next)) = stack.pop() {
                let (Some(node), Some(colour)) = (self.nodes.get(at), colours.get_mut(at)) else { continue };
                if next == 0 {
                    if *colour != Colour::New {
                        continue;
                    }
                    *colour = Colour::Open;
                }
                let Some(&target) = node.depends_on.get(next) else {
                    *colour = Colour::Done;
                    continue;
                };
                stack.push((at, next.saturating_add(1)));
                match colours.get(target) {
                    Some(Colour::Open) => rejections.push(self.recursive(target)),
                    Some(Colour::New) => stack.push((target, 0)),
                    _ => {}
                }
            }
        }
        rejections.dedup();
        rejections
    }

    fn recursive(&self, at: usize) -> Rejection {
        let name = self.by_path.iter().find(|&(_, &index)| index == at).map(|(path, _)| path.join("."));
        let (file, line) = self.nodes.get(at).map_or(("", 0), |node| (node.file, node.line));
        Rejection {
            file: file.to_owned(),
            line,
            code: "rego_recursion_error",
            message: format!("rule data.{} is recursive", name.unwrap_or_default()),
        }
    }

    fn data_conflicts(&self, data: &Value) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        for (path, &at) in &self.by_path {
            let mut here = data;
            let hidden = path.iter().all(|key| match (here, member(here, key)) {
                (_, Some(inner)) => {
                    here = inner;
                    true
                }
                // A scalar on the way to the rule hides the rule as well.
                (Value::Object(_), None) => false,
                _ => true,
            });
            if let (true, Some(node)) = (hidden, self.nodes.get(at)) {
                rejections.push(Rejection {
                    file: node.file.to_owned(),
                    line: node.line,
                    code: "rego_compile_error",
                    message: format!("conflicting rule for data path {} found", path.join("/")),
                });
            }
        }
        rejections
    }
}

fn rule_path(package: &[String], rule: &Rule) -> Vec<String> {
    [package, &static_path(head(rule)).0].concat()
}
