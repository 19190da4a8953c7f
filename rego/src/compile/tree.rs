//! Rules by their paths: the tree of `data`, the groups of definitions, and the conflicts among them.
//!
//! Mirrors: the stages `SetRuleTree`, `CheckRuleConflicts`, `CheckRecursion` and `BuildRuleIndices` of OPA
//! `v1/ast/compile.go`, v1.19.0.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::hir::{self, data_path};
use super::lower::{self, Tree};
use super::resolve::{is_wildcard, resolve_rule};
use super::{
    CompileError, DataConflicts, Names, Options, Reads, Shared, annotations, check, is_test_name, recursion, safety,
};
use crate::builtins;
use crate::policy::{GroupId, GroupKind, Index, NameTable, Node, NodeId, Policy, ROOT, RuleSet};
use crate::syntax::{Module, TermKind, Version};
use crate::value::Value;

type Named = (Arc<str>, Module);

/// Compiles parsed modules.
pub(super) fn build(modules: &[Named], data: Value, options: &Options) -> Result<Policy, Vec<CompileError>> {
    let (rules_of, shared) = collect_declarations(modules, options);
    let annotations = annotations::Annotations::read(modules)?;
    let mut errors = Vec::new();
    let mut rules = Vec::new();
    for (at, (file, module)) in modules.iter().enumerate() {
        let package: Vec<Value> = module.package.iter().map(|part| Value::from(&**part)).collect();
        let Some(own) = rules_of.get(&package) else { continue };
        let names = Names {
            file: file.clone(),
            strict: module.version == Version::V1,
            imports: imports(module),
            used: RefCell::default(),
            rules: own,
            package: package.clone(),
            shared: &shared,
        };
        if names.strict {
            errors.extend(repeated_imports(file, module));
        }
        for rule in &module.rules {
            match resolve_rule(&names, rule, annotations.of(at, module, rule)) {
                Ok(rule) => rules.push(rule),
                Err(more) => errors.extend(more),
            }
        }
        if options.strict {
            errors.extend(unused_imports(&names, module));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    for rule in &mut rules {
        errors.extend(order(rule));
        if options.separate_tests {
            begin_case(rule);
        }
    }
    let packages = rules_of.keys().cloned().collect();
    let (nodes, mut groups, by_group) = build_rule_tree(packages, &rules);
    errors.extend(conflicts(&nodes, &groups, &by_group, &rules));
    if options.data_conflicts == DataConflicts::Refuse {
        errors.extend(data_conflicts(&groups, &by_group, &rules, &data));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let dependencies = recursion::Dependencies::of(&nodes, &groups, &by_group, &rules);
    let errors = dependencies.cycles();
    if !errors.is_empty() {
        return Err(errors);
    }
    let (types, errors) = check::rules(&dependencies.order(), &by_group, &rules);
    if !errors.is_empty() {
        return Err(errors);
    }

    let graph = dependencies.into_graph();
    let kinds = groups.iter().map(|group| group.kind).collect();
    let clauses = || rules.iter().flat_map(|rule| &rule.clauses);
    let replaces_comparisons = clauses().any(|clause| lower::replaces_comparisons(&clause.body));
    let tree = Tree {
        nodes: &nodes,
        kinds,
        replaces_comparisons,
        traced: options.traced.then(RefCell::default),
        waits: Cell::default(),
    };
    for ((group, members), refers_to) in groups.iter_mut().zip(&by_group).zip(graph) {
        group.refers_to = refers_to;
        let mut conditions = Vec::new();
        let mut constants = HashSet::new();
        let mut varies = false;
        for rule in members.iter().filter_map(|&at| rules.get(at)) {
            let code = lower::rule(&tree, rule, group.kind);
            group.reads.add(&Reads::of(rule));
            if rule.is_default {
                group.default = Some(code);
                continue;
            }
            for clause in &rule.clauses {
                match clause.value.as_const() {
                    Some(value) => {
                        constants.insert(value.clone());
                    }
                    None => varies = true,
                }
            }
            conditions.push(lower::conditions(rule));
            group.rules.push(code);
        }
        group.index = Index::new(&conditions);
        group.constant = if varies || constants.len() != 1 { None } else { constants.into_iter().next() };
    }
    let waits = tree.waits.get();
    let mut places = tree.traced.map(RefCell::into_inner).unwrap_or_default();
    places.sort();
    places.dedup();
    Ok(Policy { groups, nodes, data, waits, places, names: NameTable { rules: rules_of }, types, shared })
}

type RuleNames = HashMap<Vec<Value>, HashSet<Arc<str>>>;

/// The declarations of all modules, collected before any name is resolved.
fn collect_declarations(modules: &[Named], options: &Options) -> (RuleNames, Shared) {
    let mut rules_of = RuleNames::new();
    let mut shared =
        Shared { capabilities: options.capabilities.clone(), refuses_unused: options.strict, ..Shared::default() };
    for (_, module) in modules {
        let package: Vec<Value> = module.package.iter().map(|part| Value::from(&**part)).collect();
        let names = rules_of.entry(package.clone()).or_default();
        for rule in &module.rules {
            let mut path = package.clone();
            for (at, part) in rule.head.path.iter().enumerate() {
                match &part.kind {
                    TermKind::Var(name) if at == 0 => {
                        names.insert(name.clone());
                        path.push(Value::from(&**name));
                    }
                    TermKind::String(text) => path.push(Value::from(&**text)),
                    _ => break,
                }
            }
            if let Some(args) = &rule.head.args {
                shared.arities.insert(path.clone(), args.len());
            }
            shared.paths.insert(path);
        }
    }
    (rules_of, shared)
}

/// Imports that bring a name which another has brought.
fn repeated_imports(file: &Arc<str>, module: &Module) -> Vec<CompileError> {
    let mut seen: HashMap<&str, String> = HashMap::new();
    let mut errors = Vec::new();
    for import in &module.imports {
        if !import.path.first().is_some_and(|first| matches!(&**first, "data" | "input")) {
            continue;
        }
        let Some(name) = import.alias.as_ref().or(import.path.last()) else { continue };
        if let Some(before) = seen.get(&**name) {
            let message = format!("import must not shadow import {before}");
            errors.push(CompileError { code: "rego_compile_error", file: file.clone(), at: import.at, message });
        }
        seen.insert(name, import.path.join("."));
    }
    errors
}

/// Mirrors: `CheckUnusedImports`' part of `resolveAllRefs`.
fn unused_imports(names: &Names<'_>, module: &Module) -> Vec<CompileError> {
    let used = names.used.borrow();
    let unused = module.imports.iter().filter(|import| {
        let name = import.alias.as_ref().or(import.path.get(1..).and_then(|rest| rest.last()));
        name.is_some_and(|name| names.imports.contains_key(name) && !used.contains(name))
    });
    unused
        .map(|import| {
            let alias = import.alias.as_ref().map(|alias| format!(" as {alias}")).unwrap_or_default();
            let message = format!("import {}{alias} unused", import.path.join("."));
            CompileError { code: "rego_compile_error", file: names.file.clone(), at: import.at, message }
        })
        .collect()
}

/// The names that a module's imports bring.
pub(super) fn imports(module: &Module) -> HashMap<Arc<str>, (hir::Root, Vec<hir::Term>)> {
    let mut imports = HashMap::new();
    for import in &module.imports {
        let Some((first, rest)) = import.path.split_first() else { continue };
        let root = match &**first {
            "data" => hir::Root::Data,
            "input" => hir::Root::Input,
            _ => continue,
        };
        let name = import.alias.as_ref().or(rest.last());
        if let Some(name) = name {
            let path = rest.iter().map(|part| hir::Term::Const(Value::from(&**part))).collect();
            imports.insert(name.clone(), (root, path));
        }
    }
    imports
}

/// Orders the bodies of a rule and finds what has no value in its head.
fn order(rule: &mut hir::Rule) -> Vec<CompileError> {
    let mut known = safety::Vars::new();
    for arg in rule.args.iter().flatten() {
        arg.open_vars(&mut |var| {
            known.insert(var);
        });
    }
    let mut errors = Vec::new();
    let name = |vars: &[hir::VarInfo], found: safety::Unsafe| match vars.get(found.var as usize) {
        Some(info) if !info.generated => format!("var {} is unsafe", info.name),
        Some(info) if is_wildcard(&info.name) && info.name != "_" => "var _ is unsafe".to_owned(),
        _ => "expression is unsafe".to_owned(),
    };
    for (at, clause) in rule.clauses.iter_mut().enumerate() {
        match safety::reorder(std::mem::take(&mut clause.body), &known) {
            Ok(body) => clause.body = body,
            Err(found) => {
                let mut messages: Vec<_> = found.into_iter().map(|found| (found.at, name(&rule.vars, found))).collect();
                messages.dedup();
                errors.extend(messages.into_iter().map(|(at, message)| CompileError {
                    code: "rego_unsafe_var_error",
                    file: rule.file.clone(),
                    at,
                    message,
                }));
                continue;
            }
        }
        let mut bound = known.clone();
        clause.body.iter().for_each(|expr| {
            expr.terms(&mut |term| {
                term.open_vars(&mut |var| {
                    bound.insert(var);
                })
            });
        });
        let mut head = safety::Vars::new();
        let mut add = |var| {
            head.insert(var);
        };
        clause.value.open_vars(&mut add);
        if at == 0 {
            rule.tail.iter().for_each(|term| term.open_vars(&mut add));
        }
        for var in head.difference(&bound) {
            errors.push(CompileError {
                code: "rego_unsafe_var_error",
                file: rule.file.clone(),
                at: rule.at,
                message: name(&rule.vars, safety::Unsafe { at: rule.at, var: *var }),
            });
        }
    }
    errors
}

/// Reports the case of a test such as `test_x[name] if …` as soon as its name is known: one that fails later leaves nothing else behind.
///
/// Mirrors: `injectTestCaseFunc`, OPA `v1/tester/runner.go`, v1.19.0.
fn begin_case(rule: &mut hir::Rule) {
    let is_test = |part: &Value| part.as_str().is_some_and(is_test_name);
    let (true, false, Some(builtin)) =
        (rule.path.iter().any(is_test), rule.tail.is_empty(), builtins::named("internal.test_case"))
    else {
        return;
    };
    let mut missing = safety::Vars::new();
    rule.tail.iter().for_each(|term| {
        term.open_vars(&mut |var| {
            missing.insert(var);
        })
    });
    let path = rule.path.iter().cloned().map(hir::Term::Const).chain(rule.tail.iter().cloned()).collect();
    let kind = hir::ExprKind::Call {
        function: hir::Function::Builtin(builtin),
        args: vec![hir::Term::Array(path)],
        out: None,
    };
    let begin = hir::Expr { at: rule.at, negated: false, kind, with: Arc::new([]) };
    let Some(clause) = rule.clauses.first_mut() else { return };
    let binds_last = |expr: &hir::Expr| {
        expr.terms(&mut |term| {
            term.open_vars(&mut |var| {
                missing.remove(&var);
            })
        });
        missing.is_empty()
    };
    let place = clause.body.iter().position(binds_last).map_or(clause.body.len(), |last| last.saturating_add(1));
    clause.body.insert(place, begin);
}

/// Rules by group, as places among all rules.
pub(super) type Members = Vec<Vec<usize>>;

/// Grows the tree and sorts the rules into groups.
fn build_rule_tree(mut packages: Vec<Vec<Value>>, rules: &[hir::Rule]) -> (Vec<Node>, Vec<RuleSet>, Members) {
    let mut nodes = vec![Node::default()];
    packages.sort();
    for package in &packages {
        grow(&mut nodes, package);
    }
    let mut groups: Vec<RuleSet> = Vec::new();
    let mut members: Members = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let node = grow(&mut nodes, &rule.path);
        let kind = match (rule.args.is_some(), rule.tail.is_empty(), rule.is_contains) {
            (true, ..) => GroupKind::Function,
            (_, false, _) => GroupKind::Object,
            (_, true, true) => GroupKind::Set,
            _ => GroupKind::Complete,
        };
        let Some(place) = nodes.get_mut(node as usize) else { continue };
        let slot = if kind == GroupKind::Object { &mut place.dynamic } else { &mut place.group };
        let group = *slot.get_or_insert_with(|| {
            groups.push(RuleSet {
                path: rule.path.clone(),
                kind,
                rules: Vec::new(),
                default: None,
                index: Index::default(),
                refers_to: Vec::new(),
                reads: Reads::default(),
                constant: None,
                contains: rule.is_contains,
            });
            members.push(Vec::new());
            GroupId::try_from(groups.len().saturating_sub(1)).unwrap_or(GroupId::MAX)
        });
        if let Some(list) = members.get_mut(group as usize) {
            list.push(at);
        }
    }
    (nodes, groups, members)
}

/// The place at `path`, made where it is missing.
fn grow(nodes: &mut Vec<Node>, path: &[Value]) -> NodeId {
    let mut node = ROOT;
    for (depth, key) in path.iter().enumerate() {
        let known = nodes.get(node as usize).and_then(|node| node.children.get(key).copied());
        node = known.unwrap_or_else(|| {
            let next = NodeId::try_from(nodes.len()).unwrap_or(NodeId::MAX);
            nodes.push(Node { path: path.get(..=depth).unwrap_or_default().to_vec(), ..Node::default() });
            if let Some(parent) = nodes.get_mut(node as usize) {
                parent.children.insert(key.clone(), next);
            }
            next
        });
    }
    node
}

fn conflicts(nodes: &[Node], groups: &[RuleSet], members: &Members, rules: &[hir::Rule]) -> Vec<CompileError> {
    let mut errors = Vec::new();
    let mut refuse = |rule: &hir::Rule, message: String| {
        errors.push(CompileError { code: "rego_type_error", file: rule.file.clone(), at: rule.at, message });
    };
    for node in nodes {
        let of = |group: Option<GroupId>| -> Vec<&hir::Rule> {
            let list = group.and_then(|group| members.get(group as usize));
            list.into_iter().flatten().filter_map(|&at| rules.get(at)).collect()
        };
        let (here, dynamic) = (of(node.group), of(node.dynamic));
        let Some(first) = here.first().or(dynamic.first()) else { continue };
        let name = data_path(&node.path);
        let kinds: HashSet<_> = here
            .iter()
            .map(|rule| (rule.is_contains, rule.args.as_ref().map(Vec::len)))
            .chain(dynamic.iter().map(|_| (true, Some(usize::MAX))))
            .collect();
        if kinds.len() > 1 {
            refuse(first, format!("conflicting rules {name} found"));
            continue;
        }
        let shapes: HashSet<bool> = dynamic.iter().map(|rule| rule.is_contains).collect();
        if shapes.len() > 1 {
            refuse(first, format!("conflicting rules {name} found"));
        }
        let defaults: Vec<_> = here.iter().filter(|rule| rule.is_default).collect();
        if let [first, second, ..] = defaults.as_slice() {
            let place = |rule: &hir::Rule| format!("{}:{}", rule.file, rule.at.row);
            let message = format!("multiple default rules {name} found at {}, {}", place(first), place(second));
            refuse(first, message);
        }
        let below = inside(nodes, node, groups);
        if !here.is_empty() && !below.is_empty() {
            let listed: Vec<String> = below.iter().map(|path| data_path(path)).collect();
            refuse(first, format!("rule {name} conflicts with [{}]", listed.join(" ")));
        }
        let functions =
            |path: &Vec<Value>| groups.iter().any(|group| group.path == *path && group.kind == GroupKind::Function);
        if !dynamic.is_empty() && below.iter().any(functions) {
            refuse(first, format!("rule {name} conflicts with functions inside it"));
        }
    }
    errors
}

/// The paths of rules below a node.
fn inside(nodes: &[Node], node: &Node, groups: &[RuleSet]) -> Vec<Vec<Value>> {
    let mut found = Vec::new();
    let mut open: Vec<&Node> = node.children.values().filter_map(|&id| nodes.get(id as usize)).collect();
    while let Some(node) = open.pop() {
        if let Some(group) = node.group.or(node.dynamic).and_then(|id| groups.get(id as usize)) {
            found.push(group.path.clone());
        }
        open.extend(node.children.values().filter_map(|&id| nodes.get(id as usize)));
    }
    found.sort();
    found
}

fn data_conflicts(groups: &[RuleSet], members: &Members, rules: &[hir::Rule], data: &Value) -> Vec<CompileError> {
    let mut errors = Vec::new();
    for (group, members) in groups.iter().zip(members) {
        let Some(rule) = members.first().and_then(|&at| rules.get(at)) else { continue };
        // A scalar on the way hides the rule as well.
        let mut here = Some(data);
        for key in &group.path {
            here = match here {
                Some(value @ Value::Object(_)) => value.get(key),
                other => other,
            };
        }
        if here.is_some() {
            let path: Vec<String> =
                group.path.iter().map(|key| key.as_str().map_or_else(|| key.to_string(), str::to_owned)).collect();
            errors.push(CompileError {
                code: "rego_compile_error",
                file: rule.file.clone(),
                at: rule.at,
                message: format!("conflicting rule for data path {} found", path.join("/")),
            });
        }
    }
    errors
}
