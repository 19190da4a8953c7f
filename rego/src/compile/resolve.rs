//! Names to meanings: imports, rules of the package, local variables and their scopes; nested calls become statements.
//!
//! Mirrors: the stages `ResolveRefs`, `RewriteLocalVars`, `RewriteTemplateStrings`, `RewritePrintCalls`,
//! `RewriteExprTerms`, `RewriteComprehensionTerms` and `RewriteRefsInHead` of OPA `v1/ast/compile.go`, v1.19.0.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::annotations::OfRule;
use super::hir::{Collection, Comprehension, Expr, ExprKind, Function, Root, Term, VarId, VarInfo, data_path};
use super::{CompileError, Names};
use crate::syntax::{self, Location, TermKind};
use crate::value::{Number, Value};

mod calls;
mod rules;
mod statements;

pub(crate) use self::rules::{resolve_query, resolve_rule};

/// The origin of a name in a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occurrence {
    Argument,
    Assigned,
    Declared,
    Seen,
}

/// The name of a variable that no author wrote.
const GENERATED: &str = "_";
const ASSIGNED_IN_NEGATION: &str = "cannot assign vars inside negated expression";

type Scope = HashMap<Arc<str>, (VarId, Occurrence)>;
type Hidden = HashSet<Arc<str>>;

/// Resolves one rule or query.
pub(super) struct Resolver<'a> {
    names: &'a Names<'a>,
    vars: Vec<VarInfo>,
    scopes: Vec<Scope>,
    /// The names that `some` and `every` declare in the open scopes.
    pending: Vec<(VarId, Occurrence, Location)>,
    /// Names that are declared somewhere in the bodies around: they hide rules and imports.
    hidden: Vec<Hidden>,
    /// Variables that were never declared; one for each name.
    loose: HashMap<Arc<str>, VarId>,
    errors: Vec<CompileError>,
    /// Where statements for nested calls go.
    body: Vec<Expr>,
    /// While arguments are resolved: what their templates mention gets values in the body.
    in_arguments: bool,
    /// The annotations of the rule, for `rego.metadata.*`.
    metadata: Option<OfRule<'a>>,
}

type Modifiers = Arc<[super::hir::With]>;

impl<'a> Resolver<'a> {
    fn new(names: &'a Names<'a>) -> Self {
        Self {
            names,
            vars: Vec::new(),
            scopes: vec![Scope::new()],
            pending: Vec::new(),
            hidden: Vec::new(),
            loose: HashMap::new(),
            errors: Vec::new(),
            body: Vec::new(),
            in_arguments: false,
            metadata: None,
        }
    }

    fn fail(&mut self, code: &'static str, at: Location, message: impl Into<String>) {
        self.errors.push(CompileError { code, file: self.names.file.clone(), at, message: message.into() });
    }

    // Variables

    fn make_var(&mut self, name: &str, generated: bool) -> VarId {
        let id = VarId::try_from(self.vars.len()).unwrap_or(VarId::MAX);
        self.vars.push(VarInfo { name: name.into(), generated });
        id
    }

    fn generate(&mut self) -> VarId {
        self.make_var(GENERATED, true)
    }

