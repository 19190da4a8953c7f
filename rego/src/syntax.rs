//! The text of policies and its tree.

mod lexer;
mod parser;
mod tree;

pub use self::lexer::{Location, SyntaxError};
pub use self::parser::{Version, is_constant, kind_name, parse_module, parse_query};
pub use self::tree::{Body, Comment, Else, Expr, ExprKind, Head, HeadKind, Import, Module, Rule, Term, TermKind, With};
