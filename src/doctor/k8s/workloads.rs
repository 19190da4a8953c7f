//! Pods that run an authorizer: a Deployment of its own, or a sidecar.

use serde_json::Value;

use super::{Hit, hit};
use crate::config::key_problems;
use crate::doctor::manifests::{Manifests, Object, at, list, text};

/// A container that runs stepgate or OPA, and where it stands.
#[derive(Debug)]
pub struct Authorizer<'a> {
    pub object: &'a Object,
    /// The pod's spec.
    pub pod: &'a Value,
    /// The pod's metadata.
    pub metadata: Option<&'a Value>,
    pub container: &'a Value,
    pub is_init: bool,
    /// The container is alone in its pod, as a service for others.
    pub is_shared: bool,
}

impl Authorizer<'_> {
    pub fn name(&self) -> &str {
        text(self.container, &["name"]).unwrap_or_default()
    }

    pub fn image(&self) -> &str {
        text(self.container, &["image"]).unwrap_or_default()
    }

    /// The container runs OPA rather than stepgate: an image of OPA's, or a custom one with OPA's arguments.
    pub fn is_opa(&self) -> bool {
        !program(self.image()).starts_with("stepgate")
    }

    /// Its command and arguments, as texts.
    pub fn arguments(&self) -> Vec<&str> {
        let members = ["command", "args"].iter().flat_map(|name| list(self.container, &[name]));
        members.filter_map(Value::as_str).collect()
    }

    /// The flags that `OPA_RUN_<FLAG>` give in the container's environment.
    pub fn flags_by_environment(&self) -> Vec<String> {
        let flag = |variable: &Value| {
            let name = text(variable, &["name"])?.strip_prefix("OPA_RUN_")?.to_ascii_lowercase().replace('_', "-");
            Some(format!("--{name}={}", text(variable, &["value"])?))
        };
        list(self.container, &["env"]).iter().filter_map(flag).collect()
    }

    fn is_native_sidecar(&self) -> bool {
        self.is_init && text(self.container, &["restartPolicy"]) == Some("Always")
    }
}

/// The last part of an image's name, without tag and digest.
fn program(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split(':').next().unwrap_or_default()
}

/// Every such container that serves ext_authz.
pub fn authorizers(manifests: &Manifests) -> Vec<Authorizer<'_>> {
    let mut found = Vec::new();
    for object in manifests.all() {
        let (pod, metadata) = match object.kind() {
            "Pod" => (object.at(&["spec"]), object.at(&["metadata"])),
            "Deployment" | "StatefulSet" | "DaemonSet" => {
                (object.at(&["spec", "template", "spec"]), object.at(&["spec", "template", "metadata"]))
            }
            _ => continue,
        };
        let Some(pod) = pod else { continue };
        let containers = list(pod, &["containers"]);
        for (member, is_init) in [("containers", false), ("initContainers", true)] {
            for container in list(pod, &[member]) {
                let image = program(text(container, &["image"]).unwrap_or_default());
                let is_ours = image == "stepgate" || image == "opa" || image.starts_with("opa-envoy");
                // A shell has its command in one argument; without any, the image's own command serves.
                let arguments = ["command", "args"].iter().flat_map(|name| list(container, &[name]));
                let words: Vec<&str> =
                    arguments.filter_map(Value::as_str).flat_map(str::split_ascii_whitespace).collect();
                let has = |known: &[&str]| words.iter().any(|word| known.contains(word));
                let names_us = words.first() == Some(&"run")
                    || words.iter().any(|word| matches!(word.rsplit('/').next(), Some("opa" | "stepgate")));
                let serves = has(&["run"]) && (is_ours || (names_us && has(&["--server", "-s", "--server=true"])));
                if serves || (is_ours && words.is_empty()) {
                    let is_shared = !is_init && containers.len() == 1;
                    found.push(Authorizer { object, pod, metadata, container, is_init, is_shared });
                }
            }
        }
    }
    found
}

pub(super) fn without_drain(manifests: &Manifests) -> Vec<Hit<'_>> {
    let careless = authorizers(manifests).into_iter().filter(|own| {
        let arguments = own.arguments();
        let words = arguments.iter().flat_map(|argument| argument.split_ascii_whitespace());
        let waits = words
            .map(str::to_owned)
            .chain(own.flags_by_environment())
            .any(|word| word.starts_with("--shutdown-wait-period"));
        !own.is_native_sidecar() && !waits && at(own.container, &["lifecycle", "preStop"]).is_none()
    });
    careless.map(|own| hit(own.object, format!("the container `{}` stops at once", own.name()))).collect()
}

pub(super) fn socket_not_mounted(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for own in authorizers(manifests) {
        let arguments = own.arguments();
        // Those of `--addr` and `--diagnostic-addr` are not for Envoy.
        let of_checks = arguments.iter().filter(|argument| argument.contains("envoy_ext_authz_grpc"));
        let sockets = of_checks.filter_map(|argument| argument.split_once("unix://")).map(|(_, path)| path);
        for socket in sockets.filter(|socket| socket.starts_with('/')) {
            let folder = socket.rsplit_once('/').map_or("/", |(folder, _)| folder);
            if !is_seen_by_proxy(&own, folder) {
                found.push(hit(own.object, format!("`{folder}` is mounted into `{}` alone", own.name())));
            }
        }
    }
    found
}

