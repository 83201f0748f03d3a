//! The checks of the Pod Security Standards, one function each, in upstream's order: baseline's, then restricted's.
//!
//! Upstream: `pod-security-admission/policy/check_*.go` (v1.33), latest version of each.

use serde_json::Value;

use super::Level;
use crate::lookup::{items, text};

/// A violated check: its name and what is wrong.
struct Violation {
    reason: String,
    detail: String,
}

type Check = fn(&Value) -> Option<Violation>;

#[rustfmt::skip]
const BASELINE: &[Check] =
    &[app_armor, capabilities_baseline, host_namespaces, host_path_volumes, host_ports, privileged, proc_mount, se_linux, seccomp_baseline, sysctls, windows_host_process];
/// Of baseline's, those that restricted does not replace by a stricter one.
#[rustfmt::skip]
const RESTRICTED: &[Check] = &[
    app_armor, host_namespaces, host_ports, privileged, proc_mount, se_linux, sysctls, windows_host_process,
    allow_privilege_escalation, capabilities_restricted, restricted_volumes, run_as_non_root, run_as_user, seccomp_restricted,
];

fn run(pod: &Value, level: Level) -> impl Iterator<Item = Violation> {
    let checks = match level {
        Level::Privileged => &[][..],
        Level::Baseline => BASELINE,
        Level::Restricted => RESTRICTED,
    };
    checks.iter().filter_map(move |check| check(pod))
}

/// `privileged (container "a" must not set securityContext.privileged=true)`, one per violated check.
pub fn violations(pod: &Value, level: Level) -> Vec<String> {
    run(pod, level).map(|v| format!("{} ({})", v.reason, v.detail)).collect()
}

/// Only the names of the violated checks.
pub fn violated_names(pod: &Value, level: Level) -> Vec<String> {
    run(pod, level).map(|v| v.reason).collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"].into_iter().flat_map(|pointer| items(pod, pointer))
}

fn context<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    object.get("securityContext")?.get(field).filter(|value| !value.is_null())
}

fn pod_context<'a>(pod: &'a Value, field: &str) -> Option<&'a Value> {
    context(pod.get("spec")?, field)
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// `container "a"` or `containers "a", "b"`.
fn named(kind: &str, names: &[&str]) -> String {
    format!("{kind}{} {}", if names.len() == 1 { "" } else { "s" }, quoted(names.iter().copied()))
}

/// The names of containers that something is wrong with.
fn bad(pod: &Value, wrong: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(pod).filter(|c| wrong(c)).map(|c| text(c, "/name")).collect()
}

fn violation(reason: impl Into<String>, detail: impl Into<String>) -> Option<Violation> {
    Some(Violation { reason: reason.into(), detail: detail.into() })
}

fn is_windows(pod: &Value) -> bool {
    text(pod, "/spec/os/name") == "windows"
}

/// Sorted, each once.
fn distinct(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list.dedup();
    list
}

fn app_armor(pod: &Value) -> Option<Violation> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let is_bad = |object: Option<&Value>| object.is_some_and(|profile| !matches!(text(profile, "/type"), "RuntimeDefault" | "Localhost"));
    let mut setters = Vec::new();
    if is_bad(pod_context(pod, "appArmorProfile")) {
        setters.push("pod".to_owned());
    }
    let names = bad(pod, |c| is_bad(context(c, "appArmorProfile")));
    if !names.is_empty() {
        setters.push(named("container", &names));
    }
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    let annotated: Vec<String> = annotations
        .into_iter()
        .flatten()
        .filter(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            key.starts_with(ANNOTATION) && !(value.is_empty() || value == "runtime/default" || value.starts_with("localhost/"))
        })
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if setters.is_empty() && annotated.is_empty() {
        return None;
    }
    let mut details = Vec::new();
    if !setters.is_empty() {
        details.push(format!("{} must not set AppArmor profile type to \"Unconfined\"", setters.join(" and ")));
    }
    if !annotated.is_empty() {
        details.push(format!("annotation{} {}", if annotated.len() == 1 { "" } else { "s" }, annotated.join(", ")));
    }
    violation("forbidden AppArmor profile", details.join(" and "))
}

