//! The rules of the house that a program can check: floors, who names what, sizes and names of files.
//!
//! Every rule has a planted violation that must be found, so that the test cannot go blind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// Modules of the crate by floor, from the ground up. A module may use those of lower floors and itself.
const FLOORS: &[(u8, &[&str])] = &[
    (1, &["clock", "folder", "value", "secret", "lifecycle", "telemetry", "remote", "state"]),
    (2, &["opa"]),
    (3, &["policy", "token", "decision_queue", "revocation"]),
    (4, &["check", "feed", "hub"]),
    (5, &["serve"]),
    (6, &["main", "lib", "cli", "app", "config", "doctor"]),
];

/// Modules of the roof that use one another: the first of each pair may use the second.
const NEIGHBOURS: &[(&str, &str)] = &[
    ("cli", "app"),
    ("decision_queue", "policy"),
    ("cli", "config"),
    ("app", "config"),
    ("main", "cli"),
    ("config", "app"),
    ("cli", "doctor"),
    ("doctor", "config"),
];

/// Crates that only some files may name.
const ONLY: &[(&str, &[&str])] = &[
    (
        "stepgate_rego",
        &[
            "src/value.rs",
            "src/policy/engine.rs",
            "src/policy/query.rs",
            "src/policy/host.rs",
            "src/policy/http_send.rs",
            "src/policy/trace.rs",
            "src/cli/coverage.rs",
            "src/cli/eval.rs",
            "src/cli/explain.rs",
            "src/cli/test.rs",
        ],
    ),
    ("redb", &["src/state.rs", "src/state/file.rs"]),
    ("redis", &["src/state.rs", "src/state/redis.rs", "src/state/redis/server.rs"]),
    ("scim_v2", &["src/hub/scim/filter.rs", "src/hub/scim/patch.rs"]),
    ("tonic", &["src/serve/grpc.rs"]),
    ("hyper", &["src/serve/grpc.rs", "src/serve/connection.rs"]),
    (
        "reqwest",
        &[
            "src/remote.rs",
            "src/remote/aws.rs",
            "src/remote/credentials.rs",
            "src/remote/send.rs",
            "src/remote/service.rs",
        ],
    ),
];

/// Paths that only some files may name: ambient time, environment and tasks.
const ONLY_PATHS: &[(&str, &[&str])] = &[
    ("SystemTime::now", &["src/clock.rs"]),
    ("env::var", &["src/cli/run.rs", "src/config/credentials.rs", "src/policy/host.rs"]),
    ("env::vars", &["src/cli/run.rs"]),
    ("env::vars_os", &["src/cli/run.rs", "src/policy/host.rs"]),
    ("tokio::spawn", &["src/lifecycle.rs"]),
    ("thread::spawn", &["src/lifecycle.rs"]),
];

const NAMELESS: &[&str] = &["utils", "util", "helpers", "common", "misc", "types", "prelude"];
const MAX_CODE_LINES: usize = 500;

/// Every path that a file names, aliases resolved by its `use` declarations.
#[derive(Default)]
struct Paths {
    found: BTreeSet<Vec<String>>,
}

impl Paths {
    fn of(text: &str) -> Self {
        let mut paths = Self::default();
        let file = syn::parse_file(text).expect("the source parses");
        paths.visit_file(&file);
        paths
    }

    fn use_tree(&mut self, tree: &syn::UseTree, prefix: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.use_tree(&path.tree, prefix);
                prefix.pop();
            }
            syn::UseTree::Name(name) => {
                self.found.insert([prefix.as_slice(), &[name.ident.to_string()]].concat());
            }
            syn::UseTree::Rename(name) => {
                self.found.insert([prefix.as_slice(), &[name.ident.to_string()]].concat());
            }
            syn::UseTree::Glob(_) => {
                self.found.insert(prefix.clone());
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.use_tree(item, prefix)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.found.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // Tests may reach anywhere.
        if item.ident != "tests" {
            syn::visit::visit_item_mod(self, item);
        }
    }
}

fn floor_of(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(_, modules)| modules.contains(&module)).map(|&(floor, _)| floor)
}

/// The top module that a file belongs to.
fn module_of(file: &str) -> &str {
    let rest = file.strip_prefix("src/").unwrap_or(file);
    rest.split(['/', '.']).next().unwrap_or(rest)
}

/// Everything wrong with one file.
fn violations(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if NAMELESS.contains(&stem) {
        found.push(format!("{file}: a name that says nothing"));
    }
    if !file.ends_with("tests.rs") {
        let code = text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//")).count();
        if code > MAX_CODE_LINES {
            found.push(format!("{file}: {code} code lines"));
        }
        if !text.starts_with("//!") {
            found.push(format!("{file}: no `//!` at the top"));
        }
        // As in modules named so, tests may reach anywhere. Other crates have no floors: they cannot name the service.
        if file.starts_with("src/") && !file.contains("/tests/") {
            found.extend(path_violations(file, &Paths::of(text)));
        }
    }
    found
}

