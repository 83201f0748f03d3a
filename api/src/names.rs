//! What names, labels, ports and addresses may look like. Each check returns upstream's messages; none means fine.
//!
//! Upstream: `apimachinery/pkg/util/validation/validation.go` and `api/validation/path`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use regex::Regex;

type Messages = Vec<String>;

/// One way of spelling a name: its pattern, greatest length and how a violation is worded.
struct Form {
    fmt: &'static str,
    regex: LazyLock<Regex>,
    max: usize,
    message: &'static str,
    examples: &'static [&'static str],
}

macro_rules! form {
    ($name:ident, $fmt:literal, $max:expr, $message:expr, [$($example:literal),*]) => {
        static $name: Form = Form {
            fmt: $fmt,
            #[allow(clippy::expect_used)] // constant patterns, compiled by the tests below
            regex: LazyLock::new(|| Regex::new(concat!("^(?:", $fmt, ")$")).expect("constant pattern")),
            max: $max,
            message: $message,
            examples: &[$($example),*],
        };
    };
}

form!(
    DNS1123_LABEL,
    "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
    63,
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
    ["my-name", "123-abc"]
);
form!(
    DNS1123_SUBDOMAIN,
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    253,
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
    ["example.com"]
);
form!(
    DNS1035_LABEL,
    "[a-z]([-a-z0-9]*[a-z0-9])?",
    63,
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
    ["my-name", "abc-123"]
);
form!(
    QUALIFIED_NAME,
    "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
    63,
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    ["MyName", "my.name", "123-abc"]
);
form!(
    LABEL_VALUE,
    "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
    63,
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    ["MyValue", "my_value", "12345"]
);
form!(
    CONFIG_MAP_KEY,
    "[-._a-zA-Z0-9]+",
    253,
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
    ["key.name", "KEY_NAME", "key-name"]
);
form!(
    ENV_VAR_NAME,
    "[-._a-zA-Z][-._a-zA-Z0-9]*",
    usize::MAX,
    "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit",
    ["my.env-name", "MY_ENV.NAME", "MyEnvName1"]
);
form!(
    C_IDENTIFIER,
    "[A-Za-z_][A-Za-z0-9_]*",
    usize::MAX,
    "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
    ["my_name", "MY_NAME", "MyName"]
);
form!(
    WILDCARD_SUBDOMAIN,
    r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    253,
    "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
    ["*.example.com"]
);
form!(
    HTTP_HEADER_NAME,
    "[-A-Za-z0-9]+",
    usize::MAX,
    "a valid HTTP header must consist of alphanumeric characters or '-'",
    ["X-Header-Name"]
);
form!(PERCENT, "[0-9]+%", usize::MAX, "a valid percent string must be a numeric string followed by an ending '%'", ["1%", "93%"]);

impl Form {
    fn error(&self) -> String {
        let mut text = format!("{} (", self.message);
        for (i, example) in self.examples.iter().enumerate() {
            text += if i == 0 { "e.g. " } else { " or " };
            text += &format!("'{example}', ");
        }
        // Upstream's RegexError: "(e.g. 'a',  or 'b', regex used for validation is '…')"
        let text = text.replace(",  or", ", or").replace(", or ", ",  or ");
        format!("{text}regex used for validation is '{}')", self.fmt)
    }

    fn check(&self, value: &str) -> Messages {
        let mut messages = Vec::new();
        if value.len() > self.max {
            messages.push(max_len(self.max));
        }
        if !self.regex.is_match(value) {
            messages.push(self.error());
        }
        messages
    }
}

pub fn max_len(max: usize) -> String {
    format!("must be no more than {max} characters")
}

pub fn empty() -> String {
    "must be non-empty".to_owned()
}

pub fn inclusive_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

pub fn is_dns1123_label(value: &str) -> Messages {
    DNS1123_LABEL.check(value)
}

pub fn is_dns1123_subdomain(value: &str) -> Messages {
    DNS1123_SUBDOMAIN.check(value)
}

pub fn is_dns1035_label(value: &str) -> Messages {
    DNS1035_LABEL.check(value)
}

pub fn is_wildcard_dns1123_subdomain(value: &str) -> Messages {
    WILDCARD_SUBDOMAIN.check(value)
}

pub fn is_c_identifier(value: &str) -> Messages {
    C_IDENTIFIER.check(value)
}

pub fn is_http_header_name(value: &str) -> Messages {
    HTTP_HEADER_NAME.check(value)
}

pub fn is_valid_percent(value: &str) -> Messages {
    PERCENT.check(value)
}

pub fn is_valid_label_value(value: &str) -> Messages {
    LABEL_VALUE.check(value)
}

