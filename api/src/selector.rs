//! Label and field selectors: parsed once, matched often.
//!
//! Upstream: `apimachinery/pkg/labels/selector.go`, `fields/selector.go`, `meta/v1/helpers.go`.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as K8sLabelSelector;

use crate::names;

type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted. One value for `GreaterThan` and `LessThan`; none for the existence checks.
    pub values: Vec<String>,
    /// Spelled `key=value`, which prints back as such.
    equality: bool,
}

impl Requirement {
    pub fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Self, SelectorError> {
        let mut requirement = Requirement { key: key.to_owned(), operator, values, equality: false };
        requirement.values.sort();
        requirement.check()?;
        Ok(requirement)
    }

    fn check(&self) -> Result<(), SelectorError> {
        let problem = |text: String| Err(SelectorError(text));
        if let Some(message) = names::is_qualified_name(&self.key).first() {
            return problem(format!("key: Invalid value: {:?}: {message}", self.key));
        }
        let count = self.values.len();
        match self.operator {
            Operator::In | Operator::NotIn if count == 0 => {
                return problem("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into());
            }
            Operator::Exists | Operator::DoesNotExist if count != 0 => {
                return problem("values: Invalid value: values set must be empty for exists and does not exist".into());
            }
            Operator::GreaterThan | Operator::LessThan if count != 1 || self.values[0].parse::<i64>().is_err() => {
                return problem("values: Invalid value: for 'Gt', 'Lt' operators, the value must be an integer".into());
            }
            _ => {}
        }
        for value in &self.values {
            if let Some(message) = names::is_valid_label_value(value).first() {
                return problem(format!("values[0][{}]: Invalid value: {value:?}: {message}", self.key));
            }
        }
        Ok(())
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.get(&self.key).map(String::as_str))
    }

    fn matches_value(&self, value: Option<&str>) -> bool {
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.iter().any(|one| one == v)),
            Operator::NotIn => value.is_none_or(|v| self.values.iter().all(|one| one != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.compare(value).is_some_and(|o| o.is_gt()),
            Operator::LessThan => self.compare(value).is_some_and(|o| o.is_lt()),
        }
    }

    fn compare(&self, value: Option<&str>) -> Option<std::cmp::Ordering> {
        let bound = self.values.first()?.parse::<i64>().ok()?;
        Some(value?.parse::<i64>().ok()?.cmp(&bound))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In if self.equality => write!(f, "{key}={values}"),
            Operator::NotIn if self.equality => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

/// All requirements must hold; none holds for everything. [`LabelSelector::nothing`] matches no object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    pub fn everything() -> Self {
        LabelSelector::default()
    }

    pub fn nothing() -> Self {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// The query form: `a=b,c in (d,e),!f,g`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser::new(text).selector().map(LabelSelector::of)
    }

    fn of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector { requirements, nothing: false }
    }

    /// From a plain map, as Services and ReplicationControllers have; an empty map matches everything.
    pub fn from_map(labels: &Labels) -> Self {
        LabelSelector::of(labels.iter().map(|(k, v)| equality(k, v)).collect())
    }

    /// From an API object's selector. `None` matches nothing, an empty selector everything.
    pub fn from_k8s(selector: Option<&K8sLabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(LabelSelector::nothing()) };
        let mut requirements: Vec<Requirement> = selector.match_labels.iter().flatten().map(|(k, v)| equality(k, v)).collect();
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectorError(format!("{other:?} is not a valid label selector operator"))),
            };
            requirements.push(Requirement::new(&expression.key, operator, expression.values.clone().unwrap_or_default())?);
        }
        Ok(LabelSelector::of(requirements))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// For labels that are kept in another form than a map.
    pub fn matches_by<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches_value(value_of(&r.key)))
    }

    pub fn matches_opt(&self, labels: Option<&Labels>) -> bool {
        static EMPTY: Labels = Labels::new();
        self.matches(labels.unwrap_or(&EMPTY))
    }
}

fn equality(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: Operator::In, values: vec![value.to_owned()], equality: true }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

