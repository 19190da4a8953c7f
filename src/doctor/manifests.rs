//! Kubernetes objects from files of YAML or JSON, and the mesh configuration wherever it is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::Value;

use crate::folder::is_reserved;

/// Bytes of one file.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Folders in folders.
const MAX_DEPTH: usize = 16;

/// Why manifests cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    #[error("`{}` cannot be read", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    #[error("`{}` is larger than 64 MiB", .0.display())]
    TooLarge(PathBuf),
    #[error("`{origin}` is not YAML: {reason}")]
    Yaml { origin: String, reason: String },
    #[error("there is no YAML in what was given")]
    Empty,
}

/// One object, and the file that it came from.
#[derive(Clone, Debug)]
pub struct Object {
    pub origin: String,
    pub value: Value,
}

impl Object {
    pub fn kind(&self) -> &str {
        self.text(&["kind"]).unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.text(&["metadata", "name"]).unwrap_or_default()
    }

    /// `default` where none is written, as kubectl has it.
    pub fn namespace(&self) -> &str {
        self.text(&["metadata", "namespace"]).unwrap_or("default")
    }

    /// `Kind namespace/name`.
    pub fn title(&self) -> String {
        match self.text(&["metadata", "namespace"]) {
            Some(namespace) => format!("{} {namespace}/{}", self.kind(), self.name()),
            None if self.kind().is_empty() => "mesh configuration".to_owned(),
            None => format!("{} {}", self.kind(), self.name()),
        }
    }

    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        at(&self.value, path)
    }

    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_str()
    }

    pub fn list(&self, path: &[&str]) -> &[Value] {
        list(&self.value, path)
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.text(&["metadata", "annotations", name])
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.text(&["metadata", "labels", name])
    }
}

/// A document as Kubernetes reads it: with what `<<` merges, and keys that are texts.
fn document_of(document: yaml_serde::Deserializer<'_>) -> Result<Value, yaml_serde::Error> {
    let mut value = yaml_serde::Value::deserialize(document)?;
    value.apply_merge()?;
    Ok(json_of(value))
}

fn json_of(value: yaml_serde::Value) -> Value {
    use yaml_serde::Value as Yaml;
    match value {
        Yaml::Mapping(members) => {
            let key = |key| match json_of(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            members.into_iter().map(|(name, value)| (key(name), json_of(value))).collect()
        }
        Yaml::Sequence(items) => items.into_iter().map(json_of).collect(),
        Yaml::Tagged(tagged) => json_of(tagged.value),
        // A number outside JSON's range becomes null.
        scalar => yaml_serde::from_value(scalar).unwrap_or_default(),
    }
}

/// The identity of an object: its kind, with the group where other groups have kinds of that name.
fn kind_of(value: &Value) -> Option<String> {
    let kind = text(value, &["kind"])?;
    let version = text(value, &["apiVersion"]).unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let usual = match kind {
        "Service" | "ConfigMap" | "Namespace" | "Pod" => "",
        "Gateway" => "gateway.networking.k8s.io",
        _ => return Some(kind.to_owned()),
    };
    Some(if group == usual { kind.to_owned() } else { format!("{kind}.{group}") })
}

/// The members' names as JSON of protocol buffers has them; Istio reads those of the `.proto` file, too.
fn in_camel_case(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            members.iter().map(|(name, value)| (camel_case(name), in_camel_case(value))).collect()
        }
        Value::Array(items) => items.iter().map(in_camel_case).collect(),
        other => other.clone(),
    }
}

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        out.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

/// The value at a path of member names.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |here, name| here.get(name)).filter(|found| !found.is_null())
}

/// The text there.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(value, path)?.as_str()
}

/// A switch is on, in the words of YAML 1.1 that Helm and Istio read, too.
pub fn is_on(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(flag)) => *flag,
        Some(Value::String(text)) => matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "y"),
        _ => false,
    }
}

