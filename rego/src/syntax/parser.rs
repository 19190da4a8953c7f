//! Tokens to modules: packages, imports and rules. Terms and statements are in `parser/`.
//!
//! Mirrors: OPA `v1/ast/parser.go` and the rules of `v1/ast/parser_ext.go`, v1.19.0.

mod literals;
mod rules;
mod terms;

use std::sync::Arc;

use super::lexer::{self, Lexeme, Location, SyntaxError, Token};
use super::tree::{Body, Expr, ExprKind, Import, Module, Term, TermKind};

/// The deepest nesting of terms, brackets and bodies.
const MAX_DEPTH: u32 = 200;
/// The deepest tree; operators in a row count, since each is the operand of the next.
const MAX_HEIGHT: u32 = 1_000;
/// Tokens that may be looked at, as a multiple of the tokens that there are: speculation must not run away.
const MAX_VISITS_PER_TOKEN: usize = 200;

/// The language version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V0,
    V1,
}

/// Words that are keywords from the beginning.
const KEYWORDS: [&str; 11] =
    ["as", "default", "else", "false", "import", "package", "not", "null", "some", "true", "with"];
/// Words that become keywords with version 1 or by import.
const FUTURE_KEYWORDS: [&str; 4] = ["contains", "every", "if", "in"];

/// Parses one file.
pub(crate) fn parse_module(text: &str, version: Version) -> Result<Module, SyntaxError> {
    let (tokens, comments) = lexer::tokens(text)?;
    let mut parser = Parser::new(tokens, version);
    let mut module = parser.module()?;
    module.comments = comments;
    Ok(module)
}

/// Parses a query: one or more statements.
/// The package of a module, part by part; `None` when the module cannot be parsed.
pub fn package_of(text: &str, version: Version) -> Option<Vec<String>> {
    let module = parse_module(text, version).ok()?;
    Some(module.package.iter().map(ToString::to_string).collect())
}

pub(crate) fn parse_query(text: &str, version: Version) -> Result<Body, SyntaxError> {
    let (tokens, _) = lexer::tokens(text)?;
    let mut parser = Parser::new(tokens, version);
    parser.query()
}

#[expect(clippy::struct_excessive_bools, reason = "one switch for each keyword that an import turns on")]
#[derive(Clone, Copy, Debug, Default)]
struct Keywords {
    contains: bool,
    every: bool,
    r#if: bool,
    r#in: bool,
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
    /// Levels of the tree below the parser's position, at the deepest.
    height: u32,
    visits: usize,
    wildcards: u32,
    version: Version,
    keywords: Keywords,
    /// `import future.keywords.not`: `not { … }` is a body.
    not_bodies: bool,
}

type Parsed<T> = Result<T, SyntaxError>;

impl Parser {
    fn new(tokens: Vec<Token>, version: Version) -> Self {
        let on = version == Version::V1;
        let keywords = Keywords { contains: on, every: on, r#if: on, r#in: on };
        Self { tokens, at: 0, depth: 0, height: 0, visits: 0, wildcards: 0, version, keywords, not_bodies: false }
    }

    // The tokens

    fn token(&self) -> &Token {
        // `End` is last and is never passed.
        static END: Token =
            Token { at: Location { row: 0, col: 0 }, lexeme: Lexeme::End, spaced: false, on_new_line: false };
        self.tokens.get(self.at).or(self.tokens.last()).unwrap_or(&END)
    }

    fn after(&self) -> Option<&Token> {
        self.tokens.get(self.at.saturating_add(1))
    }

    fn here(&self) -> Location {
        self.token().at
    }

    fn step(&mut self) -> Parsed<()> {
        self.visits = self.visits.saturating_add(1);
        if self.visits > self.tokens.len().saturating_mul(MAX_VISITS_PER_TOKEN).saturating_add(1000) {
            return Err(self.error("the text is too ambiguous to parse"));
        }
        if self.at.saturating_add(1) < self.tokens.len() {
            self.at = self.at.saturating_add(1);
        }
        Ok(())
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.token().lexeme, Lexeme::Sign(it) if it == sign)
    }

    /// A sign that belongs to what stands before it: no white space between.
    fn is_adjacent(&self, sign: &str) -> bool {
        self.is_sign(sign) && !self.token().spaced
    }

    fn take_sign(&mut self, sign: &str) -> Parsed<bool> {
        let found = self.is_sign(sign);
        if found {
            self.step()?;
        }
        Ok(found)
    }

    fn expect_sign(&mut self, sign: &str) -> Parsed<()> {
        if self.take_sign(sign)? { Ok(()) } else { Err(self.unexpected(&format!("expected {sign}"))) }
    }

    fn is_keyword_name(&self, name: &str) -> bool {
        match name {
            "contains" => self.keywords.contains,
            "every" => self.keywords.every,
            "if" => self.keywords.r#if,
            "in" => self.keywords.r#in,
            _ => KEYWORDS.contains(&name),
        }
    }

