//! Statements of a body: expressions, `some`, `every`, `not` and `with`.

use super::{Body, Expr, ExprKind, Lexeme, Parsed, Parser, SyntaxError, Term, TermKind};
use crate::syntax::tree::With;

impl Parser {
    /// The statements up to the closing brace, which is taken.
    pub(super) fn body(&mut self) -> Parsed<Body> {
        self.nested(|parser| {
            if parser.is_sign("}") {
                return Err(parser.error("found empty body"));
            }
            parser.statements("}")
        })
    }

    /// The statements up to the sign `end`, which is taken.
    pub(super) fn statements(&mut self, end: &str) -> Parsed<Body> {
        let mut body = Vec::new();
        loop {
            body.push(self.literal()?);
            if self.take_sign(";")? {
                if self.take_sign(end)? {
                    return Ok(body);
                }
                continue;
            }
            if self.take_sign(end)? {
                return Ok(body);
            }
            if !self.token().on_new_line {
                return Err(self.unexpected(&format!(r"expected \n or ; or {end}")));
            }
        }
    }

    pub(super) fn literal(&mut self) -> Parsed<Expr> {
        let at = self.here();
        let negated = self.take_keyword("not")?;
        if negated && self.not_bodies && self.is_sign("{") {
            self.step()?;
            let body = self.body()?;
            let with = self.with_modifiers()?;
            return Ok(Expr { at, negated: false, kind: ExprKind::Not { body, braces: true }, with });
        }
        if self.is_keyword("some") {
            return if negated { Err(self.unexpected("illegal negation of 'some'")) } else { self.some() };
        }
        if self.is_keyword("every") {
            return if negated { Err(self.unexpected("illegal negation of 'every'")) } else { self.every() };
        }
        let kind = self.expression()?;
        let with = self.with_modifiers()?;
        if negated && self.not_bodies {
            let inner = Expr { at, negated: false, kind, with: Vec::new() };
            return Ok(Expr { at, negated: false, kind: ExprKind::Not { body: vec![inner], braces: false }, with });
        }
        Ok(Expr { at, negated, kind, with })
    }

    fn expression(&mut self) -> Parsed<ExprKind> {
        let left = self.infix(true)?;
        if self.take_sign(":=")? {
            return Ok(ExprKind::Assign(left, self.infix(true)?));
        }
        if self.take_sign("=")? {
            return Ok(ExprKind::Unify(left, self.infix(true)?));
        }
        Ok(ExprKind::Term(left))
    }

    fn some(&mut self) -> Parsed<Expr> {
        let at = self.here();
        self.step()?;
        if self.keywords.r#in
            && let Ok(kind) = self.attempt(Self::some_in)
        {
            let with = self.with_modifiers()?;
            return Ok(Expr { at, negated: false, kind, with });
        }
        let mut names = Vec::new();
        loop {
            let place = self.here();
            let Some(name) = self.name() else { return Err(self.unexpected("expected var")) };
            self.step()?;
            let kind = if &*name == "_" { self.wildcard() } else { TermKind::Var(name) };
            names.push(Term { at: place, kind });
            if !self.take_sign(",")? {
                let kind = ExprKind::Some(names);
                return Ok(Expr { at, negated: false, kind, with: Vec::new() });
            }
        }
    }

    /// `value in collection` or `key, value in collection`.
    fn some_in(&mut self) -> Parsed<ExprKind> {
        let term = self.infix(true)?;
        match member_of(term) {
            Some((key, value, collection)) => Ok(ExprKind::SomeIn { key, value, collection }),
            None => Err(self.unexpected("expected `x in xs` or `x, y in xs` expression")),
        }
    }

    fn every(&mut self) -> Parsed<Expr> {
        let at = self.here();
        self.step()?;
        let term = self.infix(true)?;
        let Some((key, value, domain)) = member_of(term) else {
            return Err(self.unexpected("expected `x[, y] in xs { ... }` expression"));
        };
        if key.as_ref().is_some_and(|key| !matches!(key.kind, TermKind::Var(_))) {
            return Err(self.unexpected("expected key to be a variable"));
        }
        if !matches!(value.kind, TermKind::Var(_)) {
            return Err(self.unexpected("expected value to be a variable"));
        }
        if !self.is_sign("{") {
            return Err(self.unexpected("missing body"));
        }
        self.step()?;
        let body = self.body()?;
        let with = self.with_modifiers()?;
        Ok(Expr { at, negated: false, kind: ExprKind::Every { key, value, domain, body }, with })
    }

    fn with_modifiers(&mut self) -> Parsed<Vec<With>> {
        let mut modifiers = Vec::new();
        while self.is_keyword("with") {
            let at = self.here();
            self.step()?;
            if self.name().is_none() {
                return Err(self.unexpected("expected ident"));
            }
            let target = self.term()?;
            if !matches!(target.kind, TermKind::Ref(..) | TermKind::Var(_)) {
                return Err(self.unexpected("expected with target path"));
            }
            if !self.take_keyword("as")? {
                return Err(self.unexpected("expected as keyword"));
            }
            let value = self.infix(true)?;
            modifiers.push(With { at, target, value });
        }
        Ok(modifiers)
    }

    /// `$"text {expression} text"`. An expression must yield one value: no `not`, `some`, `every`, `=` or `:=`.
    pub(super) fn template(&mut self) -> Parsed<TermKind> {
        let mut parts = Vec::new();
        loop {
            let at = self.here();
            let Lexeme::Template { text, ends } = self.token().lexeme.clone() else {
                return Err(self.unexpected("expected } to end template string expression"));
            };
            self.step()?;
            if !text.is_empty() {
                let kind = ExprKind::Term(Term { at, kind: TermKind::String(text) });
                parts.push(Expr { at, negated: false, kind, with: Vec::new() });
            }
            if ends {
                return Ok(TermKind::Template(parts));
            }
            let part = self.nested(Self::literal)?;
            let refused = match &part.kind {
                _ if part.negated => Some("negation ('not')"),
                ExprKind::Not { .. } => Some("negation ('not')"),
                ExprKind::Unify(..) => Some("unification ('=')"),
                ExprKind::Assign(..) => Some("assignment (':=')"),
                ExprKind::Every { .. } => Some("'every'"),
                ExprKind::Some(_) | ExprKind::SomeIn { .. } => Some("'some'"),
                ExprKind::Term(_) => None,
            };
            if let Some(what) = refused {
                return Err(SyntaxError::new(part.at, format!("unexpected {what} in template-string expression")));
            }
            parts.push(part);
            if !self.take_sign("}")? {
                return Err(self.unexpected("expected } to end template string expression"));
            }
        }
    }
}

/// The parts of `key, value in collection`.
fn member_of(term: Term) -> Option<(Option<Term>, Term, Term)> {
    let TermKind::Call(function, args) = term.kind else { return None };
    let TermKind::Var(name) = &function.kind else { return None };
    let mut args = args.into_iter();
    match &**name {
        "internal.member_2" => Some((None, args.next()?, args.next()?)),
        "internal.member_3" => Some((Some(args.next()?), args.next()?, args.next()?)),
        _ => None,
    }
}