/// The list there; empty where there is none.
pub fn list<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// An ext_authz server that the mesh configuration names.
#[derive(Clone, Debug)]
pub struct Provider<'a> {
    pub object: &'a Object,
    pub name: String,
    /// `envoyExtAuthzGrpc` or `envoyExtAuthzHttp`.
    pub settings: Value,
    pub is_grpc: bool,
}

impl Provider<'_> {
    /// The host without the namespace that may stand before it, and that namespace.
    pub fn service(&self) -> (&str, Option<&str>) {
        let service = text(&self.settings, &["service"]).unwrap_or_default();
        service.split_once('/').map_or((service, None), |(namespace, host)| (host, Some(namespace)))
    }

    /// Namespace and name of the Kubernetes Service, where the host is one.
    pub fn kubernetes_service(&self) -> Option<(&str, &str)> {
        let (host, _) = self.service();
        let mut labels = host.split('.');
        let (name, namespace) = (labels.next()?, labels.next()?);
        // Istio knows it by its whole name alone.
        (labels.next() == Some("svc") && labels.next().is_some()).then_some((namespace, name))
    }

    pub fn port(&self) -> Option<u64> {
        at(&self.settings, &["port"])?.as_u64()
    }
}

/// All objects that were given.
#[derive(Debug, Default)]
pub struct Manifests {
    /// By their kinds: rules ask for one kind again and again.
    objects: BTreeMap<String, Vec<Object>>,
    /// Mesh configurations, wherever they are kept, as objects without kind.
    meshes: Vec<Object>,
    /// The unreadable documents; the rest is examined all the same.
    unread: Vec<ManifestsError>,
}

impl Manifests {
    /// Reads files, folders (their `.yaml`, `.yml` and `.json`, at any depth, but for the templates of charts) and, for `-`, the standard input.
    pub fn read(paths: &[PathBuf]) -> Result<Self, ManifestsError> {
        let mut found = Self::default();
        for path in paths {
            if path.as_os_str() == "-" {
                let mut text = String::new();
                let input = std::io::stdin().take(MAX_FILE_BYTES.saturating_add(1)).read_to_string(&mut text);
                if input.map_err(|error| ManifestsError::Read(path.clone(), error))? as u64 > MAX_FILE_BYTES {
                    return Err(ManifestsError::TooLarge(path.clone()));
                }
                found.add("standard input", &text)?;
            } else {
                found.add_path(path, 0)?;
            }
        }
        match found.unread.pop() {
            Some(only) if found.objects.is_empty() && found.meshes.is_empty() => Err(only),
            None if found.objects.is_empty() && found.meshes.is_empty() => Err(ManifestsError::Empty),
            last => {
                found.unread.extend(last);
                Ok(found)
            }
        }
    }

