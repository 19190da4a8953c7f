//! Walking a module's syntax tree: which documents, functions and local names each rule mentions.
//!
//! The walk is by reference chains: `data.a.b[x].c` is one mention with the static path `data, a, b`.

use std::collections::HashSet;

use super::engine::ast::{Expr, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleHead, Span};
use crate::value::as_text;

/// A reference or a call, as far as it is written out.
#[derive(Debug)]
pub struct Mention {
    pub path: Vec<String>,
    pub call: bool,
    pub line: u32,
}

/// What one rule mentions.
#[derive(Debug, Default)]
pub struct Mentions {
    pub found: Vec<Mention>,
    /// Arguments, `some` variables and `:=` targets; they hide rules of the same name.
    pub locals: HashSet<String>,
}

/// The static part of a reference and whether that is all of it.
pub fn static_path(expr: &Expr) -> (Vec<String>, bool) {
    match expr {
        Expr::Var { span, .. } => (vec![span.text().to_owned()], true),
        Expr::RefDot { refr, field, .. } => {
            let (mut path, whole) = static_path(refr);
            if whole {
                path.push(as_text(&field.1).unwrap_or(field.0.text()).to_owned());
            }
            (path, whole)
        }
        Expr::RefBrack { refr, index, .. } => {
            let (mut path, whole) = static_path(refr);
            match (whole, index.as_ref()) {
                (true, Expr::String { value, .. } | Expr::RawString { value, .. }) => {
                    path.push(as_text(value).unwrap_or_default().to_owned());
                    (path, true)
                }
                _ => (path, false),
            }
        }
        _ => (Vec::new(), false),
    }
}

/// The package of `module`, without `data`.
pub fn package(module: &Module) -> Vec<String> {
    static_path(&module.package.refr).0
}

/// The head of a rule: its reference.
pub fn head(rule: &Rule) -> &Ref<Expr> {
    match rule {
        Rule::Default { refr, .. } => refr,
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. } | RuleHead::Func { refr, .. } => refr,
        },
    }
}

impl Mentions {
    pub fn of(rule: &Rule) -> Self {
        let mut mentions = Self::default();
        match rule {
            Rule::Default { args, value, .. } => {
                args.iter().for_each(|arg| mentions.bind(arg));
                mentions.expr(value);
            }
            Rule::Spec { head, bodies, .. } => {
                mentions.head(head);
                for body in bodies {
                    if let Some(assign) = &body.assign {
                        mentions.expr(&assign.value);
                    }
                    mentions.query(&body.query);
                }
            }
        }
        mentions
    }

    fn head(&mut self, head: &RuleHead) {
        match head {
            RuleHead::Compr { refr, assign, .. } => {
                self.indexes(refr);
                assign.iter().for_each(|assign| self.expr(&assign.value));
            }
            RuleHead::Set { refr, key, .. } => {
                self.indexes(refr);
                key.iter().for_each(|key| self.expr(key));
            }
            RuleHead::Func { args, assign, .. } => {
                args.iter().for_each(|arg| self.bind(arg));
                assign.iter().for_each(|assign| self.expr(&assign.value));
            }
        }
    }

    /// Names in a pattern on the left of `:=`, in `some`, or among a function's arguments.
    fn bind(&mut self, pattern: &Expr) {
        match pattern {
            Expr::Var { span, .. } => self.bind_name(span),
            Expr::Array { items, .. } => items.iter().for_each(|item| self.bind(item)),
            Expr::Object { fields, .. } => fields.iter().for_each(|(_, _, value)| self.bind(value)),
            other => self.expr(other),
        }
    }

    fn bind_name(&mut self, name: &Span) {
        self.locals.insert(name.text().to_owned());
    }

    fn query(&mut self, query: &Query) {
        query.stmts.iter().for_each(|stmt| self.statement(stmt));
    }

    fn statement(&mut self, stmt: &LiteralStmt) {
        // The target of `with` is replaced, not read.
        stmt.with_mods.iter().for_each(|with| self.expr(&with.r#as));
        match &stmt.literal {
            Literal::SomeVars { vars, .. } => vars.iter().for_each(|name| self.bind_name(name)),
            Literal::SomeIn { key, value, collection, .. } => {
                key.iter().for_each(|key| self.bind(key));
                self.bind(value);
                self.expr(collection);
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => self.expr(expr),
            Literal::Every { key, value, domain, query, .. } => {
                key.iter().for_each(|key| self.bind_name(key));
                self.bind_name(value);
                self.expr(domain);
                self.query(query);
            }
        }
    }

    fn exprs<'a>(&mut self, exprs: impl IntoIterator<Item = &'a Ref<Expr>>) {
        exprs.into_iter().for_each(|expr| self.expr(expr));
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. } => {}
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                self.mention(expr, false);
                self.indexes(expr);
            }
            Expr::Call { fcn, params, .. } => {
                self.mention(fcn, true);
                self.exprs(params);
            }
            Expr::Array { items, .. } | Expr::Set { items, .. } => self.exprs(items),
            Expr::Object { fields, .. } => fields.iter().for_each(|(_, key, value)| self.exprs([key, value])),
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.expr(term);
                self.query(query);
            }
            Expr::ObjectCompr { key, value, query, .. } => {
                self.exprs([key, value]);
                self.query(query);
            }
            Expr::UnaryExpr { expr, .. } => self.expr(expr),
            Expr::AssignExpr { op, lhs, rhs, .. } => {
                if *op == super::engine::ast::AssignOp::ColEq {
                    self.bind(lhs)
                } else {
                    self.expr(lhs)
                }
                self.expr(rhs);
            }
            Expr::BinExpr { lhs, rhs, .. } | Expr::BoolExpr { lhs, rhs, .. } | Expr::ArithExpr { lhs, rhs, .. } => {
                self.exprs([lhs, rhs]);
            }
            Expr::Membership { key, value, collection, .. } => {
                self.exprs(key);
                self.exprs([value, collection]);
            }
        }
    }

    fn mention(&mut self, expr: &Expr, call: bool) {
        let (path, _) = static_path(expr);
        if !path.is_empty() {
            let span = expr.span();
            self.found.push(Mention { path, call, line: span.line });
        }
    }

    /// The expressions between the brackets of a reference, and whatever it starts with when that is no name.
    fn indexes(&mut self, expr: &Expr) {
        match expr {
            Expr::RefDot { refr, .. } => self.indexes(refr),
            Expr::RefBrack { refr, index, .. } => {
                self.indexes(refr);
                self.expr(index);
            }
            Expr::Var { .. } => {}
            other => self.expr(other),
        }
    }
}