    fn declared(&self, name: &str) -> Option<VarId> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).map(|(id, _)| *id)
    }

    fn declare(&mut self, name: &Arc<str>, how: Occurrence, at: Location) -> VarId {
        if self.names.strict && how != Occurrence::Argument && is_root(name) {
            let message = format!("variables must not shadow {name} (use a different variable name)");
            self.fail("rego_compile_error", at, message);
        }
        let before = self.scopes.last().and_then(|scope| scope.get(name)).map(|(_, occurrence)| *occurrence);
        if let Some(before) = before {
            let message = match before {
                Occurrence::Seen => format!("var {name} referenced above"),
                Occurrence::Assigned => format!("var {name} assigned above"),
                Occurrence::Declared => format!("var {name} declared above"),
                Occurrence::Argument => format!("arg {name} redeclared"),
            };
            self.fail("rego_compile_error", at, message);
        }
        let id = self.make_var(name, is_wildcard(name));
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.clone(), (id, how));
        }
        let matters = match how {
            Occurrence::Declared => true,
            Occurrence::Assigned => self.names.shared.refuses_unused,
            Occurrence::Argument | Occurrence::Seen => false,
        };
        if matters && !is_wildcard(name) {
            self.pending.push((id, how, at));
        }
        id
    }

    fn name_of(&self, var: VarId) -> String {
        self.vars.get(var as usize).map(|info| info.name.to_string()).unwrap_or_default()
    }

    /// Refuses what was declared since `mark` and stands nowhere in `body` and `heads`.
    ///
    /// Mirrors: `checkUnusedDeclaredVars`.
    fn refuse_unused<'t>(&mut self, mark: usize, body: &[Expr], heads: impl Iterator<Item = &'t Term>) {
        let declared = self.pending.split_off(mark.min(self.pending.len()));
        if declared.is_empty() {
            return;
        }
        let mut seen: HashMap<VarId, u32> = HashMap::new();
        let mut see = |var| *seen.entry(var).or_default() += 1;
        body.iter().for_each(|expr| expr.all_vars(&mut see));
        heads.for_each(|term| term.all_vars(&mut see));
        // An assignment names its variable, too.
        let own = |how: Occurrence| u32::from(how == Occurrence::Assigned);
        let unused = declared.into_iter().filter(|(var, how, _)| seen.get(var).copied().unwrap_or(0) <= own(*how));
        for (var, how, at) in unused {
            let name = self.name_of(var);
            let how = if how == Occurrence::Assigned { "assigned" } else { "declared" };
            self.fail("rego_compile_error", at, format!("{how} var {name} unused"));
        }
    }

    fn is_hidden(&self, name: &str) -> bool {
        self.hidden.iter().any(|names| names.contains(name))
    }

    /// An undeclared variable: the same one in the whole rule.
    fn loose(&mut self, name: &Arc<str>) -> VarId {
        let id = match self.loose.get(name) {
            Some(id) => *id,
            None => {
                let id = self.make_var(name, is_wildcard(name));
                self.loose.insert(name.clone(), id);
                id
            }
        };
        if let Some(scope) = self.scopes.last_mut() {
            scope.entry(name.clone()).or_insert((id, Occurrence::Seen));
        }
        id
    }

    /// The meaning of the name at the head of a reference.
    fn root(&mut self, name: &Arc<str>) -> (Root, Vec<Term>) {
        if let Some(id) = self.declared(name) {
            return (Root::Var(id), Vec::new());
        }
        if !self.is_hidden(name) {
            match &**name {
                "input" => return (Root::Input, Vec::new()),
                "data" => return (Root::Data, Vec::new()),
                _ => {}
            }
            if let Some(path) = self.names.global(name) {
                return path;
            }
        }
        (Root::Var(self.loose(name)), Vec::new())
    }

    // Terms

    /// Resolves a term; calls inside it become statements of the current body.
    fn term(&mut self, term: &syntax::Term, with: &Modifiers) -> Term {
        match &term.kind {
            TermKind::Null => Term::Const(Value::Null),
            TermKind::Bool(it) => Term::Const(Value::Bool(*it)),
            TermKind::Number(text) => match Number::parse(text) {
                Some(number) => Term::Const(Value::Number(number)),
                None => {
                    self.fail("rego_parse_error", term.at, "number too big");
                    Term::Const(Value::Null)
                }
            },
            TermKind::String(text) => Term::Const(Value::from(&**text)),
            TermKind::Var(name) => match self.root(name) {
                (Root::Var(id), path) if path.is_empty() => Term::Var(id),
                (root, path) => {
                    self.refuse_function(root, &path, term.at);
                    Term::Ref(root, path)
                }
            },
            TermKind::Ref(head, path) => self.reference(head, path, with),
            TermKind::Call(function, args) => self.nested_call(term.at, function, args, with),
            TermKind::Array(items) => {
                let items = items.iter().map(|item| self.term(item, with)).collect();
                constant(Term::Array(items))
            }
            TermKind::Set(items) => {
                let items = items.iter().map(|item| self.term(item, with)).collect();
                constant(Term::Set(items))
            }
            TermKind::Object(members) => {
                let members =
                    members.iter().map(|(key, value)| (self.term(key, with), self.term(value, with))).collect();
                constant(Term::Object(members))
            }
            TermKind::ArrayComprehension(value, body) => self.comprehension(Collection::Array, None, value, body),
            TermKind::SetComprehension(value, body) => self.comprehension(Collection::Set, None, value, body),
            TermKind::ObjectComprehension(pair, body) => {
                self.comprehension(Collection::Object, Some(&pair.0), &pair.1, body)
            }
            TermKind::Template(parts) => self.template(term.at, parts, with),
        }
    }

    fn reference(&mut self, head: &syntax::Term, path: &[syntax::Term], with: &Modifiers) -> Term {
        let (root, mut terms) = match &head.kind {
            TermKind::Var(name) => self.root(name),
            _ => {
                // `[1, 2][i]` and `f(x).y`: the head gets a name first.
                let id = match self.term(head, with) {
                    Term::Var(id) => id,
                    term => {
                        let id = self.generate();
                        self.push(head.at, ExprKind::Eq { left: Term::Var(id), right: term, assigned: true }, with);
                        id
                    }
                };
                (Root::Var(id), Vec::new())
            }
        };
        for part in path {
            let part = self.term(part, with);
            terms.push(part);
        }
        self.refuse_function(root, &terms, head.at);
        Term::Ref(root, terms)
    }

    /// A function has no value of its own. `not f`, where `not f(x)` was meant, must not be true.
    fn refuse_function(&mut self, root: Root, path: &[Term], at: Location) {
        if root != Root::Data {
            return;
        }
        let constants: Vec<Value> = path.iter().map_while(|part| part.as_const().cloned()).collect();
        if let Some(function) =
            (1..=constants.len()).filter_map(|len| constants.get(..len)).find(|path| self.names.is_function(path))
        {
            let message = format!("function {} used as reference, not called", data_path(function));
            self.fail("rego_type_error", at, message);
        }
    }

    fn push(&mut self, at: Location, kind: ExprKind, with: &Modifiers) {
        self.body.push(Expr { at, negated: false, kind, with: with.clone() });
    }

    fn comprehension(
        &mut self,
        kind: Collection,
        key: Option<&syntax::Term>,
        value: &syntax::Term,
        body: &[syntax::Expr],
    ) -> Term {
        let none: Modifiers = Arc::new([]);
        let outer = std::mem::take(&mut self.body);
        let mark = self.pending.len();
        self.scopes.push(Scope::new());
        self.hidden.push(declared_names(body));
        self.statements(body);
        let key = key.map(|key| self.head_term(key, &none));
        let value = self.head_term(value, &none);
        self.hidden.pop();
        self.scopes.pop();
        let body = std::mem::replace(&mut self.body, outer);
        self.refuse_unused(mark, &body, key.iter().chain([&value]));
        Term::Comprehension(Box::new(Comprehension { kind, key, value, body }))
    }

    /// The term of a head: what takes work is bound to a name at the end of the body.
    fn head_term(&mut self, term: &syntax::Term, with: &Modifiers) -> Term {
        let resolved = self.term(term, with);
        if !resolved.needs_eval() {
            return resolved;
        }
        let id = self.generate();
        self.push(term.at, ExprKind::Eq { left: Term::Var(id), right: resolved, assigned: true }, with);
        Term::Var(id)
    }

    // Statements

    fn statements(&mut self, body: &[syntax::Expr]) {
        for expr in body {
            self.statement(expr);
        }
    }

    /// A body with a scope of its own.
    fn nested_body(&mut self, body: &[syntax::Expr]) -> Vec<Expr> {
        let outer = std::mem::take(&mut self.body);
        self.statements(body);
        std::mem::replace(&mut self.body, outer)
    }

    fn function(&mut self, at: Location, operator: &syntax::Term) -> Option<Function> {
        let (name, rest): (&Arc<str>, &[syntax::Term]) = match &operator.kind {
            TermKind::Var(name) => (name, &[]),
            TermKind::Ref(head, path) => match &head.kind {
                TermKind::Var(name) => (name, path),
                _ => return None,
            },
            _ => return None,
        };
        let mut path = Vec::new();
        for part in rest {
            match self.term(part, &(Arc::new([]) as Modifiers)) {
                Term::Const(value) => path.push(value),
                _ => {
                    self.fail("rego_type_error", at, "undefined function");
                    return None;
                }
            }
        }
        if self.declared(name).is_some() && !self.loose.contains_key(name) {
            self.fail("rego_compile_error", at, format!("called function {name} shadowed"));
            return None;
        }
        if !self.is_hidden(name) {
            let global = if &**name == "data" { Some((Root::Data, Vec::new())) } else { self.names.global(name) };
            if let Some((Root::Data, prefix)) = global {
                let prefix = prefix.iter().filter_map(|term| term.as_const().cloned());
                return Some(Function::Rule(prefix.chain(path).collect()));
            }
        }
        let mut full = name.to_string();
        for part in &path {
            full.push('.');
            full.push_str(part.as_str().unwrap_or("?"));
        }
        match self.names.builtin(&full) {
            Some(builtin) => Some(Function::Builtin(builtin)),
            None => {
                let message = self.names.refusal(&full);
                self.fail("rego_type_error", at, message);
                None
            }
        }
    }
}

