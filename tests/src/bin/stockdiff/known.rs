//! Where v1.33 says something else than v1.20 on purpose: a pattern, and why. Kept short: what is not here counts against us.

use std::sync::LazyLock;

use regex::Regex;

/// A pattern in "OURS / STOCK" of the two messages, and the reason for which the answers may differ altogether.
pub const ANSWERS: &[(&str, &str)] = &[
    (r"abelSelector|elector\.match(Labels|Expressions)\S*: Invalid value: .* a valid label must", "values in label selectors are checked"),
    (r"podAffinityTerm|\.matchExpressions\.match", "the path of a term's selector says labelSelector"),
    (r"primary clusterIP can not be unset|`ipFamilyPolicy`|ipFamilies", "addresses left out are kept; families are always there"),
    (r"ExternalTrafficPolicy |externalTrafficPolicy", "traffic policies are a closed list, and for reachable Services only"),
    (r"storage\.CSIDriverSpec", "what a driver wants of kubelets may change"),
    (r"statefulset spec for fields other than", "more of a StatefulSet may change"),
    (r"hostAliases", "paths of host aliases have indices"),
    (r"kubernetes\.io/job-name|controller-uid", "labels of jobs have a domain"),
    (r"ttlSecondsAfterFinished", "no longer behind a gate"),
    (r"runtime\.Unknown", "stock compares the bytes of a revision's data, which a patch writes anew"),
    (r#"Namespace "[^"]*" is invalid: \[?metadata\.name"#, "a namespace's name is also its label"),
    (r"maxUnavailable: .*cannot be 0", "a DaemonSet may surge instead"),
    (r"terminationMessagePolicy", "a closed list"),
    (r"topologyKey|topologySpreadConstraints", "checked as label names"),
    (r"init containers", "init containers may restart, with probes and hooks"),
    (r"dataSource", "whatever fills a claim is named by dataSourceRef"),
];

/// Words that changed: what both messages are made alike by.
pub const WORDS: &[(&str, &str, &str)] = &[
    (r"may not be more than (\d+) bytes?", "must have at most $1 bytes", "1.32 counts bytes"),
    (r"cannot be handled as an? (\w+): .*", "cannot be handled as $1", "another JSON decoder since 1.23"),
    (r"json parse error: .*", "json parse error", "the same"),
    (r"error decoding patch.*|.*is invalid: patch: Invalid value:.*", "bad patch", "the same"),
    (r", .ReadWriteOncePod.", "", "a new access mode"),
    (r"(?s)pod updates may not change fields other than.*", "pod updates", "more of a pod may change"),
    (r"(?s) is immutable after creation.*", " immutable", "the diff is of Go's structs"),
    (r"NetworkPolicy\.extensions|Ingress\.extensions", "networking", "the group was renamed"),
    (r"NetworkPolicy\.networking\.k8s\.io|Ingress\.networking\.k8s\.io", "networking", "the same"),
    (r"must be a valid CIDR value, \(e\.g\. [^)]*\)", "not a valid CIDR", "longer since 1.31"),
    (r"must be a valid IP address, \(e\.g\. [^)]*\)|must be valid IP address", "must be a valid IP address", "the same"),
    (r"loopback range \(127\.0\.0\.0/8, ::1/128\)", "loopback range (127.0.0.0/8)", "both families"),
    (r"must to greater or equal than 0", "must be greater than or equal to 0", "grammar"),
    (r"[Ee]xpected exactly 5 fields, found (\d+): .*", "expected exactly 5 fields, found $1", "a newer cron library"),
    (r"must be less than or equal to (\w+) limit of \S+", "must be less than or equal to $1 limit", "says the limit"),
    (r"only operator when scope", "when scope", "one more scope"),
    (
        r", ResourceQuotaScopeBestEffort(,| and) ResourceQuotaScopeNotBestEffort( or ResourceQuotaScopeCrossNamespacePodAffinity)?",
        "",
        "the same",
    ),
    (r#"uid[^a-z]*[0-9a-f-]{36}|'[0-9a-f-]{36}'"#, "uid", "each server's own"),
    (r#"supported values: .*"#, "supported values", "lists are sorted, and longer"),
];

/// Differences of accepted objects (`+ours`, `-stock`, `path: ours / stock`).
pub const FIELDS: &[(&str, &str)] = &[
    (r#"^apiVersion: |^kind: "#, "an older version on stock's side"),
    (r"^[+-]?metadata\.(generation|managedFields|selfLink)", "generations of pods, jobs and more; no self links"),
    (r"^[+-]?status", "controllers differ in what they have got to"),
    (
        r"^\+spec\.(internalTrafficPolicy|ipFamil|allocateLoadBalancerNodePorts)|^[+-]?spec\.(clusterIP|ports\[\]\.nodePort)",
        "Services of today; each server's addresses",
    ),
    (r"kube-api-access|default-token|projected", "tokens are projected"),
    (
        r"kubernetes\.io/metadata\.name|node\.alpha\.kubernetes\.io|deployment\.kubernetes\.io/revision|seccomp\.security\.alpha",
        "labels and annotations of controllers and of old",
    ),
    (r"^\+spec\.(requiresRepublish|seLinuxMount|storageCapacity|fsGroupPolicy)", "CSI drivers of today"),
    (r"^\+spec\.extra", "the credential's id"),
    (
        r"^\+spec\.(completionMode|podReplacementPolicy|suspend|manualSelector|ttlSecondsAfterFinished)|controller-uid|job-name",
        "jobs of today",
    ),
    (
        r"^\+spec\.(updateStrategy\.rollingUpdate\.maxSurge|persistentVolumeClaimRetentionPolicy|parameters\.scope|dataSourceRef)",
        "fields of today",
    ),
    (r"^spec\.metrics|^[+-]spec\.metrics", "stock stores autoscalers as v1, which loses the order of metrics"),
    (r"^secrets|token-", "accounts no longer get token Secrets"),
    (r"^-spec\.selector\.matchLabels", "a budget's selector is replaced, not merged"),
];

pub struct Patterns {
    pub answers: Vec<Regex>,
    pub words: Vec<(Regex, &'static str)>,
    pub fields: Vec<Regex>,
    /// A value in Go's syntax: the words around it are compared, and it is not.
    pub go_value: Option<Regex>,
    pub heads: Option<Regex>,
}

pub static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| Patterns {
    answers: ANSWERS.iter().filter_map(|(pattern, _)| Regex::new(pattern).ok()).collect(),
    words: WORDS.iter().filter_map(|(pattern, to, _)| Some((Regex::new(pattern).ok()?, *to))).collect(),
    fields: FIELDS.iter().filter_map(|(pattern, _)| Regex::new(pattern).ok()).collect(),
    go_value: Regex::new(r"value: (&|\w*\.\w+[{(]|\[\]\w|map\[|\[\]|\w+\.\w+\()|time\.(Date|Location)").ok(),
    heads: Regex::new(r"(?:^|, |\[)([\w.\[\]/-]+: (?:Invalid|Unsupported|Duplicate|Required|Forbidden|Not found|Too)[ a-z]*)").ok(),
});
