//! What the API shows and changes of the process.

use serde_json::{Value as Json, json};

use super::plane::Plane;
use crate::config::{public, resolve_labels};
use crate::feed::activation::ActivationError;
use crate::policy::{Module, RegoVersion};
use crate::serve::{Control, PolicyChangeError};

impl Control for Plane {
    fn config(&self) -> Json {
        let document = self.in_force.lock().clone();
        let mut shown = public(&document);
        let labels = self.labels(&resolve_labels(&document));
        if let Some(members) = shown.as_object_mut() {
            members.insert("labels".to_owned(), json!(labels));
            for (name, default) in
                [("default_decision", "/system/main"), ("default_authorization_decision", "/system/authz/allow")]
            {
                members.entry(name).or_insert_with(|| default.into());
            }
        }
        shown
    }

    fn status(&self) -> Option<Json> {
        let is_wanted = self.told.borrow().is_some();
        is_wanted.then(|| self.status.to_json(&self.health.plugins(), &self.metrics.decision_log_counts()))
    }

    fn policies(&self) -> Vec<Module> {
        self.activation.policies()
    }

    fn put_policy(&self, id: &str, text: &str) -> Result<(), PolicyChangeError> {
        let module = Module { path: id.to_owned(), text: text.to_owned(), version: RegoVersion::V1 };
        self.activation.put_policy(module).map_err(change_error)
    }

    fn delete_policy(&self, id: &str) -> Result<(), PolicyChangeError> {
        self.activation.delete_policy(id).map_err(change_error)
    }

    fn refresh(&self, bundle: &str) -> bool {
        self.bundles.refresh(bundle)
    }
}

fn change_error(error: ActivationError) -> PolicyChangeError {
    match error {
        ActivationError::Owned(bundle) => PolicyChangeError::Owned(bundle),
        ActivationError::NoSuchPolicy => PolicyChangeError::NotFound,
        ActivationError::Policy(rejections) => PolicyChangeError::Rejected(rejections),
        other => PolicyChangeError::Other(other.to_string()),
    }
}