pub(super) fn is_wildcard(name: &str) -> bool {
    name.strip_prefix('_').is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Folds a collection of constants into one constant.
pub(super) fn constant(term: Term) -> Term {
    let all = |items: &[Term]| items.iter().map(|item| item.as_const().cloned()).collect::<Option<Vec<_>>>();
    match &term {
        Term::Array(items) => all(items).map(Value::array),
        Term::Set(items) => all(items).map(Value::set),
        Term::Object(members) => members
            .iter()
            .map(|(key, value)| Some((key.as_const()?.clone(), value.as_const()?.clone())))
            .collect::<Option<Vec<_>>>()
            .map(Value::object),
        _ => None,
    }
    .map_or(term, Term::Const)
}

/// The name is one of the two documents.
fn is_root(name: &str) -> bool {
    matches!(name, "input" | "data")
}

/// The names that a body declares with `some` and `:=`, nested comprehensions apart.
///
/// Mirrors: `declaredVars`.
fn declared_names(body: &[syntax::Expr]) -> Hidden {
    let mut names = Hidden::new();
    for expr in body {
        match &expr.kind {
            syntax::ExprKind::Assign(left, _) => syntax_vars(left, &mut names),
            syntax::ExprKind::Some(terms) => terms.iter().for_each(|term| syntax_vars(term, &mut names)),
            syntax::ExprKind::SomeIn { key, value, .. } => {
                key.iter().for_each(|key| syntax_vars(key, &mut names));
                syntax_vars(value, &mut names);
            }
            syntax::ExprKind::Every { body, .. } | syntax::ExprKind::Not { body, .. } => {
                names.extend(declared_names(body));
            }
            _ => {}
        }
    }
    names
}

/// All names in a term, nested bodies apart.
fn syntax_vars(term: &syntax::Term, names: &mut Hidden) {
    match &term.kind {
        TermKind::Var(name) => {
            names.insert(name.clone());
        }
        TermKind::Ref(head, path) => {
            syntax_vars(head, names);
            path.iter().for_each(|term| syntax_vars(term, names));
        }
        TermKind::Call(_, items) | TermKind::Array(items) | TermKind::Set(items) => {
            items.iter().for_each(|term| syntax_vars(term, names));
        }
        TermKind::Object(members) => members.iter().for_each(|(key, value)| {
            syntax_vars(key, names);
            syntax_vars(value, names);
        }),
        _ => {}
    }
}

/// The variables that a pattern binds: alone, in arrays and in the values of objects.
fn pattern_vars(term: &syntax::Term, vars: &mut Vec<(Arc<str>, Location)>) {
    match &term.kind {
        TermKind::Var(name) if !vars.iter().any(|(known, _)| known == name) => {
            vars.push((name.clone(), term.at));
        }
        TermKind::Array(items) => items.iter().for_each(|term| pattern_vars(term, vars)),
        TermKind::Object(members) => members.iter().for_each(|(_, value)| pattern_vars(value, vars)),
        _ => {}
    }
}
