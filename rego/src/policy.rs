//! A compiled policy: immutable, shared by all threads.

mod index;
mod ops;

use std::collections::HashMap;
use std::sync::Arc;

pub(crate) use self::index::{Condition, Facts, Index, KeyPath, Test};
pub(crate) use self::ops::{Call, Code, Comparison, Mock, MockValue, Op, Operand, Override, Reg, Replacement, Src};
use crate::compile::Reads;
use crate::syntax::Location;
use crate::value::Value;

/// A rule, by its place among the groups of a policy.
pub(crate) type GroupId = u32;
/// A node in the tree of packages and rules.
pub(crate) type NodeId = u32;

/// The place of the tree's root, `data`.
pub(crate) const ROOT: NodeId = 0;

/// Rules and data, ready to be asked.
#[derive(Debug)]
pub struct Policy {
    pub(crate) groups: Vec<RuleSet>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) data: Value,
    pub(crate) waits: bool,
    /// The source positions of traced evaluations.
    pub(crate) places: Vec<crate::host::Place>,
    pub(crate) names: NameTable,
    pub(crate) types: crate::compile::Types,
    pub(crate) shared: crate::compile::Shared,
}

/// For compiling queries later: the rules of each package, and the imports of its modules.
#[derive(Debug, Default)]
pub(crate) struct NameTable {
    pub rules: HashMap<Vec<Value>, std::collections::HashSet<Arc<str>>>,
}

/// A node in the tree of `data`.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// From `data` to here.
    pub path: Vec<Value>,
    pub children: HashMap<Value, NodeId>,
    /// The rule here.
    pub group: Option<GroupId>,
    /// The rules whose heads go on from here with variables.
    pub dynamic: Option<GroupId>,
}

/// The kind of document that the definitions of one rule make together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    Complete,
    Function,
    /// `contains`.
    Set,
    /// Heads with variables: an object, nested as deep as the heads are long.
    Object,
}

/// All definitions of one rule.
#[derive(Debug)]
pub(crate) struct RuleSet {
    pub path: Vec<Value>,
    pub kind: GroupKind,
    pub rules: Vec<RuleCode>,
    pub default: Option<RuleCode>,
    pub index: Index,
    /// The rules that its definitions refer to.
    pub refers_to: Vec<GroupId>,
    /// The reads of its definitions themselves.
    pub reads: Reads,
    /// All definitions give this one value, so the first that succeeds decides.
    pub constant: Option<Value>,
    /// The heads are `contains`.
    pub contains: bool,
}

/// One definition.
#[derive(Debug)]
pub(crate) struct RuleCode {
    pub at: Location,
    pub file: Arc<str>,
    /// The body and value, and those of each `else`.
    pub clauses: Vec<Code>,
    /// The first clause with the key of the member that is asked for in register 0.
    pub keyed: Option<Code>,
}

impl Policy {
    /// The base document.
    pub fn data(&self) -> &Value {
        &self.data
    }

    /// A rule may wait for something outside of the process, such as `http.send`.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// The source positions that evaluations report; none unless the policy was compiled for tracing.
    pub fn places(&self) -> &[crate::host::Place] {
        &self.places
    }

    /// The group of the rule at `path` under `data`.
    pub fn group_at(&self, path: &[Value]) -> Option<GroupId> {
        self.nodes.get(self.node_at(path)? as usize)?.group
    }

    /// The place at `path` under `data`.
    pub fn node_at(&self, path: &[Value]) -> Option<NodeId> {
        path.iter().try_fold(ROOT, |node, key| self.nodes.get(node as usize)?.children.get(key).copied())
    }

    /// Rules or data can give the document at `path` a value: there is a rule at, above or below it, or data at it.
    pub fn can_define(&self, path: &[Value]) -> bool {
        let in_data = path.iter().try_fold(&self.data, |data, key| data.get(key));
        if in_data.is_some() {
            return true;
        }
        let is_value = |group: Option<GroupId>| {
            let group = group.and_then(|id| self.groups.get(id as usize));
            group.is_some_and(|group| group.kind != GroupKind::Function)
        };
        let mut node = ROOT;
        for key in path {
            let Some(here) = self.nodes.get(node as usize) else { return false };
            if is_value(here.group) || is_value(here.dynamic) {
                return true;
            }
            let Some(next) = here.children.get(key) else { return false };
            node = *next;
        }
        let mut below = vec![node];
        while let Some(here) = below.pop().and_then(|node| self.nodes.get(node as usize)) {
            if is_value(here.group) || is_value(here.dynamic) {
                return true;
            }
            below.extend(here.children.values());
        }
        false
    }

    /// The length of the package in the path of a rule.
    pub fn package_len(&self, path: &[Value]) -> usize {
        let is_rule = |at: &usize| {
            let (Some(package), Some(Value::String(name))) = (path.get(..*at), path.get(*at)) else { return false };
            self.names.rules.get(package).is_some_and(|rules| rules.contains(&**name))
        };
        (0..path.len()).rev().find(is_rule).unwrap_or(0)
    }

    /// The paths of all rules.
    pub fn rule_paths(&self) -> impl Iterator<Item = (&[Value], GroupKind)> {
        self.groups.iter().map(|group| (group.path.as_slice(), group.kind))
    }

    /// Where the first definition of the rule at `path` stands.
    pub fn rule_location(&self, path: &[Value]) -> Option<(Arc<str>, Location)> {
        let node = self.nodes.get(self.node_at(path)? as usize)?;
        let group = self.groups.get(node.group.or(node.dynamic)? as usize)?;
        let rule = group.rules.first().or(group.default.as_ref())?;
        Some((rule.file.clone(), rule.at))
    }
}