    /// The next token is the keyword `word`, and not the first part of a reference.
    fn is_keyword(&self, word: &str) -> bool {
        matches!(&self.token().lexeme, Lexeme::Name(name) if &**name == word)
            && self.is_keyword_name(word)
            && !self.starts_reference()
    }

    /// `.` or `[` follows at once.
    fn starts_reference(&self) -> bool {
        self.after().is_some_and(|next| !next.spaced && matches!(next.lexeme, Lexeme::Sign("." | "[")))
    }

    fn take_keyword(&mut self, word: &str) -> Parsed<bool> {
        let found = self.is_keyword(word);
        if found {
            self.step()?;
        }
        Ok(found)
    }

    /// The name here, if it is no keyword or begins a reference.
    fn name(&self) -> Option<Arc<str>> {
        match &self.token().lexeme {
            Lexeme::Name(name) if !self.is_keyword_name(name) || self.starts_reference() => Some(name.clone()),
            _ => None,
        }
    }

    fn error(&self, message: &str) -> SyntaxError {
        SyntaxError::new(self.here(), message)
    }

    /// OPA's words for a token that cannot stand here.
    fn unexpected(&self, hint: &str) -> SyntaxError {
        let (what, kind) = match &self.token().lexeme {
            Lexeme::Name(name) if self.is_keyword_name(name) => (&**name, "keyword"),
            Lexeme::Name(_) => ("identifier", "token"),
            Lexeme::Number(_) => ("number", "token"),
            Lexeme::String(_) => ("string", "token"),
            Lexeme::Template { .. } => ("template-string", "token"),
            Lexeme::Sign(sign) => (sign_name(sign), "token"),
            Lexeme::End => ("eof", "token"),
        };
        let tail = if hint.is_empty() { String::new() } else { format!(": {hint}") };
        self.error(&format!("unexpected {what} {kind}{tail}"))
    }

