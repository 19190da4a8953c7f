//! `docs/config.md`, made from the table of keys.

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
            Effect::Works => key.about.to_owned(),
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
        Kind::Text => "text".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Count(least, most) => format!("{least} to {most}"),
        Kind::Duration => "duration".to_owned(),
        Kind::Choice(names) => names.join(" or "),
        Kind::Texts => "list of texts".to_owned(),
        Kind::Numbers => "list of numbers".to_owned(),
        Kind::TextMap => "object of texts".to_owned(),
        Kind::Percentage => "0 to 100".to_owned(),
        Kind::Level => "level".to_owned(),
        Kind::LevelMap => "object of levels".to_owned(),
        Kind::Section => "section".to_owned(),
        Kind::Sections => "list of sections".to_owned(),
        Kind::Named => "sections by name".to_owned(),
        Kind::SectionOrStrict => "`strict` or section".to_owned(),
        Kind::Any => "anything".to_owned(),
    }
}
