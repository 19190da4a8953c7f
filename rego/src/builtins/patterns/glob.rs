//! Globs as the library `gobwas/glob` reads them, in the words of regular expressions.
//!
//! `*` stops at delimiters, `**` does not, `?` is one character that is no delimiter, `[a-c]` and `[!a-c]` are sets,
//! `{a,b}` is a choice, `\` takes the next character as it is.

/// Levels of `{…}` and characters of the pattern.
const MAX_DEPTH: usize = 20;

pub fn translate(pattern: &str, delimiters: &[char]) -> Result<String, String> {
    let one = if delimiters.is_empty() {
        "(?s:.)".to_owned()
    } else {
        let set: String = delimiters.iter().map(|char| format!(r"\u{{{:x}}}", u32::from(*char))).collect();
        format!("[^{set}]")
    };
    let mut out = r"\A(?:".to_owned();
    let mut depth = 0usize;
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '*' => {
                let mut stars = 1;
                while chars.next_if_eq(&'*').is_some() {
                    stars += 1;
                }
                out.push_str(if stars > 1 { "(?s:.)" } else { &one });
                out.push('*');
            }
            '?' => out.push_str(&one),
            '\\' => match chars.next() {
                Some(next) => out.push_str(&regex::escape(&next.to_string())),
                None => return Err("unexpected end of input".to_owned()),
            },
            '[' => out.push_str(&class(&mut chars)?),
            '{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err("alternatives are nested too deeply".to_owned());
                }
                out.push_str("(?:");
            }
            '}' if depth > 0 => {
                depth -= 1;
                out.push(')');
            }
            ',' if depth > 0 => out.push('|'),
            other => out.push_str(&regex::escape(&other.to_string())),
        }
    }
    if depth > 0 {
        return Err("unexpected end of input".to_owned());
    }
    Ok(format!(r"{out})\z"))
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, String> {
    let mut out = "[".to_owned();
    if chars.next_if_eq(&'!').is_some() {
        out.push('^');
    }
    let mut members = Vec::new();
    loop {
        match chars.next() {
            None => return Err("unexpected end of input".to_owned()),
            Some(']') if !members.is_empty() => break,
            Some('\\') => members.push(chars.next().ok_or("unexpected end of input")?),
            Some(char) => members.push(char),
        }
    }
    let literal = |char: char| format!(r"\u{{{:x}}}", u32::from(char));
    match members.as_slice() {
        [low, '-', high] => {
            if high < low {
                return Err(format!("hi character {high:?} should be greater than lo {low:?}"));
            }
            out.push_str(&format!("{}-{}", literal(*low), literal(*high)));
        }
        list => list.iter().for_each(|char| out.push_str(&literal(*char))),
    }
    out.push(']');
    Ok(out)
}

pub fn quote(text: &str) -> String {
    let mut out = String::new();
    for char in text.chars() {
        if "*?\\[]{}".contains(char) {
            out.push('\\');
        }
        out.push(char);
    }
    out
}
