//! Rules with every name resolved and every nested call taken out: what safety is checked on and code is made of.

use std::sync::Arc;

use crate::builtins::Builtin;
use crate::syntax::Location;
use crate::value::{Text, Value};

/// A variable of one rule.
pub(crate) type VarId = u32;

/// The properties of a variable.
#[derive(Clone, Debug)]
pub(crate) struct VarInfo {
    pub name: Text,
    /// Made by the compiler; messages speak of the expression instead.
    pub generated: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Term {
    Const(Value),
    Var(VarId),
    Ref(Root, Vec<Term>),
    Array(Vec<Term>),
    Object(Vec<(Term, Term)>),
    Set(Vec<Term>),
    Comprehension(Box<Comprehension>),
}

/// The head of a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    Input,
    Data,
    Var(VarId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collection {
    Array,
    Set,
    Object,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Comprehension {
    pub kind: Collection,
    /// The members of an object.
    pub key: Option<Term>,
    pub value: Term,
    pub body: Vec<Expr>,
}

/// One statement; nothing in it but `ExprKind::Call` calls.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expr {
    pub at: Location,
    pub negated: bool,
    pub kind: ExprKind,
    pub with: Arc<[With]>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ExprKind {
    Term(Term),
    Eq {
        left: Term,
        right: Term,
        /// Written with `:=`: the left side gives nothing to the right.
        assigned: bool,
    },
    Call {
        function: Function,
        args: Vec<Term>,
        /// The target of the result; a false result fails where there is none.
        out: Option<Term>,
    },
    Every {
        key: VarId,
        value: VarId,
        domain: Term,
        body: Vec<Expr>,
    },
    Not {
        body: Vec<Expr>,
        /// The variables of the operand of `not x`, which need a value before it; none for `not { … }`.
        operands: Vec<VarId>,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Function {
    Builtin(&'static Builtin),
    /// The path under `data` of a rule with arguments.
    Rule(Arc<[Value]>),
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Builtin(a), Self::Builtin(b)) => a.name == b.name,
            (Self::Rule(a), Self::Rule(b)) => a == b,
            _ => false,
        }
    }
}

impl Function {
    /// The name as a policy writes it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Builtin(builtin) => builtin.name.to_owned(),
            Self::Rule(path) => data_path(path),
        }
    }
}

/// `data.a.b["c-d"]`.
pub fn data_path(path: &[Value]) -> String {
    let mut text = "data".to_owned();
    path.iter().for_each(|part| text.push_str(&path_part(part)));
    text
}

/// `.a` or `["a-b"]`.
pub(crate) fn path_part(key: &Value) -> String {
    match key.as_str() {
        Some(name) if is_identifier(name) => format!(".{name}"),
        _ => format!("[{key}]"),
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct With {
    pub at: Location,
    pub target: WithTarget,
    pub value: WithValue,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WithTarget {
    Input(Vec<Value>),
    Data(Vec<Value>),
    Function(Function),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WithValue {
    Term(Term),
    Function(Function),
}

/// One definition.
#[derive(Debug)]
pub(crate) struct Rule {
    pub at: Location,
    pub file: Arc<str>,
    /// Under `data`: the package and the constant part of the head.
    pub path: Vec<Value>,
    /// The rest of the head, from the first part that is no constant.
    pub tail: Vec<Term>,
    pub args: Option<Vec<Term>>,
    pub is_default: bool,
    pub is_contains: bool,
    /// The body and value, and those of each `else`.
    pub clauses: Vec<Clause>,
    pub vars: Vec<VarInfo>,
}

#[derive(Debug)]
pub(crate) struct Clause {
    pub at: Location,
    /// The value, or the member of a set.
    pub value: Term,
    pub body: Vec<Expr>,
}

impl Term {
    /// Calls `visit` with every variable that is not inside a comprehension.
    pub(crate) fn open_vars(&self, visit: &mut impl FnMut(VarId)) {
        match self {
            Self::Const(_) | Self::Comprehension(_) => {}
            Self::Var(var) => visit(*var),
            Self::Ref(root, path) => {
                if let Root::Var(var) = root {
                    visit(*var);
                }
                path.iter().for_each(|term| term.open_vars(visit));
            }
            Self::Array(items) | Self::Set(items) => items.iter().for_each(|term| term.open_vars(visit)),
            Self::Object(members) => members.iter().for_each(|(key, value)| {
                key.open_vars(visit);
                value.open_vars(visit);
            }),
        }
    }

    /// Calls `visit` with every comprehension, outermost only.
    pub(crate) fn closures<'a>(&'a self, visit: &mut impl FnMut(&'a Comprehension)) {
        match self {
            Self::Const(_) | Self::Var(_) => {}
            Self::Comprehension(it) => visit(it),
            Self::Ref(_, items) | Self::Array(items) | Self::Set(items) => {
                items.iter().for_each(|term| term.closures(visit));
            }
            Self::Object(members) => members.iter().for_each(|(key, value)| {
                key.closures(visit);
                value.closures(visit);
            }),
        }
    }

    pub(crate) fn as_const(&self) -> Option<&Value> {
        match self {
            Self::Const(value) => Some(value),
            _ => None,
        }
    }

    /// It takes work to evaluate: references and comprehensions inside.
    pub(crate) fn needs_eval(&self) -> bool {
        match self {
            Self::Const(_) | Self::Var(_) => false,
            Self::Ref(..) | Self::Comprehension(_) => true,
            Self::Array(items) | Self::Set(items) => items.iter().any(Self::needs_eval),
            Self::Object(members) => members.iter().any(|(key, value)| key.needs_eval() || value.needs_eval()),
        }
    }
}

impl Expr {
    /// Every term of the statement itself, without nested bodies.
    pub(crate) fn terms<'a>(&'a self, visit: &mut impl FnMut(&'a Term)) {
        match &self.kind {
            ExprKind::Term(term) => visit(term),
            ExprKind::Eq { left, right, .. } => {
                visit(left);
                visit(right);
            }
            ExprKind::Call { args, out, .. } => {
                args.iter().for_each(&mut *visit);
                out.iter().for_each(visit);
            }
            ExprKind::Every { domain, .. } => visit(domain),
            ExprKind::Not { .. } => {}
        }
    }

    /// The values of its `with` modifiers.
    pub(crate) fn with_terms<'a>(&'a self, visit: &mut impl FnMut(&'a Term)) {
        for with in &*self.with {
            if let WithValue::Term(term) = &with.value {
                visit(term);
            }
        }
    }

    /// All variables anywhere in it, nested bodies too.
    pub(crate) fn all_vars(&self, visit: &mut impl FnMut(VarId)) {
        let mut terms = Vec::new();
        self.terms(&mut |term| terms.push(term));
        self.with_terms(&mut |term| terms.push(term));
        for term in terms {
            term.all_vars(visit);
        }
        match &self.kind {
            ExprKind::Every { key, value, body, .. } => {
                visit(*key);
                visit(*value);
                body.iter().for_each(|expr| expr.all_vars(visit));
            }
            ExprKind::Not { body, .. } => body.iter().for_each(|expr| expr.all_vars(visit)),
            _ => {}
        }
    }
}

impl Term {
    /// All variables anywhere in it, comprehensions too.
    pub(crate) fn all_vars(&self, visit: &mut impl FnMut(VarId)) {
        self.open_vars(visit);
        let mut closures = Vec::new();
        self.closures(&mut |it| closures.push(it));
        for closure in closures {
            closure.key.iter().for_each(|term| term.all_vars(visit));
            closure.value.all_vars(visit);
            closure.body.iter().for_each(|expr| expr.all_vars(visit));
        }
    }
}