    fn add_path(&mut self, path: &Path, depth: usize) -> Result<(), ManifestsError> {
        let failed = |error| ManifestsError::Read(path.to_owned(), error);
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(failed)?;
            let entries: BTreeSet<_> =
                entries.map(|entry| Ok(entry?.path())).collect::<Result<_, _>>().map_err(failed)?;
            let name = |entry: &PathBuf| entry.file_name().map(|name| name.to_string_lossy().into_owned());
            let entries: BTreeSet<_> =
                entries.into_iter().filter(|entry| !name(entry).is_some_and(|name| is_reserved(&name))).collect();
            // A Helm template that was not rendered is no YAML yet.
            let templates = entries.contains(&path.join("Chart.yaml")).then(|| path.join("templates"));
            for entry in entries.into_iter().filter(|entry| Some(entry) != templates.as_ref()) {
                let is_manifest = entry.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
                if ((entry.is_dir() && depth < MAX_DEPTH) || is_manifest)
                    && let Err(error) = self.add_path(&entry, depth.saturating_add(1))
                {
                    self.unread.push(error);
                }
            }
            return Ok(());
        }
        if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE_BYTES {
            return Err(ManifestsError::TooLarge(path.to_owned()));
        }
        self.add(&path.display().to_string(), &std::fs::read_to_string(path).map_err(failed)?)
    }

    /// Adds the documents of a text.
    pub fn add(&mut self, origin: &str, text: &str) -> Result<(), ManifestsError> {
        for document in yaml_serde::Deserializer::from_str(text.trim_start_matches('\u{feff}')) {
            let value = document_of(document)
                .map_err(|error| ManifestsError::Yaml { origin: origin.to_owned(), reason: error.to_string() })?;
            self.add_value(origin, value)?;
        }
        Ok(())
    }

    fn add_value(&mut self, origin: &str, value: Value) -> Result<(), ManifestsError> {
        // `kubectl get -o yaml` gives a list.
        if text(&value, &["kind"]).is_some_and(|kind| kind.ends_with("List")) && value.get("items").is_some() {
            return list(&value, &["items"]).iter().try_for_each(|item| self.add_value(origin, item.clone()));
        }
        // Helm values of istiod or of a chart around it, a mesh configuration by itself, an IstioOperator, Sail's Istio.
        self.add_meshes(origin, &value);
        // The ConfigMap of istiod.
        if let Some(mesh) = text(&value, &["data", "mesh"]) {
            let mesh = document_of(yaml_serde::Deserializer::from_str(mesh)).map_err(|error| ManifestsError::Yaml {
                origin: format!("{origin}, data.mesh"),
                reason: error.to_string(),
            })?;
            let before = self.meshes.len();
            self.add_meshes(origin, &mesh);
            if self.meshes.len() == before && mesh.is_object() {
                self.meshes.push(Object { origin: origin.to_owned(), value: in_camel_case(&mesh) });
            }
        }
        if let Some(kind) = kind_of(&value) {
            self.objects.entry(kind).or_default().push(Object { origin: origin.to_owned(), value });
        }
        Ok(())
    }

    /// Every mesh configuration in it, wherever it stands.
    fn add_meshes(&mut self, origin: &str, value: &Value) {
        let is_providers = |name: &str| matches!(name, "extensionProviders" | "extension_providers");
        match value {
            Value::Object(members) if members.iter().any(|(name, value)| is_providers(name) && value.is_array()) => {
                self.meshes.push(Object { origin: origin.to_owned(), value: in_camel_case(value) });
            }
            Value::Object(members) => members.values().for_each(|inner| self.add_meshes(origin, inner)),
            Value::Array(items) => items.iter().for_each(|inner| self.add_meshes(origin, inner)),
            _ => {}
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &Object> {
        self.objects.values().flatten()
    }

    pub fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Object> {
        self.objects.get(kind).into_iter().flatten()
    }

    pub fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<&Object> {
        self.of_kind(kind).find(|object| object.namespace() == namespace && object.name() == name)
    }

    pub fn namespace(&self, name: &str) -> Option<&Object> {
        self.of_kind("Namespace").find(|object| object.name() == name)
    }

    pub fn unread(&self) -> &[ManifestsError] {
        &self.unread
    }

    pub fn has_meshes(&self) -> bool {
        !self.meshes.is_empty()
    }

    pub fn meshes(&self) -> &[Object] {
        &self.meshes
    }

    /// The ext_authz providers of all mesh configurations.
    pub fn providers(&self) -> Vec<Provider<'_>> {
        let mut found = Vec::new();
        for mesh in &self.meshes {
            for provider in list(&mesh.value, &["extensionProviders"]) {
                for (member, is_grpc) in [("envoyExtAuthzGrpc", true), ("envoyExtAuthzHttp", false)] {
                    if let Some(settings) = at(provider, &[member]) {
                        let name = text(provider, &["name"]).unwrap_or_default().to_owned();
                        found.push(Provider { object: mesh, name, settings: settings.clone(), is_grpc });
                    }
                }
            }
        }
        found
    }
}