/// Capabilities a container adds beyond `allowed`, and the containers that do.
fn added<'a>(pod: &'a Value, allowed: &[&str]) -> (Vec<&'a str>, Vec<String>) {
    let extra = |container: &Value| -> Vec<String> {
        items(container, "/securityContext/capabilities/add")
            .iter()
            .filter_map(Value::as_str)
            .filter(|capability| !allowed.contains(capability))
            .map(str::to_owned)
            .collect()
    };
    let all = containers(pod).flat_map(extra).collect();
    (bad(pod, |c| !extra(c).is_empty()), distinct(all))
}

fn capabilities_baseline(pod: &Value) -> Option<Violation> {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let (names, extra) = added(pod, &DEFAULT);
    if names.is_empty() {
        return None;
    }
    let extra = quoted(extra.iter().map(String::as_str));
    violation(
        "non-default capabilities",
        format!("{} must not include {extra} in securityContext.capabilities.add", named("container", &names)),
    )
}

fn host_namespaces(pod: &Value) -> Option<Violation> {
    let set = |field: &&str| pod.pointer(&format!("/spec/{field}")) == Some(&Value::Bool(true));
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|f| set(f)).map(|f| format!("{f}=true")).collect();
    if used.is_empty() { None } else { violation("host namespaces", used.join(", ")) }
}

fn host_path_volumes(pod: &Value) -> Option<Violation> {
    let volumes = items(pod, "/spec/volumes").iter().filter(|v| v.get("hostPath").is_some_and(|h| !h.is_null()));
    let names: Vec<&str> = volumes.map(|v| text(v, "/name")).collect();
    if names.is_empty() { None } else { violation("hostPath volumes", named("volume", &names)) }
}

fn host_ports(pod: &Value) -> Option<Violation> {
    let ports = |container: &Value| -> Vec<i64> {
        items(container, "/ports").iter().filter_map(|p| p.get("hostPort")?.as_i64()).filter(|port| *port != 0).collect()
    };
    let names = bad(pod, |c| !ports(c).is_empty());
    if names.is_empty() {
        return None;
    }
    let mut all: Vec<i64> = containers(pod).flat_map(ports).collect();
    all.sort_unstable();
    all.dedup();
    let list = all.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let noun = if all.len() == 1 { "hostPort" } else { "hostPorts" };
    violation("hostPort", format!("{} {verb} {noun} {list}", named("container", &names)))
}

fn privileged(pod: &Value) -> Option<Violation> {
    let names = bad(pod, |c| context(c, "privileged") == Some(&Value::Bool(true)));
    if names.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", named("container", &names)))
}

fn proc_mount(pod: &Value) -> Option<Violation> {
    let kind = |c: &Value| context(c, "procMount").and_then(Value::as_str).filter(|kind| *kind != "Default").map(str::to_owned);
    let names = bad(pod, |c| kind(c).is_some());
    if names.is_empty() {
        return None;
    }
    let kinds = distinct(containers(pod).filter_map(kind).collect());
    let kinds = quoted(kinds.iter().map(String::as_str));
    violation("procMount", format!("{} must not set securityContext.procMount to {kinds}", named("container", &names)))
}