/// Another container of the pod sees a folder of the authorizer's: istio-proxy by the annotation, an Envoy of the team's own by
/// its mounts.
fn is_seen_by_proxy(own: &Authorizer<'_>, folder: &str) -> bool {
    let is_there = |mount: &Value| {
        let path = text(mount, &["mountPath"]).map(|path| path.trim_end_matches('/'));
        path.and_then(|path| folder.strip_prefix(path)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mounts = own.metadata.and_then(|data| text(data, &["annotations", "sidecar.istio.io/userVolumeMount"]));
    let mounts = mounts.and_then(|mounts| serde_json::from_str::<Value>(mounts).ok());
    let by_istio = mounts.as_ref().and_then(Value::as_object).is_some_and(|mounts| mounts.values().any(is_there));
    let containers = ["containers", "initContainers"].iter().flat_map(|member| list(own.pod, &[member]));
    let mut others = containers.filter(|other| text(other, &["name"]) != Some(own.name()));
    by_istio || others.any(|other| list(other, &["volumeMounts"]).iter().any(is_there))
}

pub(super) fn not_restricted(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for own in authorizers(manifests) {
        let namespace = manifests.namespace(own.object.namespace());
        let level = namespace.and_then(|object| object.label("pod-security.kubernetes.io/enforce"));
        if level != Some("restricted") {
            continue;
        }
        let here = |path: &[&str]| at(own.container, &[&["securityContext"], path].concat());
        let anywhere = |path: &[&str]| here(path).or_else(|| at(own.pod, &[&["securityContext"], path].concat()));
        let drops_all =
            here(&["capabilities", "drop"]).and_then(Value::as_array).is_some_and(|drop| drop.contains(&"ALL".into()));
        let seccomp = anywhere(&["seccompProfile", "type"]).and_then(Value::as_str);
        for (is_good, what) in [
            (anywhere(&["runAsNonRoot"]) == Some(&Value::Bool(true)), "`runAsNonRoot: true`"),
            (here(&["allowPrivilegeEscalation"]) == Some(&Value::Bool(false)), "`allowPrivilegeEscalation: false`"),
            (drops_all, "`capabilities.drop: [ALL]`"),
            (matches!(seccomp, Some("RuntimeDefault" | "Localhost")), "a `seccompProfile` that confines"),
        ] {
            if !is_good {
                found.push(hit(own.object, format!("the container `{}` lacks {what}", own.name())));
            }
        }
        let added = here(&["capabilities", "add"]).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let of_pod = |name: &str| at(own.pod, &[name]) == Some(&Value::Bool(true));
        for (is_bad, what) in [
            (anywhere(&["runAsUser"]).and_then(Value::as_u64) == Some(0), "`runAsUser: 0`"),
            (here(&["privileged"]) == Some(&Value::Bool(true)), "`privileged: true`"),
            (added.iter().any(|name| name != "NET_BIND_SERVICE"), "`capabilities.add`"),
            (["hostNetwork", "hostPID", "hostIPC"].into_iter().any(of_pod), "`hostNetwork`, `hostPID` or `hostIPC`"),
            (
                list(own.pod, &["volumes"]).iter().any(|volume| at(volume, &["hostPath"]).is_some()),
                "a volume `hostPath`",
            ),
        ] {
            if is_bad {
                found.push(hit(own.object, format!("the container `{}` has {what}", own.name())));
            }
        }
    }
    found
}

/// The path of a probe waits for policies, bundles or keys.
pub fn asks_more_than_life(path: &str) -> bool {
    path.starts_with("/ready") || path.contains("bundle") || path.contains("plugins")
}

pub(super) fn liveness(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for own in authorizers(manifests) {
        let path = text(own.container, &["livenessProbe", "httpGet", "path"]).unwrap_or_default();
        if asks_more_than_life(path) {
            found.push(hit(own.object, format!("the container `{}` is asked `{path}`", own.name())));
        }
        // `stepgate doctor --probe` asks whether it is ready.
        let words = list(own.container, &["livenessProbe", "exec", "command"]).iter().filter_map(Value::as_str);
        if words.flat_map(str::split_ascii_whitespace).any(|word| word == "--probe" || word.contains("/ready")) {
            found.push(hit(own.object, format!("the container `{}` runs a probe of readiness", own.name())));
        }
    }
    found
}

pub(super) fn without_readiness(manifests: &Manifests) -> Vec<Hit<'_>> {
    // The application of a native sidecar starts only when the startup probe has been answered.
    let waits = |own: &Authorizer<'_>| {
        let probe = at(own.container, &["startupProbe"]);
        let by_http = probe.and_then(|probe| text(probe, &["httpGet", "path"])) == Some("/ready");
        let by_grpc = probe.is_some_and(|probe| at(probe, &["grpc"]).is_some());
        let words = probe.map_or(&[][..], |probe| list(probe, &["exec", "command"]));
        own.is_native_sidecar() && (by_http || by_grpc || words.iter().any(|word| word == "--probe"))
    };
    let without = authorizers(manifests)
        .into_iter()
        .filter(|own| at(own.container, &["readinessProbe"]).is_none() && !waits(own));
    without.map(|own| hit(own.object, format!("the container `{}` has none", own.name()))).collect()
}

