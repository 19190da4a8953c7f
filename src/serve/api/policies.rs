//! Policies, the configuration and the status: `/v1/policies`, `/v1/config`, `/v1/status`; and bundles on the admin socket.

use std::sync::Arc;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value as Json, json};

use super::{Api, Call, Failure, INPUT, PolicyChangeError};
use crate::policy::{ApiError, Module};
use crate::value::parse_json;

type Reply = Result<Response, Failure>;

impl Call {
    fn show(&self, value: &Json) -> Response {
        self.answer(&parse_json(value.to_string().as_bytes(), INPUT).unwrap_or_default())
    }
}

/// Without `ast`, which is OPA's own.
fn described(module: &Module) -> Json {
    json!({"id": module.path, "raw": module.text})
}

pub(super) async fn list(call: Call) -> Response {
    let policies: Vec<Json> = call.api.control.policies().iter().map(described).collect();
    call.show(&json!({"result": policies}))
}

fn unknown(id: &str) -> Failure {
    Failure::not_found(format!("storage_not_found_error: policy id {id:?}"))
}

pub(super) async fn get(call: Call, Path(id): Path<String>) -> Reply {
    let policies = call.api.control.policies();
    let found = policies.iter().find(|module| module.path == id).ok_or_else(|| unknown(&id))?;
    Ok(call.show(&json!({"result": described(found)})))
}

fn refused(id: &str, error: PolicyChangeError) -> Failure {
    match error {
        PolicyChangeError::NotFound => unknown(id),
        PolicyChangeError::Owned(bundle) => Failure::bad_request(format!("path {id} is owned by bundle {bundle:?}")),
        PolicyChangeError::Rejected(rejections) => Failure::bad_request("error(s) occurred while compiling module(s)")
            .with_errors(rejections.iter().map(|rejection| ApiError::from(rejection).to_json())),
        PolicyChangeError::Activation(message) => {
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
        }
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

pub(super) async fn put(call: Call, Path(id): Path<String>, text: String) -> Reply {
    writable(&call.api)?;
    let (control, name) = (Arc::clone(&call.api.control), id.clone());
    let put = call.api.aside(move || control.put_policy(&name, &text)).await?;
    put.map_err(|error| refused(&id, error))?;
    Ok(call.show(&json!({})))
}

pub(super) async fn delete(call: Call, Path(id): Path<String>) -> Reply {
    writable(&call.api)?;
    let (control, name) = (Arc::clone(&call.api.control), id.clone());
    let deleted = call.api.aside(move || control.delete_policy(&name)).await?;
    deleted.map_err(|error| refused(&id, error))?;
    Ok(call.show(&json!({})))
}

pub(super) async fn config(call: Call) -> Response {
    call.show(&json!({"result": call.api.control.config()}))
}

pub(super) async fn status(call: Call) -> Reply {
    let disabled = || Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "status plugin not enabled");
    let status = call.api.control.status().ok_or_else(disabled)?;
    Ok(call.show(&json!({"result": status})))
}

pub(super) async fn refresh(call: Call, Path(name): Path<String>) -> Reply {
    match call.api.control.refresh(&name) {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(Failure::not_found(format!("there is no bundle {name:?}"))),
    }
}
