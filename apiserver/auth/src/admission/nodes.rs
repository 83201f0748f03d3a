//! Small plugins around nodes and where pods go: TaintNodesByCondition, DefaultTolerationSeconds.
//!
//! Upstream: `plugin/pkg/admission/{nodetaint,defaulttolerationseconds}` (v1.33).

use serde_json::{Value, json};

use super::object::{list, slot};
use super::{Operation, Plugin, Refusal, Request};
use crate::lookup::{items, text};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// How long pods stay on a node that went away, seconds.
const STAY: i64 = 300;

/// A new node takes no pods before its controller has seen it ready.
pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn mutate(&self, request: &Request<'_>, node: &mut Value) -> Result<(), Refusal> {
        if !request.is("nodes") || request.operation != Operation::Create {
            return Ok(());
        }
        let taints = list(slot(node, "spec"), "taints");
        if !taints.iter().any(|taint| text(taint, "/key") == NOT_READY && text(taint, "/effect") == "NoSchedule") {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}

/// Pods that say nothing about lost nodes leave them after five minutes.
pub struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Refusal> {
        if !request.is("pods") || !matches!(request.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        for key in [NOT_READY, UNREACHABLE] {
            let tolerates = |toleration: &Value| {
                [key, ""].contains(&text(toleration, "/key")) && ["NoExecute", ""].contains(&text(toleration, "/effect"))
            };
            if !items(pod, "/spec/tolerations").iter().any(tolerates) {
                let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": STAY});
                list(slot(pod, "spec"), "tolerations").push(toleration);
            }
        }
        Ok(())
    }
}
