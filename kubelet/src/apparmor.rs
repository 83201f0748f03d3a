//! Whether a pod wants AppArmor, and whether this node's kernel has it. A pod that wants it does not run without.
//!
//! Upstream: `pkg/security/apparmor`, v1.33.

use std::path::Path;

use k8s_openapi::api::core::v1::{AppArmorProfile, Pod};

use crate::pod::PodExt;

pub fn is_required(pod: &Pod) -> bool {
    let confines = |profile: &Option<AppArmorProfile>| profile.as_ref().is_some_and(|profile| profile.type_ != "Unconfined");
    let of_pod = pod.spec().security_context.as_ref().is_some_and(|context| confines(&context.app_armor_profile));
    of_pod || pod.all_containers().iter().any(|c| c.security_context.as_ref().is_some_and(|context| confines(&context.app_armor_profile)))
}

pub fn is_enabled() -> bool {
    let on = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    on && Path::new("/sys/kernel/security/apparmor").exists()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_profile_needs_app_armor() {
        for (profile, required) in [("RuntimeDefault", true), ("Localhost", true), ("Unconfined", false)] {
            let context = json!({"appArmorProfile": {"type": profile}});
            let of_container = json!({"metadata": {}, "spec": {"containers": [{"name": "c", "securityContext": context}]}});
            let of_pod = json!({"metadata": {}, "spec": {"containers": [], "securityContext": context}});
            for pod in [of_container, of_pod] {
                assert_eq!(is_required(&serde_json::from_value(pod).unwrap()), required, "{profile}");
            }
        }
    }
}