    /// Guards against nesting that would use up the stack.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(&format!("nesting is deeper than {MAX_DEPTH}")));
        }
        self.depth = self.depth.saturating_add(1);
        let outer = std::mem::take(&mut self.height);
        let parsed = parse(self);
        self.height = outer.max(self.height.saturating_add(1));
        self.depth = self.depth.saturating_sub(1);
        parsed
    }

    /// Tries `parse` and goes back when it fails.
    fn attempt<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let (at, wildcards) = (self.at, self.wildcards);
        let parsed = parse(self);
        if parsed.is_err() {
            (self.at, self.wildcards) = (at, wildcards);
        }
        parsed
    }

    fn wildcard(&mut self) -> TermKind {
        self.wildcards = self.wildcards.saturating_add(1);
        TermKind::Var(format!("_{}", self.wildcards).into())
    }

    // The file

    fn query(&mut self) -> Parsed<Body> {
        let mut body = Vec::new();
        loop {
            if self.token().lexeme == Lexeme::End {
                if body.is_empty() {
                    return Err(self.error("empty query"));
                }
                return Ok(body);
            }
            if self.is_keyword("import") {
                let import = self.import()?;
                self.apply(&import)?;
                continue;
            }
            body.push(self.literal()?);
            if !self.take_sign(";")? && self.token().lexeme != Lexeme::End && !self.token().on_new_line {
                return Err(self.unexpected(r"expected \n or ;"));
            }
        }
    }

    fn module(&mut self) -> Parsed<Module> {
        if self.token().lexeme == Lexeme::End {
            return Err(self.error("empty module"));
        }
        if !self.is_keyword("package") {
            return Err(self.error("package expected"));
        }
        let at = self.token().at;
        let package = self.package()?;
        let mut module =
            Module { at, package, imports: Vec::new(), rules: Vec::new(), comments: Vec::new(), version: self.version };
        while self.token().lexeme != Lexeme::End {
            if self.is_keyword("package") {
                return Err(self.unexpected(""));
            }
            if self.is_keyword("import") {
                let import = self.import()?;
                self.apply(&import)?;
                module.imports.push(import);
            } else {
                let wildcards = self.wildcards;
                match self.attempt(Self::rules) {
                    Ok(rules) => module.rules.extend(rules),
                    Err(as_rule) => {
                        self.wildcards = wildcards;
                        module.rules.push(self.bodiless_rule(as_rule)?);
                    }
                }
            }
            self.take_sign(";")?;
        }
        module.version = self.version;
        Ok(module)
    }

    fn package(&mut self) -> Parsed<Vec<Arc<str>>> {
        self.step()?;
        if self.token().on_new_line || self.name_or_keyword().is_none() {
            return Err(self.unexpected("expected path"));
        }
        let at = self.here();
        let path = self.path()?;
        if path.is_empty() {
            return Err(SyntaxError::new(at, "expected path"));
        }
        Ok(path)
    }

    fn name_or_keyword(&self) -> Option<Arc<str>> {
        match &self.token().lexeme {
            Lexeme::Name(name) => Some(name.clone()),
            _ => None,
        }
    }

    /// A reference whose parts are all written out.
    fn path(&mut self) -> Parsed<Vec<Arc<str>>> {
        let Some(first) = self.name_or_keyword() else { return Err(self.unexpected("expected path")) };
        self.step()?;
        let mut path = vec![first];
        loop {
            if self.is_adjacent(".") {
                self.step()?;
                let Some(name) = self.name_or_keyword() else { return Err(self.unexpected("expected identifier")) };
                self.step()?;
                path.push(name);
            } else if self.is_adjacent("[") {
                self.step()?;
                let Lexeme::String(text) = self.token().lexeme.clone() else {
                    return Err(self.unexpected("expecting string"));
                };
                self.step()?;
                self.expect_sign("]")?;
                path.push(text);
            } else {
                return Ok(path);
            }
        }
    }

    fn import(&mut self) -> Parsed<Import> {
        let at = self.here();
        self.step()?;
        let place = self.here();
        let path = self.path()?;
        let first = path.first().map_or("", |first| &**first);
        if !matches!(first, "data" | "input" | "future" | "rego") {
            return Err(SyntaxError::new(
                place,
                format!("unexpected import path, must begin with one of: {{data, future, input, rego}}, got: {first}"),
            ));
        }
        let alias = if self.take_keyword("as")? {
            let Some(alias) = self.name().filter(|name| !matches!(&**name, "data" | "input")) else {
                return Err(self.unexpected("expected var"));
            };
            self.step()?;
            Some(alias)
        } else {
            let last = path.last().map_or("", |last| &**last);
            if first != "future" && self.is_keyword_name(last) {
                return Err(SyntaxError::new(
                    place,
                    format!("unexpected import path, must not end with a keyword, got: {last}"),
                ));
            }
            None
        };
        Ok(Import { at, path, alias })
    }

    /// The effect of an import of `future.keywords` or `rego.v1` on the rest of the file.
    fn apply(&mut self, import: &Import) -> Parsed<()> {
        let path: Vec<&str> = import.path.iter().map(|part| &**part).collect();
        let refused = |message: String| Err(SyntaxError::new(import.at, message));
        match path.as_slice() {
            ["future", ..] if import.alias.is_some() => {
                refused(format!("{} imports cannot be aliased", path.first().unwrap_or(&"")))
            }
            ["future", "keywords"] => {
                self.keywords = Keywords { contains: true, every: true, r#if: true, r#in: true };
                Ok(())
            }
            ["future", "keywords", "not"] => {
                self.not_bodies = true;
                Ok(())
            }
            ["future", "keywords", word] if FUTURE_KEYWORDS.contains(word) => {
                match *word {
                    "contains" => self.keywords.contains = true,
                    "every" => {
                        self.keywords.every = true;
                        self.keywords.r#in = true;
                    }
                    "if" => self.keywords.r#if = true,
                    _ => self.keywords.r#in = true,
                }
                Ok(())
            }
            ["future", "keywords", word] => {
                refused(format!("unexpected keyword, must be one of [contains every if in not], got: {word}"))
            }
            ["future", ..] => refused("invalid import, must be `future.keywords`".to_owned()),
            ["rego", "v1"] => {
                self.version = Version::V1;
                self.keywords = Keywords { contains: true, every: true, r#if: true, r#in: true };
                Ok(())
            }
            ["rego", ..] => refused(format!("invalid import `{}`, must be `rego.v1`", path.join("."))),
            _ => Ok(()),
        }
    }

    // Rules
}

/// The term is a scalar literal.
pub(crate) fn is_constant(term: &Term) -> bool {
    match &term.kind {
        TermKind::Null | TermKind::Bool(_) | TermKind::Number(_) | TermKind::String(_) => true,
        TermKind::Array(items) | TermKind::Set(items) => items.iter().all(is_constant),
        TermKind::Object(pairs) => pairs.iter().all(|(key, value)| is_constant(key) && is_constant(value)),
        _ => false,
    }
}

/// OPA's name of a kind of term, for messages.
pub(crate) fn kind_name(kind: &TermKind) -> &'static str {
    match kind {
        TermKind::Null => "null",
        TermKind::Bool(_) => "boolean",
        TermKind::Number(_) => "number",
        TermKind::String(_) => "string",
        TermKind::Var(_) => "var",
        TermKind::Ref(..) => "ref",
        TermKind::Call(..) => "call",
        TermKind::Array(_) => "array",
        TermKind::Set(_) => "set",
        TermKind::Object(_) => "object",
        TermKind::ArrayComprehension(..) => "arraycomprehension",
        TermKind::SetComprehension(..) => "setcomprehension",
        TermKind::ObjectComprehension(..) => "objectcomprehension",
        TermKind::Template(_) => "templatestring",
    }
}

fn sign_name(sign: &'static str) -> &'static str {
    match sign {
        ":=" => "assign",
        "=" => "eq",
        "==" => "equal",
        "!=" => "neq",
        other => other,
    }
}
