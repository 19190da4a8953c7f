//! The values of rules and functions.

use std::collections::BTreeMap;

use super::exec::Mocking;
use super::{ErrorKind, EvalError, Evaluator, Flow, Memo};
use crate::meter::{HEADER_BYTES, ITEM_BYTES, MEMBER_BYTES, Meter as _};
use crate::policy::{Code, Facts, GroupId, GroupKind, KeyPath, Node, NodeId, RuleCode, RuleSet};
use crate::syntax::Location;
use crate::value::{Value, metered};

/// The index's view of the input and arguments.
struct Seen<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    args: &'e [&'a Value],
}

impl<'a> Facts<'a> for Seen<'_, 'a> {
    fn value_at(&self, path: &KeyPath) -> Option<&'a Value> {
        let root = match path.argument {
            Some(at) => *self.args.get(at as usize)?,
            None => self.evaluator.world.input?,
        };
        path.path.iter().try_fold(root, |at, key| at.get(key))
    }

    fn prefixes_hold(&self) -> bool {
        self.evaluator.world.mocks.is_empty()
    }
}

/// Calls of functions that are made without remembering their results: most evaluations make no more.
const FREE_CALLS: u32 = 64;
/// The heaviest arguments whose result is cached: comparing them takes time.
const MAX_REMEMBERED_WEIGHT: usize = 64;
/// Results that are remembered.
const MAX_RESULTS: usize = 100_000;

/// A nested object in the making.
enum Tree<'a> {
    Empty,
    Leaf(&'a Value),
    Members(BTreeMap<&'a Value, Tree<'a>>),
    Set(Vec<Value>),
}

