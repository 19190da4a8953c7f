//! The types of rules, by their places under `data`.
//!
//! Mirrors: `typeTreeNode` of OPA `v1/ast/env.go`, v1.19.0.

use std::collections::BTreeMap;

use crate::typing::Type;
use crate::value::Value;

/// The types of rules by their paths.
#[derive(Debug, Default)]
pub(crate) struct Types {
    pub(super) root: Place,
}

#[derive(Debug, Default)]
pub(super) struct Place {
    /// The types of the rule at this path.
    pub(super) own: Option<Type>,
    pub(super) children: BTreeMap<Value, Place>,
}

impl Types {
    /// Adds what one definition gives.
    ///
    /// Mirrors: `typeTreeNode.Insert`.
    pub(super) fn insert(&mut self, path: &[Value], given: Type) {
        if given == Type::Unknown {
            return;
        }
        let mut here = &mut self.root;
        for (depth, key) in path.iter().enumerate() {
            here = here.children.entry(key.clone()).or_default();
            let below = path.get(depth.saturating_add(1)..).unwrap_or_default();
            if let Some(Type::Object(_)) = here.own
                && !below.is_empty()
            {
                here.own = here.own.take().map(|own| with_member(own, below, &given));
            }
        }
        let is_object = matches!(given, Type::Object(_));
        let mut own = match here.own.take() {
            Some(before) => before.merge(given),
            None => given,
        };
        if is_object {
            for (path, below) in here.leaves() {
                own = with_member(own, &path, &below);
            }
        }
        here.own = Some(own);
    }
}

/// The object with a member at `path` among those whose keys are not known.
fn with_member(object: Type, path: &[Value], given: &Type) -> Type {
    let Type::Object(known) = &object else { return object };
    let Some((key, below)) = path.split_first() else { return object };
    let value = match below {
        [] => given.clone(),
        below => with_member(Type::object(Vec::new(), None), below, given),
    };
    let rest = match &known.rest {
        Some((own, values)) => (own.clone().or(Type::of(key)), values.clone().or(value)),
        None => (Type::of(key), value),
    };
    Type::object(known.members.clone(), Some(rest))
}

impl Place {
    /// The rules below, outermost only.
    fn leaves(&self) -> Vec<(Vec<Value>, Type)> {
        let mut found = Vec::new();
        let mut open: Vec<(Vec<Value>, &Self)> =
            self.children.iter().map(|(key, child)| (vec![key.clone()], child)).collect();
        while let Some((path, place)) = open.pop() {
            match &place.own {
                Some(own) => found.push((path, own.clone())),
                None => open.extend(place.children.iter().map(|(key, child)| {
                    let below = path.iter().cloned().chain([key.clone()]).collect();
                    (below, child)
                })),
            }
        }
        found
    }

    /// The type of everything from here.
    pub(super) fn extent(&self) -> Type {
        match &self.own {
            Some(own) => own.clone(),
            None => {
                let scalar = |key: &Value| matches!(key, Value::String(_) | Value::Number(_) | Value::Bool(_));
                let children = self.children.iter().filter(|(key, _)| scalar(key));
                let members = children.map(|(key, child)| (key.clone(), child.extent())).collect();
                // Data may exist beside the rules.
                Type::object(members, Some((Type::String, Type::any())))
            }
        }
    }
}
