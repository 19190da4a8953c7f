//! The parts of the process that the API shows and changes.

use serde_json::{Value as Json, json};

use super::runtime::Runtime;
use crate::config::{public, resolve_labels};
use crate::decision_queue::metrics::LogMetrics;
use crate::feed::activation::ActivationError;
use crate::policy::{Module, RegoVersion};
use crate::serve::{Control, PolicyChangeError};

impl Control for Runtime {
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
        is_wanted.then(|| self.status.to_json(&self.health.plugins(), &self.metrics.of::<LogMetrics>().counts()))
    }

    fn policies(&self) -> Vec<Module> {
        let mut policies = self.activation.policies();
        // OPA's ids have neither in front.
        policies.iter_mut().for_each(|module| module.path = policy_id(&module.path).to_owned());
        policies
    }

    fn put_policy(&self, id: &str, text: &str) -> Result<(), PolicyChangeError> {
        let known = self.activation.policies().into_iter().find(|module| policy_id(&module.path) == id);
        let path = known.map_or_else(|| id.to_owned(), |module| module.path);
        let module = Module { path, text: text.to_owned(), version: RegoVersion::V1 };
        self.activation.put_policy(module).map_err(change_error)
    }

    fn delete_policy(&self, id: &str) -> Result<(), PolicyChangeError> {
        let known = self.activation.policies().into_iter().find(|module| policy_id(&module.path) == id);
        self.activation.delete_policy(known.as_ref().map_or(id, |module| &module.path)).map_err(change_error)
    }

    fn refresh(&self, bundle: &str) -> bool {
        self.bundles.refresh(bundle)
    }
}

fn policy_id(path: &str) -> &str {
    path.trim_start_matches("./").trim_start_matches('/')
}

fn change_error(error: ActivationError) -> PolicyChangeError {
    match error {
        ActivationError::Owned(bundle) => PolicyChangeError::Owned(bundle),
        ActivationError::NoSuchPolicy => PolicyChangeError::NotFound,
        ActivationError::Policy(rejections) => PolicyChangeError::Rejected(rejections),
        other => PolicyChangeError::Activation(other.to_string()),
    }
}