fn se_linux(pod: &Value) -> Option<Violation> {
    const TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let wrong_type = |o: &Value| !TYPES.contains(&text(o, "/type"));
    let named_user = |o: &Value| !text(o, "/user").is_empty();
    let named_role = |o: &Value| !text(o, "/role").is_empty();
    let is_bad = |o: Option<&Value>| o.is_some_and(|o| wrong_type(o) || named_user(o) || named_role(o));
    let on_pod = is_bad(pod_context(pod, "seLinuxOptions"));
    let names = bad(pod, |c| is_bad(context(c, "seLinuxOptions")));
    if !on_pod && names.is_empty() {
        return None;
    }
    let options: Vec<&Value> =
        pod_context(pod, "seLinuxOptions").into_iter().chain(containers(pod).filter_map(|c| context(c, "seLinuxOptions"))).collect();
    let mut parts = Vec::new();
    let types = distinct(options.iter().filter(|o| wrong_type(o)).map(|o| text(o, "/type").to_owned()).collect());
    if !types.is_empty() {
        parts.push(format!("type{} {}", if types.len() == 1 { "" } else { "s" }, quoted(types.iter().map(String::as_str))));
    }
    if options.iter().any(|o| named_user(o)) {
        parts.push("user may not be set".to_owned());
    }
    if options.iter().any(|o| named_role(o)) {
        parts.push("role may not be set".to_owned());
    }
    let mut setters = Vec::new();
    if on_pod {
        setters.push("pod".to_owned());
    }
    if !names.is_empty() {
        setters.push(named("container", &names));
    }
    violation("seLinuxOptions", format!("{} set forbidden securityContext.seLinuxOptions: {}", setters.join(" and "), parts.join("; ")))
}

fn seccomp_type(object: Option<&Value>) -> Option<&str> {
    object.map(|profile| text(profile, "/type")).filter(|kind| !kind.is_empty())
}

fn seccomp_baseline(pod: &Value) -> Option<Violation> {
    let is_bad = |kind: Option<&str>| kind.is_some_and(|kind| !matches!(kind, "RuntimeDefault" | "Localhost"));
    let on_pod = seccomp_type(pod_context(pod, "seccompProfile")).filter(|kind| is_bad(Some(kind)));
    let names = bad(pod, |c| is_bad(seccomp_type(context(c, "seccompProfile"))));
    if on_pod.is_none() && names.is_empty() {
        return None;
    }
    let mut setters: Vec<String> = on_pod.iter().map(|_| "pod".to_owned()).collect();
    if !names.is_empty() {
        setters.push(named("container", &names));
    }
    let of_containers = containers(pod).filter_map(|c| seccomp_type(context(c, "seccompProfile"))).filter(|kind| is_bad(Some(kind)));
    let kinds = distinct(on_pod.into_iter().chain(of_containers).map(str::to_owned).collect());
    let kinds = quoted(kinds.iter().map(String::as_str));
    violation("seccompProfile", format!("{} must not set securityContext.seccompProfile.type to {kinds}", setters.join(" and ")))
}

fn sysctls(pod: &Value) -> Option<Violation> {
    const SAFE: [&str; 10] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    ];
    let names = items(pod, "/spec/securityContext/sysctls").iter().map(|s| text(s, "/name"));
    let unsafe_names: Vec<&str> = names.filter(|name| !SAFE.contains(name)).collect();
    if unsafe_names.is_empty() { None } else { violation("forbidden sysctls", unsafe_names.join(", ")) }
}

fn windows_host_process(pod: &Value) -> Option<Violation> {
    let on = |options: Option<&Value>| options.and_then(|o| o.get("hostProcess")) == Some(&Value::Bool(true));
    let on_pod = on(pod_context(pod, "windowsOptions"));
    let names = bad(pod, |c| on(context(c, "windowsOptions")));
    if !on_pod && names.is_empty() {
        return None;
    }
    let mut setters = Vec::new();
    if on_pod {
        setters.push("pod".to_owned());
    }
    if !names.is_empty() {
        setters.push(named("container", &names));
    }
    violation("hostProcess", format!("{} must not set securityContext.windowsOptions.hostProcess=true", setters.join(" and ")))
}

fn allow_privilege_escalation(pod: &Value) -> Option<Violation> {
    let names = bad(pod, |c| context(c, "allowPrivilegeEscalation") != Some(&Value::Bool(false)));
    if names.is_empty() || is_windows(pod) {
        return None;
    }
    violation(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", named("container", &names)),
    )
}

