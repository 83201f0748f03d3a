//! From a pod's container to the CRI's container configuration.
//!
//! Upstream: `pkg/kubelet/kuberuntime/{kuberuntime_container,kuberuntime_container_linux,security_context}.go`, v1.33.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, Image, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, Mount, MountPropagation, NamespaceMode, NamespaceOption, SecurityProfile,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext, VolumeMount};

use crate::env::expand;
use crate::pod::*;
use crate::volumes::{Mounted, pod_directory, subpath};
use crate::{resources, sandbox};

const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const DEFAULT_TERMINATION_PATH: &str = "/dev/termination-log";

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    /// The container into whose process namespace it goes.
    pub target: Option<&'a str>,
    pub restarts: i32,
    pub env: Vec<(String, String)>,
    pub volumes: &'a BTreeMap<String, Mounted>,
    pub image: &'a Image,
    pub root: &'a Path,
    pub machine_memory: i64,
}

/// Makes the container's files (log directory, termination log, sub-path binds) and its configuration.
/// Errors are worth a CreateContainerConfigError.
pub fn config(inputs: &Inputs) -> Result<ContainerConfig, String> {
    let (pod, container) = (inputs.pod, inputs.container);
    let security = effective(pod, container);
    verify_non_root(pod, container, &security, inputs.image)?;
    let log_path = format!("{}/{}.log", container.name, inputs.restarts);
    let directory = sandbox::log_directory(pod).join(&container.name);
    std::fs::create_dir_all(&directory).map_err(|e| format!("create container log directory for container {}: {e}", container.name))?;
    let variables: HashMap<&str, &str> = inputs.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        let lookup = |name: &str| variables.get(name).map(|v| (*v).to_owned());
        words.iter().flatten().map(|word| expand(word, lookup)).collect()
    };
    let (termination_mount, termination_path) = termination_log(inputs)?;
    let mut mounts = mounts(inputs, &variables)?;
    mounts.push(termination_mount);
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: inputs.restarts.unsigned_abs() }),
        image: Some(ImageSpec {
            image: inputs.image.id.clone(),
            user_specified_image: container.image().to_owned(),
            ..ImageSpec::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: inputs.env.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts,
        labels: labels(pod, container),
        annotations: annotations(inputs, &termination_path),
        log_path,
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::container(pod, container, inputs.machine_memory)),
            security_context: Some(security_context(inputs, &security)),
        }),
        ..ContainerConfig::default()
    })
}

fn labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_POD_NAME.to_owned(), pod.name().to_owned()),
        (LABEL_POD_NAMESPACE.to_owned(), pod.namespace().to_owned()),
        (LABEL_POD_UID.to_owned(), pod.uid().to_owned()),
        (LABEL_CONTAINER_NAME.to_owned(), container.name.clone()),
    ])
}

fn annotations(inputs: &Inputs, termination_path: &str) -> HashMap<String, String> {
    let container = inputs.container;
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".into());
    HashMap::from([
        (ANNOTATION_HASH.to_owned(), container.hash()),
        (ANNOTATION_RESTART_COUNT.to_owned(), inputs.restarts.to_string()),
        (ANNOTATION_TERMINATION_PATH.to_owned(), termination_path.to_owned()),
        (ANNOTATION_TERMINATION_POLICY.to_owned(), policy),
        (ANNOTATION_POD_GRACE.to_owned(), inputs.pod.grace_period().to_string()),
    ])
}

/// The mount whose host side the message is read from, and its path in the container; the file's name is new with every run.
fn termination_log(inputs: &Inputs) -> Result<(Mount, String), String> {
    use std::os::unix::fs::PermissionsExt;
    let container = inputs.container;
    let directory = pod_directory(inputs.root, inputs.pod.uid()).join("containers").join(&container.name);
    let file = directory.join(format!("{:08x}", rand::random::<u32>()));
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(&file, ""))
        .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)))
        .map_err(|e| format!("create termination-log file {:?}: {e}", file.display().to_string()))?;
    let path = container.termination_message_path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| DEFAULT_TERMINATION_PATH.into());
    Ok((bind(&path, &file, false), path))
}

fn bind(container_path: &str, host_path: &Path, readonly: bool) -> Mount {
    Mount { container_path: container_path.to_owned(), host_path: host_path.to_string_lossy().into_owned(), readonly, ..Mount::default() }
}

fn mounts(inputs: &Inputs, variables: &HashMap<&str, &str>) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    let declared = inputs.container.volume_mounts.as_deref().unwrap_or_default();
    for (index, mount) in declared.iter().enumerate() {
        let volume = inputs.volumes.get(&mount.name);
        let volume =
            volume.ok_or_else(|| format!("cannot find volume {:?} to mount into container {:?}", mount.name, inputs.container.name))?;
        let host_path = sub_path(inputs, mount, index, volume, variables)?;
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            _ => MountPropagation::PropagationPrivate,
        };
        let path = if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
        let readonly = mount.read_only == Some(true) || volume.read_only;
        mounts.push(Mount { propagation: propagation.into(), ..bind(&path, &host_path, readonly) });
    }
    if !declared.iter().any(|m| m.mount_path == "/etc/hosts") {
        mounts.push(bind("/etc/hosts", &pod_directory(inputs.root, inputs.pod.uid()).join("etc-hosts"), false));
    }
    Ok(mounts)
}