/// The contribution of a definition to a path.
#[derive(Clone, Copy)]
enum Contribution<'a> {
    Value(&'a Value),
    /// A member of a set.
    Member(&'a Value),
}

impl<'a> Evaluator<'a> {
    /// The whole value of a rule.
    pub(super) fn rule(&mut self, id: GroupId) -> Result<Option<&'a Value>, EvalError> {
        if let Some(Memo::Known(value)) = self.world.memo.get(id as usize) {
            return Ok(*value);
        }
        let Some(group) = self.policy.groups.get(id as usize) else { return Ok(None) };
        let value = if let Some(replaced) = self.replaced(&group.path) {
            replaced
        } else {
            match group.kind {
                GroupKind::Complete => self.complete(group, &[])?,
                GroupKind::Set => {
                    let items = self.members(group)?;
                    self.context.allocate(HEADER_BYTES)?;
                    let set = metered::set(&mut self.context, items)?;
                    Some(self.keep_charged(set)?)
                }
                GroupKind::Object => match self.policy.node_at(&group.path) {
                    Some(node) => self.document(node)?,
                    None => None,
                },
                GroupKind::Function => None,
            }
        };
        if let Some(slot) = self.world.memo.get_mut(id as usize) {
            *slot = Memo::Known(value);
        }
        Ok(value)
    }

    /// The value at `path` now, when a `with` has replaced the rules there.
    pub(super) fn replaced(&self, path: &[Value]) -> Option<Option<&'a Value>> {
        if self.world.replaced.iter().any(|replaced| path.starts_with(replaced)) {
            return Some(path.iter().try_fold(self.world.data, |at, key| at.get(key)));
        }
        None
    }

    /// Calls a function that rules define.
    pub(super) fn call(
        &mut self,
        id: GroupId,
        args: &[&'a Value],
        at: Location,
    ) -> Result<Option<&'a Value>, EvalError> {
        if !self.world.mocks.is_empty()
            && let Some(result) = self.mocked(Mocking::Rule(id), args, at)?
        {
            return Ok(result);
        }
        let Some(group) = self.policy.groups.get(id as usize) else { return Ok(None) };
        if group.kind != GroupKind::Function {
            // A replacement that is no function gives its value whatever the arguments.
            return self.rule(id);
        }
        if let Some(replaced) = self.replaced(&group.path) {
            return Ok(replaced);
        }
        self.world.calls = self.world.calls.saturating_add(1);
        let weight: usize = args.iter().map(|arg| arg.weight()).sum();
        if self.world.calls <= FREE_CALLS || weight > MAX_REMEMBERED_WEIGHT {
            return self.complete(group, args);
        }
        // Functions that call one another twice would otherwise do their work over and over.
        let key = (id, args.to_vec());
        if let Some(known) = self.world.results.get(&key) {
            return Ok(*known);
        }
        let value = self.complete(group, args)?;
        if self.world.results.len() < MAX_RESULTS {
            self.context.allocate(args.len().saturating_mul(16).saturating_add(2 * HEADER_BYTES))?;
            self.world.results.insert(key, value);
        }
        Ok(value)
    }

    /// The one value of a complete rule or of a function for its arguments.
    fn complete(&mut self, group: &'a RuleSet, args: &[&'a Value]) -> Result<Option<&'a Value>, EvalError> {
        let mut found: Option<&'a Value> = None;
        let mut candidates = Vec::new();
        group.index.candidates(&Seen { evaluator: self, args }, &mut candidates);
        for at in candidates {
            let Some(rule) = group.rules.get(at as usize) else { continue };
            let Some(value) = self.definition(group, rule, args)? else { continue };
            if group.constant.is_some() {
                return Ok(Some(value));
            }
            if found.is_some_and(|found| found != value) {
                return Err(conflict(group, rule));
            }
            found = Some(value);
        }
        match (found, &group.default) {
            (None, Some(default)) => self.definition(group, default, args),
            (found, _) => Ok(found),
        }
    }

    /// The value of one definition: of the first of its bodies that succeeds.
    fn definition(
        &mut self,
        group: &'a RuleSet,
        rule: &'a RuleCode,
        args: &[&'a Value],
    ) -> Result<Option<&'a Value>, EvalError> {
        for code in &rule.clauses {
            let mut found: Option<&'a Value> = None;
            // As in OPA, further solutions are looked at, for their errors, unless all definitions agree on the value.
            let constant = group.constant.is_some();
            self.within(rule, code, args, |evaluator| {
                evaluator.exec(&code.ops, &mut |evaluator| {
                    let Some(value) = code.value.as_ref().and_then(|src| evaluator.get(src)) else {
                        return Ok(Flow::Continue);
                    };
                    if found.is_some_and(|found| found != value) {
                        return Err(conflict(group, rule));
                    }
                    found = Some(value);
                    Ok(if constant { Flow::Stop } else { Flow::Continue })
                })
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Runs a body of `rule` in a frame of its own.
    fn within<T>(
        &mut self,
        rule: &'a RuleCode,
        code: &'a Code,
        args: &[&'a Value],
        run: impl FnOnce(&mut Self) -> Result<T, EvalError>,
    ) -> Result<T, EvalError> {
        let outer = self.file.replace(&rule.file);
        let result = self.in_frame(code.frame, args, run);
        self.file = outer;
        result
    }

    fn candidates(&self, group: &'a RuleSet) -> Vec<u32> {
        let mut candidates = Vec::new();
        group.index.candidates(&Seen { evaluator: self, args: &[] }, &mut candidates);
        candidates
    }

    /// Everything that `contains` rules add.
    fn members(&mut self, group: &'a RuleSet) -> Result<Vec<Value>, EvalError> {
        let mut items = Vec::new();
        for at in self.candidates(group) {
            let Some(rule) = group.rules.get(at as usize) else { continue };
            let Some(code) = rule.clauses.first() else { continue };
            self.within(rule, code, &[], |evaluator| {
                evaluator.exec(&code.ops, &mut |evaluator| {
                    if let Some(value) = code.value.as_ref().and_then(|src| evaluator.get(src)) {
                        evaluator.context.allocate(ITEM_BYTES)?;
                        items.push(value.clone());
                    }
                    Ok(Flow::Continue)
                })
            })?;
        }
        Ok(items)
    }

    /// The whole object that rules with variables in their heads define at a path, with the rules below it.
    pub(super) fn extent(&mut self, node: &'a Node) -> Result<Value, EvalError> {
        let mut tree = Tree::Members(BTreeMap::new());
        self.extend(&mut tree, node, &mut Vec::new())?;
        Ok(grown(tree))
    }

    fn extend(&mut self, tree: &mut Tree<'a>, node: &'a Node, prefix: &mut Vec<&'a Value>) -> Result<(), EvalError> {
        if let Some(group) = node.dynamic.and_then(|id| self.policy.groups.get(id as usize)) {
            for at in self.candidates(group) {
                let Some(rule) = group.rules.get(at as usize) else { continue };
                let Some(code) = rule.clauses.first() else { continue };
                self.within(rule, code, &[], |evaluator| {
                    evaluator.exec(&code.ops, &mut |evaluator| {
                        evaluator.add(tree, code, prefix, 0, group)?;
                        Ok(Flow::Continue)
                    })
                })?;
            }
        }
        let mut children: Vec<(&'a Value, NodeId)> = node.children.iter().map(|(key, id)| (key, *id)).collect();
        children.sort_by_key(|(key, _)| *key);
        for (key, id) in children {
            prefix.push(key);
            self.graft(tree, id, prefix)?;
            prefix.pop();
        }
        Ok(())
    }

    /// Puts the values of the rules at and below a path under `prefix`.
    fn graft(&mut self, tree: &mut Tree<'a>, id: NodeId, prefix: &mut Vec<&'a Value>) -> Result<(), EvalError> {
        let Some(node) = self.policy.nodes.get(id as usize) else { return Ok(()) };
        if let Some(id) = node.group {
            let Some(group) = self.policy.groups.get(id as usize) else { return Ok(()) };
            match (group.kind, self.rule(id)?) {
                (GroupKind::Set, Some(Value::Set(set))) => {
                    for item in set.iter() {
                        place(tree, prefix, Contribution::Member(item)).ok_or_else(|| unique_keys(group))?;
                    }
                }
                (GroupKind::Complete, Some(value)) => {
                    place(tree, prefix, Contribution::Value(value)).ok_or_else(|| unique_keys(group))?;
                }
                _ => {}
            }
        }
        self.extend(tree, node, prefix)
    }

    /// Puts the present solution where its keys say, beginning with the key at `skip`.
    fn add(
        &mut self,
        tree: &mut Tree<'a>,
        code: &'a Code,
        prefix: &[&'a Value],
        skip: usize,
        group: &'a RuleSet,
    ) -> Result<(), EvalError> {
        let Some(value) = code.value.as_ref().and_then(|src| self.get(src)) else { return Ok(()) };
        self.context.allocate(2 * MEMBER_BYTES)?;
        let tail = code.tail.get(skip..).unwrap_or_default().iter().map(|src| self.get(src));
        let Some(keys) = prefix.iter().copied().map(Some).chain(tail).collect::<Option<Vec<_>>>() else {
            return Ok(());
        };
        let part = if group.contains { Contribution::Member(value) } else { Contribution::Value(value) };
        place(tree, &keys, part).ok_or_else(|| unique_keys(group))
    }

    /// One member of a set or object that rules define.
    pub(super) fn keyed(&mut self, id: GroupId, key: &'a Value) -> Result<Option<&'a Value>, EvalError> {
        if let Some(Memo::Known(whole)) = self.world.memo.get(id as usize) {
            return Ok(whole.and_then(|whole| whole.get(key)));
        }
        if let Some(known) = self.world.keyed.get(&(id, key)) {
            return Ok(*known);
        }
        let Some(group) = self.policy.groups.get(id as usize) else { return Ok(None) };
        if group.rules.iter().any(|rule| rule.keyed.is_none()) || !self.world.replaced.is_empty() {
            return Ok(self.rule(id)?.and_then(|whole| whole.get(key)));
        }
        let value = match group.kind {
            GroupKind::Set => self.has(group, key)?.then_some(key),
            _ => self.member(group, key)?,
        };
        self.context.allocate(HEADER_BYTES)?;
        self.world.keyed.insert((id, key), value);
        Ok(value)
    }

    fn has(&mut self, group: &'a RuleSet, key: &'a Value) -> Result<bool, EvalError> {
        for at in self.candidates(group) {
            let Some(rule) = group.rules.get(at as usize) else { continue };
            let Some(code) = &rule.keyed else { continue };
            if self.within(rule, code, &[key], |evaluator| evaluator.exists(&code.ops))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn member(&mut self, group: &'a RuleSet, key: &'a Value) -> Result<Option<&'a Value>, EvalError> {
        let mut tree = Tree::Empty;
        for at in self.candidates(group) {
            let Some(rule) = group.rules.get(at as usize) else { continue };
            let Some(code) = &rule.keyed else { continue };
            self.within(rule, code, &[key], |evaluator| {
                evaluator.exec(&code.ops, &mut |evaluator| {
                    evaluator.add(&mut tree, code, &[], 1, group)?;
                    Ok(Flow::Continue)
                })
            })?;
        }
        let node = self.policy.node_at(&group.path).and_then(|id| self.policy.nodes.get(id as usize));
        if let Some(&child) = node.and_then(|node| node.children.get(key)) {
            self.graft(&mut tree, child, &mut Vec::new())?;
        }
        match tree {
            Tree::Leaf(value) => Ok(Some(value)),
            Tree::Empty => Ok(None),
            tree => self.keep(grown(tree)).map(Some),
        }
    }
}

/// Nothing where something else is already.
fn place<'a>(tree: &mut Tree<'a>, keys: &[&'a Value], part: Contribution<'a>) -> Option<()> {
    let mut here = tree;
    for &key in keys {
        if let Tree::Empty = here {
            *here = Tree::Members(BTreeMap::new());
        }
        let Tree::Members(members) = here else { return None };
        here = members.entry(key).or_insert(Tree::Empty);
    }
    match (&mut *here, part) {
        (Tree::Empty, Contribution::Value(value)) => *here = Tree::Leaf(value),
        (Tree::Empty, Contribution::Member(value)) => *here = Tree::Set(vec![value.clone()]),
        (Tree::Set(items), Contribution::Member(value)) => items.push(value.clone()),
        (Tree::Leaf(known), Contribution::Value(value)) if *known == value => {}
        _ => return None,
    }
    Some(())
}

fn grown(tree: Tree<'_>) -> Value {
    match tree {
        Tree::Empty => Value::empty_object(),
        Tree::Leaf(value) => value.clone(),
        Tree::Set(items) => Value::set(items),
        Tree::Members(members) => {
            Value::object(members.into_iter().map(|(key, tree)| (key.clone(), grown(tree))).collect())
        }
    }
}

fn conflict(group: &RuleSet, rule: &RuleCode) -> EvalError {
    let message = match group.kind {
        GroupKind::Function => "functions must not produce multiple outputs for same inputs",
        _ => "complete rules must not produce multiple outputs",
    };
    EvalError { at: Some((rule.file.clone(), rule.at)), ..EvalError::new(ErrorKind::Conflict, message) }
}

fn unique_keys(group: &RuleSet) -> EvalError {
    let at = group.rules.first().map(|rule| (rule.file.clone(), rule.at));
    EvalError { at, ..EvalError::new(ErrorKind::Conflict, "object keys must be unique") }
}