/// `[prefix/]name`: label keys, annotation keys, finalizers, resource names.
pub fn is_qualified_name(value: &str) -> Messages {
    let mut messages = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                messages.push(format!("prefix part {}", empty()));
            } else {
                messages.extend(is_dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            let error = QUALIFIED_NAME.error();
            return vec![format!("a qualified name {error} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    if name.is_empty() {
        messages.push(format!("name part {}", empty()));
    } else if name.len() > QUALIFIED_NAME.max {
        messages.push(format!("name part {}", max_len(QUALIFIED_NAME.max)));
    }
    if !QUALIFIED_NAME.regex.is_match(name) {
        messages.push(format!("name part {}", QUALIFIED_NAME.error()));
    }
    messages
}

pub fn is_config_map_key(value: &str) -> Messages {
    let mut messages = CONFIG_MAP_KEY.check(value);
    messages.extend(dot_names(value));
    messages
}

pub fn is_env_var_name(value: &str) -> Messages {
    let mut messages = ENV_VAR_NAME.check(value);
    messages.extend(dot_names(value));
    messages
}

/// v1.32's RelaxedEnvironmentVariableValidation: any printable ASCII character but `=`.
pub fn is_relaxed_env_var_name(value: &str) -> Messages {
    if value.is_empty() {
        return vec!["environment variable name ".to_owned() + &empty()];
    }
    if value.chars().all(|c| (' '..='~').contains(&c) && c != '=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

fn dot_names(value: &str) -> Messages {
    match value {
        "." => vec!["must not be '.'".to_owned()],
        ".." => vec!["must not be '..'".to_owned()],
        v if v.starts_with("..") => vec!["must not start with '..'".to_owned()],
        _ => Vec::new(),
    }
}

/// What may stand as one segment of a URL path: names of RBAC objects and the like.
pub fn is_path_segment_name(value: &str) -> Messages {
    match value {
        "." | ".." => return vec![format!("may not be '{value}'")],
        _ => {}
    }
    ["/", "%"].iter().filter(|c| value.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

pub fn is_valid_port_num(port: i64) -> Messages {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![inclusive_range(1, 65535)] }
}

/// IANA_SVC_NAME.
pub fn is_valid_port_name(value: &str) -> Messages {
    let mut messages = Vec::new();
    if value.len() > 15 {
        messages.push(max_len(15));
    }
    if !value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') || value.is_empty() {
        messages.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.chars().any(|c| c.is_ascii_lowercase()) {
        messages.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        messages.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        messages.push("must not begin or end with a hyphen".to_owned());
    }
    messages
}

/// Go's `netutils.ParseIPSloppy`: leading zeros in IPv4 octets are read as decimal.
pub fn parse_ip(value: &str) -> Option<IpAddr> {
    if let Ok(ip) = value.parse() {
        return Some(ip);
    }
    let octets: Vec<u8> = value
        .split('.')
        .map(|part| if (1..=16).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()) { part.parse().ok() } else { None })
        .collect::<Option<_>>()?;
    let octets: [u8; 4] = octets.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// `(address, prefix length)`; the address need not be the network's first.
pub fn parse_cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = value.split_once('/')?;
    let (ip, bits) = (parse_ip(ip)?, bits.parse::<u8>().ok()?);
    let most = if ip.is_ipv4() { 32 } else { 128 };
    (bits <= most).then_some((ip, bits))
}

const IP_MESSAGE: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

pub fn is_valid_ip(value: &str) -> Messages {
    if parse_ip(value).is_some() { Vec::new() } else { vec![IP_MESSAGE.to_owned()] }
}

pub fn is_valid_ipv4(value: &str) -> Messages {
    if value.parse::<Ipv4Addr>().is_ok() { Vec::new() } else { vec!["must be a valid IPv4 address".to_owned()] }
}

pub fn is_valid_ipv6(value: &str) -> Messages {
    if value.parse::<Ipv6Addr>().is_ok() { Vec::new() } else { vec!["must be a valid IPv6 address".to_owned()] }
}

pub fn is_cidr(value: &str) -> Messages {
    if parse_cidr(value).is_some() {
        return Vec::new();
    }
    vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
}

pub fn is_fully_qualified_domain_name(value: &str) -> Messages {
    if value.is_empty() {
        return vec![empty()];
    }
    let name = value.strip_suffix('.').unwrap_or(value);
    let messages = is_dns1123_subdomain(name);
    if messages.is_empty() && !name.contains('.') {
        return vec!["should be a domain with at least two segments separated by dots".to_owned()];
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_upstreams() {
        assert_eq!(
            is_dns1123_label("Web"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(
            is_dns1123_subdomain("A_b"),
            [
                r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            is_valid_label_value("a b"),
            [
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            ]
        );
        assert_eq!(is_dns1123_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }

    #[test]
    fn good_and_bad() {
        type Check = fn(&str) -> Messages;
        let cases: &[(Check, &[&str], &[&str])] = &[
            (is_dns1035_label, &["a", "a-1"], &["1a", "A", "a-", ""]),
            (is_qualified_name, &["a", "a/b", "x.y/B_c.d"], &["", "/a", "a/", "a/b/c", "-a", "A/b"]),
            (is_config_map_key, &["a", "a.b", "A_b-c"], &["", ".", "..", "..a", "a b"]),
            (is_env_var_name, &["A", "_a.b-c"], &["1A", "a b", ""]),
            (is_valid_port_name, &["http", "a-1"], &["", "1", "-a", "a--b", "http_1", "abcdefghijklmnop"]),
            (is_path_segment_name, &["system:x", "a"], &[".", "..", "a/b", "a%b"]),
            (is_valid_ip, &["1.2.3.4", "::1", "010.1.1.1"], &["", "1.2.3", "x", "256.1.1.1"]),
            (is_cidr, &["10.0.0.0/8", "fd00::/64"], &["10.0.0.0", "10.0.0.0/33"]),
            (is_wildcard_dns1123_subdomain, &["*.a.b"], &["*", "a.*", "*.A"]),
        ];
        for (check, good, bad) in cases {
            good.iter().for_each(|v| assert_eq!(check(v), Messages::new(), "{v}"));
            bad.iter().for_each(|v| assert_ne!(check(v), Messages::new(), "{v}"));
        }
    }
}
