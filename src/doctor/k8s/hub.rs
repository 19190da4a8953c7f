//! Pods that run the hub of revocations.

use serde_json::Value;

use super::workloads::{authorizers, configurations};
use super::{Hit, hit};
use crate::doctor::manifests::{Manifests, Object, at, list, text};

/// The containers of workloads that run `stepgate hub`, with the pod's spec.
fn hubs(manifests: &Manifests) -> Vec<(&Object, &Value, &Value)> {
    let mut found = Vec::new();
    for object in manifests.all().filter(|object| ["Deployment", "StatefulSet", "DaemonSet"].contains(&object.kind())) {
        let Some(pod) = object.at(&["spec", "template", "spec"]) else { continue };
        for container in list(pod, &["containers"]) {
            let words: Vec<&str> = ["command", "args"]
                .iter()
                .flat_map(|name| list(container, &[name]))
                .filter_map(Value::as_str)
                .filter(|word| word.rsplit('/').next() != Some("stepgate"))
                .collect();
            let is_ours = text(container, &["image"]).is_some_and(|image| image.contains("stepgate"));
            if is_ours && words.first() == Some(&"hub") {
                found.push((object, pod, container));
            }
        }
    }
    found
}

/// The ledger of these pods is in a server that hubs share.
fn is_shared(manifests: &Manifests, object: &Object, pod: &Value) -> bool {
    let mut maps = list(pod, &["volumes"]).iter().filter_map(|volume| text(volume, &["configMap", "name"]));
    maps.any(|name| {
        configurations(manifests).iter().any(|(map, _, document)| {
            map.name() == name
                && map.namespace() == object.namespace()
                && at(document, &["plugins", "stepgate", "hub", "redis"]).is_some()
        })
    })
}

/// Several pods of a workload run at the same time.
fn is_several(manifests: &Manifests, object: &Object) -> bool {
    let replicas = object.at(&["spec", "replicas"]).and_then(Value::as_u64).unwrap_or(1);
    let is_scaled = manifests.of_kind("HorizontalPodAutoscaler").any(|scaler| {
        scaler.namespace() == object.namespace()
            && scaler.text(&["spec", "scaleTargetRef", "name"]) == Some(object.name())
            && scaler.at(&["spec", "maxReplicas"]).and_then(Value::as_u64).unwrap_or(1) > 1
    });
    replicas > 1 || is_scaled || object.kind() == "DaemonSet"
}

pub(super) fn with_replicas(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found: Vec<Hit<'_>> = hubs(manifests)
        .into_iter()
        .filter(|(object, pod, _)| is_several(manifests, object) && !is_shared(manifests, object, pod))
        .map(|(object, ..)| hit(object, "runs several hubs"))
        .collect();
    let is_embedded =
        |document: &Value| text(document, &["plugins", "stepgate", "revocation", "hub"]) == Some("embedded");
    let embedded: Vec<&Object> = configurations(manifests)
        .into_iter()
        .filter(|(_, _, document)| is_embedded(document))
        .map(|(map, ..)| map)
        .collect();
    for own in authorizers(manifests) {
        let mut volumes = list(own.pod, &["volumes"]).iter().filter_map(|volume| text(volume, &["configMap", "name"]));
        let uses_one = volumes
            .any(|name| embedded.iter().any(|map| map.name() == name && map.namespace() == own.object.namespace()));
        if uses_one && is_several(manifests, own.object) {
            found.push(hit(own.object, "has a hub of its own in each replica"));
        }
    }
    found
}

pub(super) fn without_volume(manifests: &Manifests) -> Vec<Hit<'_>> {
    let is_kept = |object: &Object, pod: &Value| {
        let claims = list(pod, &["volumes"]).iter().any(|volume| at(volume, &["persistentVolumeClaim"]).is_some());
        let templates = object.at(&["spec", "volumeClaimTemplates"]).and_then(Value::as_array);
        claims || templates.is_some_and(|templates| !templates.is_empty())
    };
    let without = hubs(manifests)
        .into_iter()
        .filter(|(object, pod, _)| !is_kept(object, pod) && !is_shared(manifests, object, pod));
    without.map(|(object, ..)| hit(object, "runs a hub without a volume that stays")).collect()
}
