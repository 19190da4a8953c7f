//! `docs/reference/config.md`, made from the table of keys.

use std::fmt::Write as _;

use super::keys::{Effect, Kind, all};

/// The reference in Markdown.
pub fn reference() -> String {
    let mut text = "# Configuration reference\n\n\
        Generated from `src/config/keys/table/` by `stepgate config-reference`; a test keeps it up to date.\n\n\
        The file is OPA's. stepgate's own keys stand under `plugins.stepgate`, where an unknown key stops the start; elsewhere\n\
        a typo is a warning. All problems are reported together.\n\n\
        | key | value | default | meaning |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for key in all() {
        let about = match key.effect {
            Effect::Supported => key.about.to_owned(),
            Effect::NoOp(why) => format!("Accepted without effect: {why}."),
            Effect::Refused(why) => format!("Refused: {why}."),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{}` | {} | {} | {about} |", key.path, kind(key.kind), key.default);
    }
    text
}

fn kind(kind: Kind) -> String {
    match kind {
        Kind::String => "string".to_owned(),
        Kind::Bool => "boolean".to_owned(),
        Kind::Integer(least, most) => format!("integer, {least} to {most}"),
        Kind::Duration => "duration".to_owned(),
        Kind::Choice(names) => names.join(" or "),
        Kind::Strings => "array of strings".to_owned(),
        Kind::Numbers => "array of numbers".to_owned(),
        Kind::StringMap => "object of strings".to_owned(),
        Kind::Percentage => "number, 0 to 100".to_owned(),
        Kind::Level => "level".to_owned(),
        Kind::LevelMap => "object of levels".to_owned(),
        Kind::Section => "object".to_owned(),
        Kind::Sections => "array of objects".to_owned(),
        Kind::Named => "objects by name".to_owned(),
        Kind::SectionOrStrict => "`strict` or object".to_owned(),
        Kind::Any => "any".to_owned(),
    }
}
