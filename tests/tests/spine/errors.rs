//! What is wrong is refused in Kubernetes' words, and nothing of it is stored.

use anyhow::Result;
use tests::{ensure_contains, ensure_eq};

use crate::Spine;

pub fn bad_input_is_refused_and_not_stored(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("e-input")?;
    let deployment = crate::verbs::deployment("web", 1);
    let config_map = |body: &str| format!("apiVersion: v1\nkind: ConfigMap\n{body}");
    for (input, said) in [
        (
            config_map("metadata: {name: Bad_Name}"),
            "The ConfigMap \"Bad_Name\" is invalid: metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain",
        ),
        (config_map("metadata: {name: a, labels: {x: 'a b'}}"), "metadata.labels: Invalid value: \"a b\""),
        (config_map("metadata: {name: a}\ndata: {k: 1}"), "cannot unmarshal number into Go struct field ConfigMap.data of type string"),
        (config_map("metadata: {name: a}\ndota: {k: v}"), "strict decoding error: unknown field \"dota\""),
        (deployment.replace("replicas: 1", "replicas: -1"), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        (deployment.replace("image: coracle/web:1", "image: ''"), "spec.template.spec.containers[0].image: Required value"),
        (
            deployment.replace("replicas: 1", "replicas: one"),
            "cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (deployment.replace("{matchLabels: {app: web}}", "{matchLabels: {app: other}}"), "`selector` does not match template `labels`"),
        (deployment.replace("containerPort: 8080", "containerPort: 80800"), "must be between 1 and 65535, inclusive"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: 1.2.3.4, ports: [{port: 80}]}".into(),
            "the provided IP (1.2.3.4) is not in the valid range",
        ),
        (
            "apiVersion: example.com/v1\nkind: Unknown\nmetadata: {name: u}".into(),
            "error: resource mapping not found for name: \"u\" namespace: \"\" from \"STDIN\": no matches for kind \"Unknown\" in version \"example.com/v1\"\nensure CRDs are installed first",
        ),
    ] {
        ensure_contains(&kubectl.fails_stdin("create -f -", &input)?, &[said])?;
    }
    let left = kubectl.ok("get deployments,services -o name")? + &kubectl.ok("get configmap a -o name --ignore-not-found")?;
    ensure_eq(left, String::new(), "objects stored")?;
    kubectl.apply(&deployment)?;
    let changed = deployment.replace("{app: web}", "{app: new}");
    ensure_contains(&kubectl.fails_stdin("apply -f -", &changed)?, &["spec.selector: Invalid value", "field is immutable"])?;
    let stale = deployment.replace("labels: {app: web}}\nspec", "labels: {app: web}, resourceVersion: \"1\"}\nspec");
    ensure_contains(
        &kubectl.fails_stdin("replace -f -", &stale)?,
        &["Error from server (Conflict)", "the object has been modified; please apply your changes to the latest version and try again"],
    )?;
    let huge = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: huge}}\ndata: {{k: \"{}\"}}", "x".repeat(4 << 20));
    kubectl.fails_stdin("create -f -", &huge)?;
    ensure_eq(kubectl.ok("get configmap huge --ignore-not-found")?, String::new(), "the oversize object")
}

pub fn permissions_are_asked(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("e-rights")?;
    ensure_contains(
        &kubectl.fails("get pods --as=jane")?,
        &[
            "Error from server (Forbidden): pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"e-rights\"",
        ],
    )?;
    kubectl.ok("create rolebinding janes --clusterrole=view --user=jane")?;
    ensure_eq(kubectl.ok("get pods --as=jane -o name")?, String::new(), "a viewer lists")?;
    ensure_contains(&kubectl.fails("create configmap c --as=jane")?, &["cannot create resource \"configmaps\""])?;
    ensure_contains(&kubectl.fails("get secrets --as=jane")?, &["cannot list resource \"secrets\""])?;
    // A role cannot give what its maker has not got.
    kubectl.ok("create rolebinding janes-roles --clusterrole=admin --user=jane")?;
    ensure_contains(
        &kubectl.fails("create role all --verb=* --resource=nodes --as=jane")?,
        &["attempting to grant RBAC permissions not currently held"],
    )
}
