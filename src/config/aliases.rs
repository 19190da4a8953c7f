//! Former names of keys: accepted for one release, with a warning.

use serde_json::{Map, Value, json};

use super::problem::Problems;

/// A section, the former name of a key in it, and the present one. `[]` is every entry of an array.
const RENAMED: &[(&str, &str, &str)] = &[
    ("plugins.stepgate.input", "extras", "stepgate_fields"),
    ("plugins.stepgate.routes[]", "one_use", "single_use"),
    ("plugins.stepgate", "dry_run_faults", DRY_RUN_SCOPE),
    ("plugins.stepgate", "discovery_may_set", "discovery_allowed_keys"),
];
/// Was a boolean.
const DRY_RUN_SCOPE: &str = "dry_run_scope";

/// The former names of keys in a section of the table, each with the present one.
pub fn in_section(path: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let of_section = move |(section, ..): &&(&str, &str, &str)| *section == path;
    RENAMED.iter().filter(of_section).map(|&(_, former, present)| (former, present))
}

/// The document with the present names. Both names in one section are an error: one of them would count for nothing.
pub fn with_present_names(document: &Value, problems: &mut Problems) -> Value {
    let mut document = document.clone();
    for &(section, former, present) in RENAMED {
        each(&mut document, section, "", &mut |members, place| {
            let Some(value) = members.get(former) else { return };
            let place = format!("{place}.{former}");
            if members.contains_key(present) {
                return problems
                    .error(place, format!("is the former name of `{present}`, which is here as well: remove it"));
            }
            let value = match value {
                Value::Bool(all) if present == DRY_RUN_SCOPE => json!(if *all { "all" } else { "denials" }),
                other => other.clone(),
            };
            members.remove(former);
            members.insert(present.to_owned(), value);
            problems.warn(place, format!("is now called `{present}`; the former name will be refused in 0.3"));
        });
    }
    document
}

/// Calls `change` for each object at `section`, with its place.
fn each(value: &mut Value, section: &str, place: &str, change: &mut impl FnMut(&mut Map<String, Value>, &str)) {
    if section.is_empty() {
        if let Some(members) = value.as_object_mut() {
            change(members, place);
        }
        return;
    }
    let (head, rest) = section.split_once('.').unwrap_or((section, ""));
    let (name, is_list) = head.strip_suffix("[]").map_or((head, false), |name| (name, true));
    let place = if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
    let Some(inner) = value.get_mut(name) else { return };
    match inner.as_array_mut().filter(|_| is_list) {
        Some(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                each(item, rest, &format!("{place}[{at}]"), change);
            }
        }
        None => each(inner, rest, &place, change),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_names_are_taken_with_a_warning_and_never_beside_the_present_ones() {
        let own = |own: Value| json!({"plugins": {"stepgate": own}});
        for (former, present, place) in [
            (json!({"input": {"extras": false}}), json!({"input": {"stepgate_fields": false}}), "input.extras"),
            (json!({"dry_run_faults": true}), json!({"dry_run_scope": "all"}), "dry_run_faults"),
            (json!({"dry_run_faults": false}), json!({"dry_run_scope": "denials"}), "dry_run_faults"),
            (json!({"discovery_may_set": ["keys"]}), json!({"discovery_allowed_keys": ["keys"]}), "discovery_may_set"),
            (
                json!({"routes": [{"path": "/a"}, {"path": "/b", "one_use": true}]}),
                json!({"routes": [{"path": "/a"}, {"path": "/b", "single_use": true}]}),
                "routes[1].one_use",
            ),
        ] {
            let mut problems = Problems::default();
            assert_eq!(with_present_names(&own(former), &mut problems), own(present));
            let warned: Vec<_> = problems.warnings.iter().map(|problem| problem.path.as_str()).collect();
            assert_eq!((warned, problems.errors.len()), (vec![format!("plugins.stepgate.{place}").as_str()], 0));
        }
        let mut problems = Problems::default();
        with_present_names(&own(json!({"input": {"extras": true, "stepgate_fields": true}})), &mut problems);
        assert_eq!((problems.warnings.len(), problems.errors.len()), (0, 1));
    }
}