fn path_violations(file: &str, paths: &Paths) -> Vec<String> {
    let mut found = Vec::new();
    let own = module_of(file);
    let depth = file.matches('/').count();
    let floor = floor_of(own);
    for path in &paths.found {
        let names: Vec<_> = path.iter().map(String::as_str).collect();
        let joined = names.join("::");
        for (name, allowed) in ONLY {
            if names.first() == Some(name) && !allowed.contains(&file) {
                found.push(format!("{file}: names `{name}`"));
            }
        }
        for (suffix, allowed) in ONLY_PATHS {
            let ends = joined == *suffix || joined.ends_with(&format!("::{suffix}"));
            if ends && !allowed.contains(&file) {
                found.push(format!("{file}: names `{suffix}`"));
            }
        }
        // `super` out of a top module leads to its neighbours as `crate` does.
        let supers = names.iter().take_while(|name| **name == "super").count();
        let target = match names.first() {
            Some(&"crate") => names.get(1),
            Some(&"super") if supers >= depth => names.get(supers),
            _ => None,
        };
        let (Some(floor), Some(&target)) = (floor, target) else { continue };
        let Some(other) = floor_of(target) else { continue };
        let allowed =
            target == own || other < floor || (floor == 1 && other == 1) || NEIGHBOURS.contains(&(own, target));
        if !allowed {
            found.push(format!("{file}: `{own}` (floor {floor}) uses `{target}` (floor {other})"));
        }
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_sources_keep_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    sources(&root.join("rego/src"), &mut files);
    sources(&root.join("jose/src"), &mut files);
    let mut found = Vec::new();
    for path in &files {
        let file = path.strip_prefix(root).expect("below the root").display().to_string();
        found.extend(violations(&file, &std::fs::read_to_string(path).expect("the file is read")));
    }
    assert!(files.len() > 50, "only {} files were looked at", files.len());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Relative links of a Markdown page that lead nowhere.
fn dead_links(page: &Path, text: &str) -> Vec<String> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let is_relative = |link: &&str| !link.contains(':') && !link.starts_with(['#', '/']) && !link.contains(' ');
    let targets = links.filter(is_relative).map(|link| link.split('#').next().unwrap_or(link));
    let folder = page.parent().expect("a folder");
    targets
        .filter(|target| !folder.join(target).exists())
        .map(|target| format!("{}: {target}", page.display()))
        .collect()
}

fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// Names of metrics that the sources register: text literals that begin with `stepgate_`, in files that register any.
fn metric_names(text: &str) -> BTreeSet<String> {
    let is_name = |part: &&str| {
        part.strip_prefix("stepgate_")
            .is_some_and(|name| name.len() > 3 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    };
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let registers = code.contains("fn register(registrar");
    code.split('"').filter(is_name).filter(|_| registers).map(str::to_owned).collect()
}

#[test]
fn every_metric_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let names: BTreeSet<String> =
        files.iter().flat_map(|path| metric_names(&std::fs::read_to_string(path).expect("the file is read"))).collect();
    let page = std::fs::read_to_string(root.join("docs/operate/metrics.md")).expect("the page is read");
    let documented: BTreeSet<&str> = page
        .split('`')
        .map(|code| code.split('{').next().unwrap_or_default())
        .map(|code| code.strip_suffix("_total").unwrap_or(code))
        .collect();
    let missing: Vec<_> = names.iter().filter(|name| !documented.contains(name.as_str())).collect();
    assert!(
        names.len() > 30 && missing.is_empty(),
        "{} metrics; not in docs/operate/metrics.md: {missing:?}",
        names.len()
    );
}

/// Every file that ARCHITECTURE.md names is there.
#[test]
fn the_map_of_the_code_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the map is read");
    let named = map.split('`').skip(1).step_by(2).filter(|code| code.ends_with(".rs") && !code.contains('…'));
    let missing: Vec<_> =
        named.clone().filter(|file| !root.join("src").join(file).exists() && !root.join(file).exists()).collect();
    assert!(named.count() > 30 && missing.is_empty(), "{missing:?} are not in src/");
}

#[test]
fn links_of_documents_lead_to_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root.join(name)).to_vec();
    pages(&root.join("docs"), &mut found);
    let dead: Vec<_> = found
        .iter()
        .flat_map(|page| dead_links(page, &std::fs::read_to_string(page).expect("the page is read")))
        .collect();
    assert!(found.len() > 30 && dead.is_empty(), "{} pages: {}", found.len(), dead.join("\n"));
    assert_eq!(dead_links(&found[0], "[x](no/such.md#a) [y](README.md#b) [z](https://x.example)").len(), 1);
}

#[test]
fn each_planted_violation_is_found() {
    let long = format!("//! x\n{}", "fn f() {}\n".repeat(MAX_CODE_LINES + 1));
    for (file, text) in [
        ("src/check/x.rs", "//! x\nuse crate::feed::keys;"),
        ("src/feed/x.rs", "//! x\nfn f() { crate::check::go(); }"),
        ("src/opa/x.rs", "//! x\nuse crate::{clock, policy::Store};"),
        ("src/policy/x.rs", "//! x\nuse super::super::check::Checker;"),
        ("src/policy/x.rs", "//! x\nuse crate::token::Verifier;"),
        ("src/serve/x.rs", "//! x\nuse crate::config::Config;"),
        ("src/check/x.rs", "//! x\nuse tonic::Status;"),
        ("src/check/x.rs", "//! x\nfn f() { stepgate_rego::compile(); }"),
        ("src/feed/x.rs", "//! x\nuse reqwest::Client;"),
        ("src/token/x.rs", "//! x\nfn f() { std::time::SystemTime::now(); }"),
        ("src/feed/x.rs", "//! x\nfn f() { std::env::var(\"X\"); }"),
        ("src/feed/x.rs", "//! x\nfn f() { tokio::spawn(async {}); }"),
        ("src/check/utils.rs", "//! x\n"),
        ("src/check/x.rs", "fn f() {}"),
        ("src/check/x.rs", long.as_str()),
    ] {
        assert_eq!(violations(file, text).len(), 1, "{file}: {text:.60}");
    }
    assert!(violations("src/check/x.rs", "//! x\nuse crate::policy;\nuse crate::opa::input;").is_empty());
}
