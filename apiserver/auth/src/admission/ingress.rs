//! DefaultIngressClass. Upstream: `plugin/pkg/admission/network/defaultingressclass` (v1.33).

use api::{GroupResource, Status};
use serde_json::Value;

use super::object::slot;
use super::{Operation, Plugin, Refusal, Request};
use crate::lookup::{meta_entry, text};

pub struct DefaultIngressClass;

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn mutate(&self, request: &Request<'_>, ingress: &mut Value) -> Result<(), Refusal> {
        let chosen = ingress.pointer("/spec/ingressClassName").is_some_and(Value::is_string)
            || meta_entry(ingress, "annotations", "kubernetes.io/ingress.class").is_some();
        if request.operation != Operation::Create || !request.is("ingresses.networking.k8s.io") || chosen {
            return Ok(());
        }
        let mut defaults = request.lookup.list(&GroupResource::new("networking.k8s.io", "ingressclasses"), None);
        defaults.retain(|class| meta_entry(class, "annotations", "ingressclass.kubernetes.io/is-default-class") == Some("true"));
        match defaults.as_slice() {
            [] => Ok(()),
            [class] => {
                slot(ingress, "spec")["ingressClassName"] = text(class, "/metadata/name").into();
                Ok(())
            }
            many => {
                let status = Status::internal(format!("{} default IngressClasses were found, only 1 allowed", many.len()));
                Err(request.forbidden(ingress, status.message))
            }
        }
    }
}