fn sub_path(
    inputs: &Inputs,
    mount: &VolumeMount,
    index: usize,
    volume: &Mounted,
    variables: &HashMap<&str, &str>,
) -> Result<PathBuf, String> {
    let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
        (_, Some(expression)) if !expression.is_empty() => expand_sub_path(expression, variables)?,
        (Some(path), _) if !path.is_empty() => path.clone(),
        _ => return Ok(volume.path.clone()),
    };
    let target = pod_directory(inputs.root, inputs.pod.uid())
        .join("volume-subpaths")
        .join(&mount.name)
        .join(&inputs.container.name)
        .join(index.to_string());
    subpath::bind(&volume.path, &sub_path, &target)
        .map_err(|e| format!("failed to prepare subPath for volumeMount {:?} of container {:?}: {e}", mount.name, inputs.container.name))
}

/// Every variable must have a value: half a path would lead to the wrong place.
fn expand_sub_path(expression: &str, variables: &HashMap<&str, &str>) -> Result<String, String> {
    let missing = RefCell::new(BTreeSet::new());
    let path = expand(expression, |name| {
        let value = variables.get(name).filter(|value| !value.is_empty());
        if value.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        value.map(|value| (*value).to_owned())
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    match missing.as_slice() {
        [] if path.starts_with('/') => Err(format!("error SubPath `{path}` must not be an absolute path")),
        [] if path.split('/').any(|part| part == "..") => Err(format!("unable to provision SubPath `{path}`: must not contain '..'")),
        [] => Ok(path),
        missing => Err(format!("missing value for {}", missing.join(", "))),
    }
}

/// The container's security context over the pod's.
fn effective(pod: &Pod, container: &Container) -> SecurityContext {
    let of_pod: PodSecurityContext = pod.spec().security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    SecurityContext {
        run_as_user: own.run_as_user.or(of_pod.run_as_user),
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        run_as_non_root: own.run_as_non_root.or(of_pod.run_as_non_root),
        seccomp_profile: own.seccomp_profile.clone().or(of_pod.seccomp_profile),
        app_armor_profile: own.app_armor_profile.clone().or(of_pod.app_armor_profile),
        ..own
    }
}

/// Upstream: `security_context.go` (verifyRunAsNonRoot).
fn verify_non_root(pod: &Pod, container: &Container, security: &SecurityContext, image: &Image) -> Result<(), String> {
    if security.run_as_non_root != Some(true) {
        return Ok(());
    }
    let place = format!("(pod: {:?}, container: {})", pod.full_name(), container.name);
    let image_user = image.uid.as_ref().map(|u| u.value);
    match (security.run_as_user, image_user) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, None) if !image.username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {place}",
            image.username
        )),
        (None, None) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Some(_)) => Ok(()),
    }
}

fn security_context(inputs: &Inputs, security: &SecurityContext) -> LinuxContainerSecurityContext {
    let privileged = security.privileged == Some(true);
    let unmasked = security.proc_mount.as_deref() == Some("Unmasked") || privileged;
    let paths = |paths: &[&str]| if unmasked { Vec::new() } else { paths.iter().map(|p| (*p).to_owned()).collect() };
    // Without a user of its own the image's applies, which the runtime knows by number or by name.
    let user = security.run_as_user.or_else(|| inputs.image.uid.as_ref().map(|u| u.value));
    let seccomp: SecurityProfile = sandbox::seccomp(security.seccomp_profile.as_ref().filter(|_| !privileged), inputs.root);
    LinuxContainerSecurityContext {
        capabilities: security.capabilities.clone().map(|c| Capability {
            add_capabilities: c.add.unwrap_or_default(),
            drop_capabilities: c.drop.unwrap_or_default(),
            ..Capability::default()
        }),
        privileged,
        namespace_options: Some(match inputs.target {
            Some(id) => NamespaceOption { pid: NamespaceMode::Target.into(), target_id: id.to_owned(), ..sandbox::namespaces(inputs.pod) },
            None => sandbox::namespaces(inputs.pod),
        }),
        run_as_user: user.map(|value| Int64Value { value }),
        run_as_group: security.run_as_group.map(|value| Int64Value { value }),
        run_as_username: if user.is_none() { inputs.image.username.clone() } else { String::new() },
        readonly_rootfs: security.read_only_root_filesystem == Some(true),
        supplemental_groups: sandbox::groups(inputs.pod),
        no_new_privs: security.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp),
        apparmor: security.app_armor_profile.as_ref().map(sandbox::app_armor),
        ..LinuxContainerSecurityContext::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_are_whole_or_refused() {
        let variables = HashMap::from([("POD", "web-0"), ("UP", ".."), ("ROOT", "/etc"), ("EMPTY", "")]);
        for (expression, expected) in [
            ("logs/$(POD)", Ok("logs/web-0")),
            ("$$(POD)", Ok("$(POD)")),
            ("$(NONE)/$(EMPTY)", Err("missing value for EMPTY, NONE")),
            ("$(ROOT)", Err("error SubPath `/etc` must not be an absolute path")),
            ("a/$(UP)/b", Err("unable to provision SubPath `a/../b`: must not contain '..'")),
        ] {
            assert_eq!(expand_sub_path(expression, &variables), expected.map(str::to_owned).map_err(str::to_owned), "{expression}");
        }
    }
}
