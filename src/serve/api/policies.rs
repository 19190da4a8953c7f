//! Policies, the configuration and the status: `/v1/policies`, `/v1/config`, `/v1/status`; and bundles on the admin socket.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value as Json, json};

use super::{Api, Failure, INPUT, Parameters, PolicyChangeError, answer, rejected};
use crate::policy::Module;
use crate::value::parse_json;

type Reply = Result<Response, Failure>;

fn shown(api: &Api, headers: &HeaderMap, uri: &Uri, value: &Json) -> Response {
    let value = parse_json(value.to_string().as_bytes(), INPUT).unwrap_or_default();
    answer(api, headers, &Parameters::of(uri), &value)
}

/// Without `ast`, which is OPA's own.
fn described(module: &Module) -> Json {
    json!({"id": module.path, "raw": module.text})
}

pub async fn list(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Response {
    let policies: Vec<Json> = api.control.policies().iter().map(described).collect();
    shown(&api, &headers, &uri, &json!({"result": policies}))
}

fn unknown(id: &str) -> Failure {
    Failure::not_found(format!("storage_not_found_error: policy id {id:?}"))
}

pub async fn get(State(api): State<Arc<Api>>, Path(id): Path<String>, uri: Uri, headers: HeaderMap) -> Reply {
    let policies = api.control.policies();
    let found = policies.iter().find(|module| module.path == id).ok_or_else(|| unknown(&id))?;
    Ok(shown(&api, &headers, &uri, &json!({"result": described(found)})))
}

fn refused(id: &str, error: PolicyChangeError) -> Failure {
    match error {
        PolicyChangeError::NotFound => unknown(id),
        PolicyChangeError::Owned(bundle) => Failure::bad_request(format!("path {id} is owned by bundle {bundle:?}")),
        PolicyChangeError::Rejected(rejections) => Failure::bad_request("error(s) occurred while compiling module(s)")
            .with_errors(rejections.iter().map(rejected)),
        PolicyChangeError::Other(message) => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message),
    }
}

fn writable(api: &Api) -> Result<(), Failure> {
    match api.policy_writes {
        true => Ok(()),
        false => Err(Failure::new(
            StatusCode::FORBIDDEN,
            "invalid_operation",
            "policies are not changed over this API; start with --allow-policy-writes to allow it",
        )),
    }
}

pub async fn put(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    text: String,
) -> Reply {
    writable(&api)?;
    let (control, name) = (Arc::clone(&api.control), id.clone());
    let put = api.aside(move || control.put_policy(&name, &text)).await?;
    put.map_err(|error| refused(&id, error))?;
    Ok(shown(&api, &headers, &uri, &json!({})))
}

pub async fn delete(State(api): State<Arc<Api>>, Path(id): Path<String>, uri: Uri, headers: HeaderMap) -> Reply {
    writable(&api)?;
    let (control, name) = (Arc::clone(&api.control), id.clone());
    let deleted = api.aside(move || control.delete_policy(&name)).await?;
    deleted.map_err(|error| refused(&id, error))?;
    Ok(shown(&api, &headers, &uri, &json!({})))
}

pub async fn config(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Response {
    shown(&api, &headers, &uri, &json!({"result": api.control.config()}))
}

pub async fn status(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Reply {
    let disabled = || Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "status plugin not enabled");
    let status = api.control.status().ok_or_else(disabled)?;
    Ok(shown(&api, &headers, &uri, &json!({"result": status})))
}

pub async fn refresh(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Reply {
    match api.control.refresh(&name) {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(Failure::not_found(format!("there is no bundle {name:?}"))),
    }
}