/// The configurations of authorizers: ConfigMaps with a key that holds one.
pub fn configurations(manifests: &Manifests) -> Vec<(&Object, &str, Value)> {
    let mut found = Vec::new();
    for map in manifests.of_kind("ConfigMap") {
        for (key, content) in map.at(&["data"]).and_then(Value::as_object).into_iter().flatten() {
            let Some(Ok(document)) = content.as_str().map(yaml_serde::from_str::<Value>) else { continue };
            let names = ["envoy_ext_authz_grpc", "stepgate"];
            if names.iter().any(|name| at(&document, &["plugins", name]).is_some()) {
                found.push((map, key.as_str(), document));
            }
        }
    }
    found
}

pub(super) fn configuration(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for (map, key, document) in configurations(manifests) {
        for problem in key_problems(&document).errors {
            found.push(hit(map, format!("{key}: {problem}")));
        }
    }
    found
}

/// Where a pod has the token and the root of its API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Pods with `preset: kubernetes` in their configuration and no token of their service account.
pub(super) fn kubernetes_token(manifests: &Manifests) -> Vec<Hit<'_>> {
    let is_off = |value: &Value| at(value, &["automountServiceAccountToken"]) == Some(&Value::Bool(false));
    let needs = |issuer: &Value| {
        let elsewhere = ["jwks_url", "discovery", "jwks_file", "jwks_service", "jwks"];
        text(issuer, &["preset"]) == Some("kubernetes") && elsewhere.iter().all(|name| at(issuer, &[name]).is_none())
    };
    let maps: Vec<&Object> = configurations(manifests)
        .into_iter()
        .filter(|(_, _, document)| list(document, &["plugins", "stepgate", "issuers"]).iter().any(needs))
        .map(|(map, ..)| map)
        .collect();
    let lacks = |own: &Authorizer<'_>| {
        let uses = list(own.pod, &["volumes"]).iter().filter_map(|volume| text(volume, &["configMap", "name"]));
        let is_needed = uses
            .into_iter()
            .any(|name| maps.iter().any(|map| map.name() == name && map.namespace() == own.object.namespace()));
        let mut mounts = list(own.container, &["volumeMounts"]).iter();
        let is_mounted = mounts.any(|mount| text(mount, &["mountPath"]) == Some(SERVICE_ACCOUNT));
        let account = text(own.pod, &["serviceAccountName"]).unwrap_or("default");
        let account = manifests.find("ServiceAccount", own.object.namespace(), account);
        let is_automatic = match at(own.pod, &["automountServiceAccountToken"]) {
            Some(_) => !is_off(own.pod),
            None => !account.is_some_and(|account| is_off(&account.value)),
        };
        is_needed && !is_mounted && !is_automatic
    };
    let without = authorizers(manifests).into_iter().filter(lacks);
    without
        .map(|own| hit(own.object, format!("the container `{}` has no token of its service account", own.name())))
        .collect()
}

pub(super) fn single_replica(manifests: &Manifests) -> Vec<Hit<'_>> {
    let alone = authorizers(manifests).into_iter().filter(|own| {
        let replicas = own.object.at(&["spec", "replicas"]).and_then(Value::as_u64);
        let (namespace, name) = (own.object.namespace(), own.object.name());
        let is_scaled = [("HorizontalPodAutoscaler", "minReplicas"), ("ScaledObject", "minReplicaCount")].iter().any(
            |(kind, least)| {
                manifests.of_kind(kind).any(|scaler| {
                    scaler.namespace() == namespace
                        && scaler.text(&["spec", "scaleTargetRef", "name"]) == Some(name)
                        && scaler.at(&["spec", least]).and_then(Value::as_u64).unwrap_or(1) > 1
                })
            },
        );
        own.is_shared && own.object.kind() == "Deployment" && !is_scaled && replicas.unwrap_or(1) == 1
    });
    alone.map(|own| hit(own.object, "has one replica")).collect()
}

/// The tag is mutable: a branch or channel, and no version, date or commit after it.
fn is_moving(tag: &str) -> bool {
    let channels = ["latest", "main", "master", "edge", "dev", "nightly", "stable"];
    let (channel, rest) = tag.split_once('-').unwrap_or((tag, ""));
    channels.contains(&channel) && !rest.bytes().any(|byte| byte.is_ascii_digit())
}

pub(super) fn image_not_pinned(manifests: &Manifests) -> Vec<Hit<'_>> {
    let moving = authorizers(manifests).into_iter().filter(|own| {
        let image = own.image();
        let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
        // An image built here has a tag from here.
        !image.starts_with("localhost/") && !image.contains('@') && tag.is_none_or(is_moving)
    });
    moving.map(|own| hit(own.object, format!("`{}`", own.image()))).collect()
}
