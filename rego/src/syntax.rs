//! The text of policies and its tree.

mod lexer;
mod parser;
mod tree;

pub use self::lexer::Location;
pub use self::parser::{Version, package_of};
pub(crate) use self::parser::{is_constant, kind_name, parse_module, parse_query};
pub(crate) use self::tree::{Comment, Expr, ExprKind, HeadKind, Module, Rule, Term, TermKind, With};
