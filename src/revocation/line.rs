//! A line of the feed, as a hub writes it and a sidecar reads it.

use serde_json::{Value, json};

use super::entry::Entry;
use super::events::UserEvents;
use super::key::Key;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The entry of a key, whole, as it is after the change `seq`.
    Changed { key: Key, entry: Entry, seq: u64 },
    /// All kept events about a user, as they are after the change `seq`.
    Noted { key: Key, events: UserEvents, seq: u64 },
    /// Nothing else has changed up to `as_of`, in seconds since the epoch.
    Confirmed { as_of: i64 },
    /// Changes are missing: the reader must take the snapshot.
    Reset,
}

impl Line {
    /// The line, with its end.
    pub fn text(&self) -> String {
        let document = match self {
            Self::Changed { key, entry, seq } => {
                let parts = json!([
                    hex::encode(key),
                    entry.not_before,
                    entry.authenticated_not_before,
                    entry.until,
                    entry.disabled_until,
                    entry.disabled,
                    entry.deny
                ]);
                json!({"e": parts, "q": seq})
            }
            Self::Noted { key, events, seq } => json!({"s": [hex::encode(key), events.to_json()], "q": seq}),
            Self::Confirmed { as_of } => json!({"beat": {"as_of": as_of}}),
            Self::Reset => json!({"reset": "gap"}),
        };
        format!("{document}\n")
    }

    /// Reads a line; `None` for what is none. `hello` of other hubs is a confirmation.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line: Value = serde_json::from_slice(line).ok()?;
        if line.get("reset").is_some() {
            return Some(Self::Reset);
        }
        if let Some(beat) = line.get("beat").or_else(|| line.get("hello")) {
            return Some(Self::Confirmed { as_of: beat.get("as_of")?.as_i64()? });
        }
        let seq = line.get("q")?.as_u64()?;
        if let Some(noted) = line.get("s") {
            let [key, events] = noted.as_array()?.as_slice() else { return None };
            return Some(Self::Noted { key: key_of(key)?, events: UserEvents::from_json(events)?, seq });
        }
        let (key, entry) = entry_of(line.get("e")?)?;
        Some(Self::Changed { key, entry, seq })
    }

    /// The number of a change; none of any other line.
    pub fn seq(&self) -> Option<u64> {
        match self {
            Self::Changed { seq, .. } | Self::Noted { seq, .. } => Some(*seq),
            Self::Confirmed { .. } | Self::Reset => None,
        }
    }
}

fn key_of(value: &Value) -> Option<Key> {
    hex::decode(value.as_str()?).ok()?.try_into().ok()
}

fn entry_of(value: &Value) -> Option<(Key, Entry)> {
    let parts = value.as_array()?;
    let time = |at: usize| u32::try_from(parts.get(at)?.as_u64()?).ok();
    let key = key_of(parts.first()?)?;
    let entry = Entry {
        not_before: time(1)?,
        authenticated_not_before: time(2)?,
        until: time(3)?,
        disabled_until: time(4)?,
        disabled: u16::try_from(parts.get(5)?.as_u64()?).ok()?,
        deny: parts.get(6)?.as_bool()?,
    };
    Some((key, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let entry = Entry {
            not_before: 1,
            authenticated_not_before: 2,
            until: 3,
            disabled: 0x8001,
            disabled_until: 4,
            deny: true,
        };
        let events = UserEvents::from_json(&json!({"risk": [{"id": "a", "at": 7, "level": "HIGH"}]})).expect("events");
        for line in [
            Line::Changed { key: [7; 16], entry, seq: 9 },
            Line::Noted { key: [8; 16], events, seq: 10 },
            Line::Confirmed { as_of: 1_800_000_000 },
            Line::Reset,
        ] {
            let text = line.text();
            assert!(text.ends_with('\n'));
            assert_eq!(Line::parse(text.as_bytes()), Some(line), "{text}");
        }
        for text in ["", "{}", "[]", r#"{"e":["zz",1,2,3,4,5,true],"q":1}"#, r#"{"e":[],"q":1}"#, r#"{"beat":{}}"#] {
            assert_eq!(Line::parse(text.as_bytes()), None, "{text}");
        }
    }
}
