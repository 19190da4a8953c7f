//! Queries: bodies without a rule, and their variables.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::{Lowerer, Tree};
use crate::compile::hir::{Expr, ExprKind, Function, Term};
use crate::compile::resolve::resolve_query;
use crate::compile::{CompileError, Names, check, safety};
use crate::eval::Solution;
use crate::policy::{Op, Policy, Src};
use crate::syntax::{self, Version};
use crate::value::{Text, Value};

/// A query ready to run on the policy that it was compiled for.
#[derive(Debug)]
pub struct CompiledQuery {
    pub ops: Box<[Op]>,
    pub frame: u32,
    /// The variables that the answer shows.
    pub shown: BTreeMap<Text, Src>,
    /// The value of each statement, in the order in which they were written.
    pub values: Vec<Src>,
    /// Row and column of each of these statements.
    pub places: Vec<(u32, u32)>,
    /// A false value is an answer.
    shows_false: bool,
}

/// Compiles `text` as if it stood in `package`.
pub fn compile_query(
    policy: &Policy,
    text: &str,
    version: Version,
    package: &[Value],
) -> Result<CompiledQuery, Vec<CompileError>> {
    let file: std::sync::Arc<str> = "".into();
    let body = syntax::parse_query(text, version).map_err(|error| {
        vec![CompileError { code: "rego_parse_error", file: file.clone(), at: error.at, message: error.message }]
    })?;
    let none = std::collections::HashSet::new();
    let names = Names {
        file: file.clone(),
        strict: false,
        package: package.to_vec(),
        rules: policy.names.rules.get(package).unwrap_or(&none),
        imports: std::collections::HashMap::new(),
        used: std::cell::RefCell::default(),
        shared: &policy.shared,
    };
    let resolved = resolve_query(&names, &body)?;
    let count = resolved.body.len();
    let ordered = safety::reorder(resolved.body.clone(), &safety::Vars::new()).map_err(|found| {
        let message = |var: u32| match resolved.vars.get(var as usize) {
            Some(info) if !info.generated => format!("var {} is unsafe", info.name),
            _ => "expression is unsafe".to_owned(),
        };
        let error = |it: safety::Unsafe| CompileError {
            code: "rego_unsafe_var_error",
            file: file.clone(),
            at: it.at,
            message: message(it.var),
        };
        found.into_iter().map(error).collect::<Vec<_>>()
    })?;
    let errors = check::query(&policy.types, &ordered, &resolved.vars, &file);
    if !errors.is_empty() {
        return Err(errors);
    }
    let kinds = policy.groups.iter().map(|group| group.kind).collect();
    let tree = Tree {
        nodes: &policy.nodes,
        kinds,
        replaces_comparisons: super::replaces_comparisons(&ordered),
        traced: None,
        waits: Cell::default(),
    };
    let mut lowerer = Lowerer::new(&tree, &resolved.vars, &file);
    lowerer.keeps_equal = true;
    let mut values = vec![Src::Const(Value::Bool(true)); count];
    for expr in &ordered {
        let place = resolved.body.iter().position(|it| it.at == expr.at && it.kind == expr.kind);
        let (plain, changed) = (!expr.negated, !expr.with.is_empty());
        let value = match &expr.kind {
            // The answer shows the value, which may be false.
            ExprKind::Term(term) if plain && !changed => Some(lowerer.eval(term)),
            ExprKind::Term(term) if plain => {
                let out = lowerer.temporary_free();
                let kind = ExprKind::Eq { left: out.clone(), right: term.clone(), assigned: false };
                lowerer.expr(&Expr { kind, ..expr.clone() });
                Some(lowerer.eval(&out))
            }
            ExprKind::Call { function, args, out: None } if plain && shows_result(function) => {
                let out = lowerer.temporary_free();
                let (function, args) = (function.clone(), args.clone());
                let kind = ExprKind::Call { function, args, out: Some(out.clone()) };
                lowerer.expr(&Expr { kind, ..expr.clone() });
                Some(lowerer.eval(&out))
            }
            _ => {
                lowerer.expr(expr);
                None
            }
        };
        if let (Some(value), Some(slot)) = (value, place.and_then(|place| values.get_mut(place))) {
            *slot = value;
        }
    }
    let shown = resolved
        .shown
        .iter()
        .filter_map(|(name, var)| Some((name.clone(), lowerer.places.get(var)?.clone())))
        .collect();
    let places = body
        .iter()
        .filter(|expr| !matches!(expr.kind, syntax::ExprKind::Some(_)))
        .map(|expr| (expr.at.row, expr.at.col))
        .collect();
    let values = resolved.places.iter().filter_map(|&place| values.get(place).cloned()).collect();
    let shows_false = count == 1 && !resolved.body.iter().any(iterates);
    Ok(CompiledQuery { ops: lowerer.ops.into(), frame: lowerer.most, shown, values, places, shows_false })
}

impl CompiledQuery {
    /// The row is a solution: a lone statement that ranges over nothing is one whatever its value.
    pub fn is_solution(&self, row: &Solution) -> bool {
        self.shows_false || !row.values.iter().any(Value::is_false)
    }
}

/// The statement ranges over something: a reference has a variable in it, or a relation gives several results.
///
/// Mirrors: `iteration` of OPA `v1/rego/rego.go`, v1.19.0.
fn iterates(expr: &Expr) -> bool {
    match &expr.kind {
        ExprKind::Term(term) => ranges(term),
        ExprKind::Eq { left, right, .. } => ranges(left) || ranges(right),
        ExprKind::Call { function, args, out } => {
            let is_relation = matches!(function, Function::Builtin(builtin) if builtin.relation);
            is_relation || args.iter().chain(out).any(ranges)
        }
        ExprKind::Every { domain, body, .. } => ranges(domain) || body.iter().any(iterates),
        ExprKind::Not { body, .. } => body.iter().any(iterates),
    }
}

fn ranges(term: &Term) -> bool {
    match term {
        Term::Const(_) | Term::Var(_) | Term::Comprehension(_) => false,
        Term::Ref(_, path) => path.iter().any(|part| matches!(part, Term::Var(_)) || ranges(part)),
        Term::Array(items) | Term::Set(items) => items.iter().any(ranges),
        Term::Object(members) => members.iter().any(|(key, value)| ranges(key) || ranges(value)),
    }
}

fn shows_result(function: &Function) -> bool {
    !matches!(function, Function::Builtin(builtin) if builtin.name == "print" || builtin.relation)
}

impl Lowerer<'_> {
    /// A variable of the compiler's own that has no value yet.
    fn temporary_free(&mut self) -> Term {
        let var = self.next_var;
        self.next_var = self.next_var.saturating_sub(1);
        Term::Var(var)
    }
}