/// A recursive descent over upstream's little grammar.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Parser { rest: text }
    }

    /// The next token: one of the signs, or a word; empty at the end.
    fn peek(&self) -> &'a str {
        let text = self.rest.trim_start();
        let signs = ["==", "!=", "=", "!", ",", "(", ")", ">", "<"];
        if let Some(sign) = signs.iter().find(|s| text.starts_with(**s)) {
            return &text[..sign.len()];
        }
        let end = text.find(|c: char| c.is_whitespace() || "=!,()><".contains(c)).unwrap_or(text.len());
        &text[..end]
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        let text = self.rest.trim_start();
        self.rest = &text[token.len()..];
        token
    }

    fn selector(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        if self.peek().is_empty() {
            return Ok(requirements);
        }
        loop {
            requirements.push(self.requirement().map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?);
            match self.next() {
                "" => return Ok(requirements),
                "," if !matches!(self.peek(), "" | ",") => {}
                "," => return Err(self.unexpected("identifier after ','", self.peek())),
                other => return Err(self.unexpected("',' or 'end of string'", other)),
            }
        }
    }

    fn unexpected(&self, expected: &str, found: &str) -> SelectorError {
        SelectorError(format!("found '{found}', expected: {expected}"))
    }

    fn word(&mut self) -> Result<&'a str, SelectorError> {
        let word = self.next();
        let sign = word.is_empty() || "=!,()><".contains(&word[..1]);
        if sign { Err(self.unexpected("identifier", word)) } else { Ok(word) }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.peek() == "!" {
            self.next();
            let key = self.word()?;
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        let key = self.word()?;
        let (operator, equality) = match self.peek() {
            "" | "," => return Requirement::new(key, Operator::Exists, Vec::new()),
            "=" | "==" => (Operator::In, true),
            "!=" => (Operator::NotIn, true),
            "in" => (Operator::In, false),
            "notin" => (Operator::NotIn, false),
            ">" => (Operator::GreaterThan, false),
            "<" => (Operator::LessThan, false),
            other => return Err(self.unexpected("in, notin, =, ==, !=, gt, lt", other)),
        };
        self.next();
        let values = match (equality, &operator) {
            (false, Operator::In | Operator::NotIn) => self.values()?,
            _ => vec![self.exact_value()?],
        };
        let mut requirement = Requirement::new(key, operator, values)?;
        requirement.equality = equality;
        Ok(requirement)
    }

    /// A value may be empty: `a=` or `a=,b`.
    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek(), "" | ",") { Ok(String::new()) } else { self.word().map(str::to_owned) }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            "(" => {}
            // Upstream forgets the comma here.
            other => return Err(SelectorError(format!("found '{other}' expected: '('"))),
        }
        let mut values = Vec::new();
        loop {
            match self.peek() {
                ")" | "," => values.push(String::new()),
                _ => values.push(self.word()?.to_owned()),
            }
            match self.next() {
                "," => {}
                ")" => break,
                other => return Err(self.unexpected("',' or ')'", other)),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldRequirement {
    pub field: String,
    pub value: String,
    pub equal: bool,
}

/// `spec.nodeName=n1,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in split_unescaped(text).into_iter().filter(|t| !t.is_empty()) {
            let invalid = || SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let (field, value, equal) = match term.find(['=', '!']) {
                Some(i) if term[i..].starts_with("!=") => (&term[..i], &term[i + 2..], false),
                Some(i) if term[i..].starts_with("==") => (&term[..i], &term[i + 2..], true),
                Some(i) if term[i..].starts_with('=') => (&term[..i], &term[i + 1..], true),
                _ => return Err(invalid()),
            };
            requirements.push(FieldRequirement { field: field.to_owned(), value: unescape(value), equal });
        }
        Ok(FieldSelector { requirements })
    }

    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value a field must have, if the selector pins it.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }

    /// `value_of` gives a field's value; a missing one counts as empty.
    pub fn matches<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| (value_of(&r.field).unwrap_or("") == r.value) == r.equal)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{}{}{}{value}", if i > 0 { "," } else { "" }, r.field, if r.equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn label_selectors_match() {
        let web = labels(&[("app", "web"), ("tier", "1")]);
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app!=web", false),
            ("app in (web,db)", true),
            ("app notin (web)", false),
            ("x notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!x", true),
            ("tier>0", true),
            ("tier<1", false),
            ("app=web,tier=1", true),
            ("app=web,tier=2", false),
            ("x=", false),
            ("app in ( web , db ),tier", true),
            ("x!=y", true),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&web), expected, "{text}");
        }
        for text in [",", "a,,b", "a in", "a in (b", "a=b c", "!", "=a", "a=b,", "-a", "a in ()x", "a>b"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn label_selectors_print() {
        for (text, printed) in [("b=1,a=2", "a=2,b=1"), ("a in (y,x)", "a in (x,y)"), ("!a,b", "!a,b"), ("a!=b", "a!=b")] {
            assert_eq!(LabelSelector::parse(text).unwrap().to_string(), printed);
        }
    }

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse(r"spec.nodeName=n1,status.phase!=Failed,x=a\,b").unwrap();
        let value = |f: &str| {
            Some(match f {
                "spec.nodeName" => "n1",
                "x" => "a,b",
                _ => "",
            })
        };
        assert!(selector.matches(value));
        assert_eq!(selector.exact("spec.nodeName"), Some("n1"));
        assert_eq!(selector.to_string(), r"spec.nodeName=n1,status.phase!=Failed,x=a\,b");
        assert!(FieldSelector::parse("nonsense").is_err());
    }
}