fn capabilities_restricted(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    let drops_all = |c: &Value| items(c, "/securityContext/capabilities/drop").iter().any(|capability| capability == "ALL");
    let keeping = bad(pod, |c| !drops_all(c));
    let (adding, extra) = added(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named("container", &keeping)));
    }
    if !adding.is_empty() {
        let extra = quoted(extra.iter().map(String::as_str));
        details.push(format!("{} must not include {extra} in securityContext.capabilities.add", named("container", &adding)));
    }
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn restricted_volumes(pod: &Value) -> Option<Violation> {
    const ALLOWED: [&str; 8] = ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    let forbidden = |volume: &Value| -> Option<String> {
        let source = volume.as_object()?.iter().find(|(field, value)| *field != "name" && !value.is_null())?.0;
        (!ALLOWED.contains(&source.as_str())).then(|| source.clone())
    };
    let volumes: Vec<&Value> = items(pod, "/spec/volumes").iter().filter(|v| forbidden(v).is_some()).collect();
    if volumes.is_empty() {
        return None;
    }
    let names: Vec<&str> = volumes.iter().map(|v| text(v, "/name")).collect();
    let kinds = distinct(volumes.iter().filter_map(|v| forbidden(v)).collect());
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let noun = if kinds.len() == 1 { "type" } else { "types" };
    let kinds = quoted(kinds.iter().map(String::as_str));
    violation("restricted volume types", format!("{} {verb} restricted volume {noun} {kinds}", named("volume", &names)))
}

fn run_as_non_root(pod: &Value) -> Option<Violation> {
    let pod_says = pod_context(pod, "runAsNonRoot").and_then(Value::as_bool);
    let says = |c: &Value| context(c, "runAsNonRoot").and_then(Value::as_bool);
    let explicit = bad(pod, |c| says(c) == Some(false));
    let implicit = bad(pod, |c| says(c).is_none());
    let mut details = Vec::new();
    if pod_says == Some(false) {
        details.push("pod must not set securityContext.runAsNonRoot=false".to_owned());
    }
    if !explicit.is_empty() {
        details.push(format!("{} must not set securityContext.runAsNonRoot=false", named("container", &explicit)));
    }
    if details.is_empty() && pod_says != Some(true) && !implicit.is_empty() {
        details.push(format!("pod or {} must set securityContext.runAsNonRoot=true", named("container", &implicit)));
    }
    if details.is_empty() { None } else { violation("runAsNonRoot != true", details.join(" and ")) }
}

fn run_as_user(pod: &Value) -> Option<Violation> {
    let is_root = |value: Option<&Value>| value.and_then(Value::as_i64) == Some(0);
    let mut setters = Vec::new();
    if is_root(pod_context(pod, "runAsUser")) {
        setters.push("pod".to_owned());
    }
    let names = bad(pod, |c| is_root(context(c, "runAsUser")));
    if !names.is_empty() {
        setters.push(named("container", &names));
    }
    if setters.is_empty() { None } else { violation("runAsUser=0", format!("{} must not set runAsUser=0", setters.join(" and "))) }
}

fn seccomp_restricted(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    let good = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
    let on_pod = seccomp_type(pod_context(pod, "seccompProfile"));
    let of = |c: &Value| seccomp_type(context(c, "seccompProfile")).map(str::to_owned);
    let explicit = bad(pod, |c| of(c).is_some_and(|kind| !good(&kind)));
    let mut details = Vec::new();
    if let Some(kind) = on_pod.filter(|kind| !good(kind)) {
        details.push(format!("pod must not set securityContext.seccompProfile.type to {kind:?}"));
    }
    if !explicit.is_empty() {
        let kinds = distinct(containers(pod).filter_map(of).filter(|kind| !good(kind)).collect());
        let kinds = quoted(kinds.iter().map(String::as_str));
        details.push(format!("{} must not set securityContext.seccompProfile.type to {kinds}", named("container", &explicit)));
    }
    let implicit = bad(pod, |c| of(c).is_none());
    if details.is_empty() && on_pod.is_none() && !implicit.is_empty() {
        details.push(format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            named("container", &implicit)
        ));
    }
    if details.is_empty() { None } else { violation("seccompProfile", details.join(" and ")) }
}
