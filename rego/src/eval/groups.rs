//! The values of rules and functions.

use std::collections::BTreeMap;

use super::exec::Mocking;
use super::{ErrorKind, EvalError, Evaluator, Flow, Memo};
use crate::policy::{Code, Group, GroupId, GroupKind, KeyPath, RuleCode};
use crate::syntax::Location;
use crate::value::Value;

/// A nested object in the making.
enum Tree<'a> {
    Leaf(&'a Value),
    Members(BTreeMap<&'a Value, Tree<'a>>),
    Set(Vec<Value>),
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
                    Some(self.keep(Value::set(items))?)
                }
                GroupKind::Object => {
                    let tree = self.extent(group)?;
                    Some(self.keep(tree)?)
                }
                GroupKind::Function => None,
            }
        };
        if let Some(slot) = self.world.memo.get_mut(id as usize) {
            *slot = Memo::Known(value);
        }
        Ok(value)
    }

    /// What stands at `path` now, when a `with` has replaced the rules there.
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
        self.complete(group, args)
    }

    /// The one value of a complete rule or of a function for its arguments.
    fn complete(&mut self, group: &'a Group, args: &[&'a Value]) -> Result<Option<&'a Value>, EvalError> {
        let mut found: Option<&'a Value> = None;
        let mut candidates = Vec::new();
        group.index.candidates(&mut |path| self.value_at(path, args), &mut candidates);
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

    fn value_at(&self, path: &KeyPath, args: &[&'a Value]) -> Option<&'a Value> {
        let root = match path.argument {
            Some(at) => *args.get(at as usize)?,
            None => self.world.input?,
        };
        path.path.iter().try_fold(root, |at, key| at.get(key))
    }

    /// The value of one definition: of the first of its bodies that succeeds.
    fn definition(
        &mut self,
        group: &'a Group,
        rule: &'a RuleCode,
        args: &[&'a Value],
    ) -> Result<Option<&'a Value>, EvalError> {
        for code in &rule.clauses {
            let mut found: Option<&'a Value> = None;
            let constant = matches!(code.value, Some(crate::policy::Src::Const(_)));
            self.in_frame(code.frame, args, |evaluator| {
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

    fn candidates(&self, group: &'a Group) -> Vec<u32> {
        let mut candidates = Vec::new();
        group.index.candidates(&mut |path| self.value_at(path, &[]), &mut candidates);
        candidates
    }

    /// Everything that `contains` rules add.
    fn members(&mut self, group: &'a Group) -> Result<Vec<Value>, EvalError> {
        let mut items = Vec::new();
        for at in self.candidates(group) {
            let code = group.rules.get(at as usize).and_then(|rule| rule.clauses.first());
            let Some(code) = code else { continue };
            self.in_frame(code.frame, &[], |evaluator| {
                evaluator.exec(&code.ops, &mut |evaluator| {
                    if let Some(value) = code.value.as_ref().and_then(|src| evaluator.get(src)) {
                        evaluator.spend(16)?;
                        items.push(value.clone());
                    }
                    Ok(Flow::Continue)
                })
            })?;
        }
        Ok(items)
    }

    /// The whole object that rules with variables in their heads define.
    pub(super) fn extent(&mut self, group: &'a Group) -> Result<Value, EvalError> {
        let mut tree = Tree::Members(BTreeMap::new());
        for at in self.candidates(group) {
            let Some(rule) = group.rules.get(at as usize) else { continue };
            let Some(code) = rule.clauses.first() else { continue };
            self.in_frame(code.frame, &[], |evaluator| {
                evaluator.exec(&code.ops, &mut |evaluator| {
                    evaluator.add(&mut tree, code, 0, group)?;
                    Ok(Flow::Continue)
                })
            })?;
        }
        Ok(grown(tree))
    }

    /// Puts the present solution where its keys say, beginning with the key at `skip`.
    fn add(
        &mut self,
        tree: &mut Tree<'a>,
        code: &'a Code,
        skip: usize,
        group: &'a Group,
    ) -> Result<(), EvalError> {
        let Some(value) = code.value.as_ref().and_then(|src| self.get(src)) else { return Ok(()) };
        self.spend(64)?;
        let mut here = tree;
        for src in code.tail.get(skip..).unwrap_or_default() {
            let Some(key) = self.get(src) else { return Ok(()) };
            if let Tree::Set(items) = here
                && items.is_empty()
            {
                *here = Tree::Members(BTreeMap::new());
            }
            let Tree::Members(members) = here else { return Err(unique_keys(group)) };
            here = members.entry(key).or_insert_with(|| Tree::Set(Vec::new()));
        }
        let contains = group.contains;
        match here {
            Tree::Set(items) if contains => items.push(value.clone()),
            Tree::Set(items) if items.is_empty() => *here = Tree::Leaf(value),
            Tree::Leaf(known) if !contains && *known == value => {}
            _ => return Err(unique_keys(group)),
        }
        Ok(())
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
        self.spend(32)?;
        self.world.keyed.insert((id, key), value);
        Ok(value)
    }

    fn has(&mut self, group: &'a Group, key: &'a Value) -> Result<bool, EvalError> {
        for at in self.candidates(group) {
            let code = group.rules.get(at as usize).and_then(|rule| rule.keyed.as_ref());
            let Some(code) = code else { continue };
            if self.in_frame(code.frame, &[key], |evaluator| evaluator.exists(&code.ops))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn member(&mut self, group: &'a Group, key: &'a Value) -> Result<Option<&'a Value>, EvalError> {
        let mut tree = Tree::Set(Vec::new());
        let mut any = false;
        for at in self.candidates(group) {
            let Some(rule) = group.rules.get(at as usize) else { continue };
            let Some(code) = &rule.keyed else { continue };
            self.in_frame(code.frame, &[key], |evaluator| {
                evaluator.exec(&code.ops, &mut |evaluator| {
                    any = true;
                    evaluator.add(&mut tree, code, 1, group)?;
                    Ok(Flow::Continue)
                })
            })?;
        }
        match tree {
            Tree::Leaf(value) => Ok(Some(value)),
            _ if !any => Ok(None),
            tree => self.keep(grown(tree)).map(Some),
        }
    }
}

fn grown(tree: Tree<'_>) -> Value {
    match tree {
        Tree::Leaf(value) => value.clone(),
        Tree::Set(items) => Value::set(items),
        Tree::Members(members) => {
            Value::object(members.into_iter().map(|(key, tree)| (key.clone(), grown(tree))).collect())
        }
    }
}

fn conflict(group: &Group, rule: &RuleCode) -> EvalError {
    let message = match group.kind {
        GroupKind::Function => "functions must not produce multiple outputs for same inputs",
        _ => "complete rules must not produce multiple outputs",
    };
    EvalError { at: Some((rule.file.clone(), rule.at)), ..EvalError::new(ErrorKind::Conflict, message) }
}

fn unique_keys(group: &Group) -> EvalError {
    let at = group.rules.first().map(|rule| (rule.file.clone(), rule.at));
    EvalError { at, ..EvalError::new(ErrorKind::Conflict, "object keys must be unique") }
}
