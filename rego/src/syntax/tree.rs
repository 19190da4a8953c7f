//! The syntax tree, in OPA's shapes: infix operators are calls of the built-ins that they stand for.
//!
//! Mirrors: OPA `v1/ast/policy.go` and `term.go`, v1.19.0.

use std::sync::Arc;

use super::lexer::Location;
use super::parser::Version;

/// One file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Module {
    /// Where `package` stands.
    pub at: Location,
    /// The package without `data`.
    pub package: Vec<Arc<str>>,
    pub imports: Vec<Import>,
    pub rules: Vec<Rule>,
    pub comments: Vec<Comment>,
    /// The Rego version after the imports.
    pub version: Version,
}

/// `import path as alias`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Import {
    pub at: Location,
    /// The whole path, `input` or `data` first.
    pub path: Vec<Arc<str>>,
    pub alias: Option<Arc<str>>,
}

/// A comment with its `#`, for annotations.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Comment {
    pub at: Location,
    pub text: Arc<str>,
}

/// One definition of a rule or function.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    pub at: Location,
    pub is_default: bool,
    pub head: Head,
    /// Empty where the definition has no body.
    pub body: Body,
    /// Its `else`s in order.
    pub otherwise: Vec<Else>,
}

/// The head of a rule: `path(args)`, and its value or member.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    pub at: Location,
    /// The name first, as a variable; then strings, other constants or expressions.
    pub path: Vec<Term>,
    /// Nothing for a rule that is no function.
    pub args: Option<Vec<Term>>,
    pub kind: HeadKind,
}

/// A rule gives one value or adds to a set.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum HeadKind {
    /// `true` where none was written.
    Value(Term),
    /// `contains member`, and `p[member]` of version 0.
    Contains(Term),
}

/// `else := value if body`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Else {
    pub at: Location,
    pub value: Term,
    pub body: Body,
}

pub(super) type Body = Vec<Expr>;

/// One statement of a body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expr {
    pub at: Location,
    pub negated: bool,
    pub kind: ExprKind,
    pub with: Vec<With>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ExprKind {
    /// A term that must be neither false nor undefined; a call or an infix operator too.
    Term(Term),
    /// `left = right`.
    Unify(Term, Term),
    /// `left := right`.
    Assign(Term, Term),
    /// `some x, y`.
    Some(Vec<Term>),
    /// `some key, value in collection`.
    SomeIn { key: Option<Term>, value: Term, collection: Term },
    /// `every key, value in domain { body }`.
    Every { key: Option<Term>, value: Term, domain: Term, body: Body },
    /// `not { body }`.
    Not {
        body: Body,
        /// Written as `not { … }`: a body with variables of its own.
        braces: bool,
    },
}

/// `with target as value`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct With {
    pub at: Location,
    pub target: Term,
    pub value: Term,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Term {
    pub at: Location,
    pub kind: TermKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TermKind {
    Null,
    Bool(bool),
    /// The text as written.
    Number(Arc<str>),
    String(Arc<str>),
    /// A wildcard is `_` followed by a number that no other wildcard of the file has.
    Var(Arc<str>),
    /// A head and at least one operand.
    Ref(Box<Term>, Vec<Term>),
    /// A function (a variable or a reference) and its arguments.
    Call(Box<Term>, Vec<Term>),
    Array(Vec<Term>),
    Set(Vec<Term>),
    Object(Vec<(Term, Term)>),
    ArrayComprehension(Box<Term>, Body),
    SetComprehension(Box<Term>, Body),
    ObjectComprehension(Box<(Term, Term)>, Body),
    /// `$"text {expression}"`: constants and expressions in turn.
    Template(Vec<Expr>),
}
