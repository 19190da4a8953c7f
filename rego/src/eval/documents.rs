//! Packages as documents, and references whose variables range over packages.

use super::exec::base_member;
use super::{EvalError, Evaluator, Flow, Sink};
use crate::meter::{HEADER_BYTES, MEMBER_BYTES, Meter as _};
use crate::policy::{Node, NodeId, Operand};
use crate::value::Value;

impl<'a> Evaluator<'a> {
    /// The whole document at a path: rules over base data.
    pub(super) fn document(&mut self, id: NodeId) -> Result<Option<&'a Value>, EvalError> {
        if let Some(known) = self.world.documents.get(&id) {
            return Ok(*known);
        }
        let Some(node) = self.policy.nodes.get(id as usize) else { return Ok(None) };
        let value = self.gathered(node)?;
        self.context.allocate(HEADER_BYTES)?;
        self.world.documents.insert(id, value);
        Ok(value)
    }

    fn gathered(&mut self, node: &'a Node) -> Result<Option<&'a Value>, EvalError> {
        if let Some(replaced) = self.replaced(&node.path) {
            return Ok(replaced);
        }
        if let Some(group) = node.group {
            return self.rule(group);
        }
        let base = self.base_at(node);
        let size = base.and_then(Value::as_object).map_or(0, crate::value::Object::len);
        self.context.work(size)?;
        self.context.allocate(size.saturating_add(node.children.len()).saturating_mul(MEMBER_BYTES))?;
        let mut members: Vec<(Value, Value)> = match base {
            Some(Value::Object(object)) => object.to_vec(),
            _ => Vec::new(),
        };
        // OPA's own corner, and that of its authorization policy, is reached by name alone.
        let is_hidden = |key: &Value| node.path.is_empty() && key.as_str() == Some("system");
        members.retain(|(key, _)| !is_hidden(key));
        if node.dynamic.is_some() {
            if let Value::Object(object) = self.extent(node)? {
                merge(&mut members, object.to_vec());
            }
            return self.keep(Value::object(members)).map(Some);
        }
        let mut children: Vec<(&'a Value, NodeId)> = node.children.iter().map(|(key, id)| (key, *id)).collect();
        children.sort_by_key(|(key, _)| *key);
        for (key, id) in children.into_iter().filter(|(key, _)| !is_hidden(key)) {
            if let Some(value) = self.document(id)? {
                merge(&mut members, vec![(key.clone(), value.clone())]);
            }
        }
        self.keep(Value::object(members)).map(Some)
    }

    fn base_at(&self, node: &Node) -> Option<&'a Value> {
        node.path.iter().try_fold(self.world.data, |at, key| at.get(key))
    }

    /// Resolves a reference with variables where packages are; `sink` gets every solution.
    pub(super) fn dynamic(
        &mut self,
        id: NodeId,
        operands: &'a [Operand],
        to: u32,
        sink: Sink<'_, 'a>,
    ) -> Result<Flow, EvalError> {
        let Some(node) = self.policy.nodes.get(id as usize) else { return Ok(Flow::Continue) };
        let ends = node.group.is_some() || node.dynamic.is_some() || self.replaced(&node.path).is_some();
        let Some((first, rest)) = operands.split_first().filter(|_| !ends) else {
            let Some(value) = self.document(id)? else { return Ok(Flow::Continue) };
            return self.members_of(value, operands, false, to, sink);
        };
        let base = self.base_at(node);
        match first {
            Operand::Bound(src) => {
                let Some(key) = self.get(src) else { return Ok(Flow::Continue) };
                match (node.children.get(key), base.and_then(|base| base_member(base, key))) {
                    (Some(&child), _) => self.dynamic(child, rest, to, sink),
                    (None, Some(value)) => self.members_of(value, rest, true, to, sink),
                    (None, None) => Ok(Flow::Continue),
                }
            }
            Operand::Free(reg) => {
                let mut children: Vec<(&'a Value, NodeId)> = node.children.iter().map(|(key, id)| (key, *id)).collect();
                children.sort_by_key(|(key, _)| *key);
                for (key, child) in children {
                    self.set(*reg, key);
                    if self.dynamic(child, rest, to, sink)? == Flow::Stop {
                        return Ok(Flow::Stop);
                    }
                }
                let Some(Value::Object(object)) = base else { return Ok(Flow::Continue) };
                for (key, value) in object.iter().filter(|(key, _)| !node.children.contains_key(*key)) {
                    self.set(*reg, key);
                    if self.members_of(value, rest, true, to, sink)? == Flow::Stop {
                        return Ok(Flow::Stop);
                    }
                }
                Ok(Flow::Continue)
            }
        }
    }

    /// The rest of a reference, inside a value; `is_base` says whether that lies in base data.
    fn members_of(
        &mut self,
        value: &'a Value,
        operands: &'a [Operand],
        is_base: bool,
        to: u32,
        sink: Sink<'_, 'a>,
    ) -> Result<Flow, EvalError> {
        let Some((first, rest)) = operands.split_first() else {
            self.set(to, value);
            return sink(self);
        };
        match first {
            Operand::Bound(src) => {
                match self.get(src).and_then(|key| if is_base { base_member(value, key) } else { value.get(key) }) {
                    Some(inner) => self.members_of(inner, rest, is_base, to, sink),
                    None => Ok(Flow::Continue),
                }
            }
            Operand::Free(reg) => {
                let mut each = |evaluator: &mut Self, key: &'a Value, inner: &'a Value| {
                    evaluator.context.step()?;
                    evaluator.set(*reg, key);
                    evaluator.members_of(inner, rest, is_base, to, sink)
                };
                match value {
                    Value::Array(items) => {
                        for (at, inner) in items.iter().enumerate() {
                            let at = self.index(at)?;
                            if each(self, at, inner)? == Flow::Stop {
                                return Ok(Flow::Stop);
                            }
                        }
                    }
                    Value::Object(object) => {
                        for (key, inner) in object.iter() {
                            if each(self, key, inner)? == Flow::Stop {
                                return Ok(Flow::Stop);
                            }
                        }
                    }
                    Value::Set(set) => {
                        for inner in set.iter() {
                            if each(self, inner, inner)? == Flow::Stop {
                                return Ok(Flow::Stop);
                            }
                        }
                    }
                    _ => {}
                }
                Ok(Flow::Continue)
            }
        }
    }
}

/// Adds members to those that are there; objects are merged, and of other values the first stays.
fn merge(members: &mut Vec<(Value, Value)>, more: Vec<(Value, Value)>) {
    for (key, value) in more {
        match members.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(at) => {
                let Some((_, known)) = members.get_mut(at) else { continue };
                if let (Value::Object(a), Value::Object(b)) = (&*known, &value) {
                    let mut inner = a.to_vec();
                    merge(&mut inner, b.to_vec());
                    *known = Value::object(inner);
                }
            }
            Err(at) => members.insert(at, (key, value)),
        }
    }
}
