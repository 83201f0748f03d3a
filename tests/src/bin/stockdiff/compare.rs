//! What of two answers agrees, added up by kind.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::known::PATTERNS;
use crate::side::Reply;

/// What is compared, and the part of it that must agree, percent.
const GOALS: [(&str, f64); 5] = [("code", 98.0), ("reason", 98.0), ("causes", 95.0), ("message", 85.0), ("object", 95.0)];

#[derive(Default, Clone, Copy)]
struct Count {
    agree: usize,
    known: usize,
    all: usize,
}

#[derive(Default)]
pub struct Tally {
    counts: BTreeMap<(String, &'static str), Count>,
    /// What differs → in how many answers, and the first of them.
    differences: BTreeMap<(&'static str, String), (usize, String)>,
}

impl Tally {
    pub fn note(&mut self, kind: &str, what: &str, ours: &Reply, stock: &Reply) {
        let said = |reply: &Reply| reply.body["message"].as_str().unwrap_or("").to_owned();
        let (our_words, stock_words) = (said(ours), said(stock));
        let both = format!("{our_words} / {stock_words}");
        let known = PATTERNS.answers.iter().any(|pattern| pattern.is_match(&both));
        let mut count = |sort: &'static str, agree: bool, difference: String| {
            let row = self.counts.entry((kind.to_owned(), sort)).or_default();
            row.all += 1;
            row.agree += usize::from(agree);
            row.known += usize::from(!agree && known);
            if !agree && !known {
                let group = (sort, format!("{kind} {}", blank(&difference)));
                let entry = self.differences.entry(group).or_insert_with(|| (0, format!("{kind} {what}\n      {difference}")));
                entry.0 += 1;
            }
        };
        count("code", ours.code == stock.code, format!("{} {our_words:.300}\n      {} {stock_words:.300}", ours.code, stock.code));
        if ours.code != stock.code {
            return;
        }
        if ours.code < 400 {
            let differences = differences(&clean(&ours.body), &clean(&stock.body));
            return count("object", differences.is_empty(), differences.join("; "));
        }
        let (our_reason, stock_reason) = (&ours.body["reason"], &stock.body["reason"]);
        count("reason", our_reason == stock_reason, format!("{our_reason} / {stock_reason}"));
        let (our_causes, stock_causes) = (causes(&ours.body), causes(&stock.body));
        count("causes", our_causes == stock_causes, format!("{our_causes:?}\n      {stock_causes:?}"));
        let agree = same_words(&our_words, &stock_words);
        count("message", agree, format!("{our_words:.400}\n      {stock_words:.400}"));
    }

    /// Prints the table and the first differences. `false`: a goal is missed.
    pub fn report(&self, show: usize) -> bool {
        let kinds: BTreeSet<&String> = self.counts.keys().map(|(kind, _)| kind).collect();
        println!("{:<32}{}", "", GOALS.map(|(sort, _)| format!("{sort:>18}")).concat());
        for kind in kinds {
            let cells = GOALS.map(|(sort, _)| self.counts.get(&(kind.clone(), sort)).map_or(format!("{:>18}", "-"), |count| cell(*count)));
            println!("{kind:<32}{}", cells.concat());
        }
        let mut reached = true;
        let totals = GOALS.map(|(sort, goal)| {
            let total = self.counts.iter().filter(|((_, of), _)| *of == sort).fold(Count::default(), |sum, (_, count)| Count {
                agree: sum.agree + count.agree,
                known: sum.known + count.known,
                all: sum.all + count.all,
            });
            reached &= total.all == 0 || ratio(total) >= goal;
            cell(total)
        });
        println!("{:<32}{}", "all", totals.concat());
        for (sort, _) in GOALS {
            let mut groups: Vec<_> = self.differences.iter().filter(|((of, _), _)| *of == sort).collect();
            groups.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
            for (_, (count, first)) in groups.into_iter().take(show) {
                println!("\n{sort} x{count}: {first}");
            }
        }
        reached
    }
}

/// Of the answers that v1.33 does not mean to give otherwise.
fn ratio(count: Count) -> f64 {
    100.0 * count.agree as f64 / (count.all - count.known).max(1) as f64
}

fn cell(count: Count) -> String {
    let text = format!("{:.1}% {}/{}", ratio(count), count.agree, count.all - count.known);
    format!("{text:>18}")
}

/// Names and numbers left out, to group what is of one cause.
fn blank(text: &str) -> String {
    let mut inside = false;
    text.chars()
        .filter(|c| {
            inside ^= *c == '"';
            !inside && !c.is_ascii_digit()
        })
        .take(200)
        .collect()
}

fn causes(body: &Value) -> Vec<String> {
    let causes = body.pointer("/details/causes").and_then(Value::as_array).into_iter().flatten();
    let text = |cause: &Value, field: &str| cause[field].as_str().unwrap_or("").to_owned();
    let mut all: Vec<String> = causes.map(|cause| format!("{} {}", text(cause, "reason"), text(cause, "field"))).collect();
    all.sort();
    all
}

/// Alike once the words that changed are made alike. Errors of one object come in no order: Go's maps have none.
fn same_words(ours: &str, stock: &str) -> bool {
    let alike = |text: &str| {
        let text = text.replace("v1beta1", "v1").replace("v2beta2", "v2");
        PATTERNS.words.iter().fold(text, |text, (pattern, to)| pattern.replace_all(&text, *to).into_owned())
    };
    if alike(ours) == alike(stock) {
        return true;
    }
    let (Some(go_value), Some(heads)) = (&PATTERNS.go_value, &PATTERNS.heads) else { return false };
    let parts = |text: &str| -> BTreeSet<String> { heads.captures_iter(text).map(|found| found[1].to_owned()).collect() };
    let ordered = |text: &str| -> Vec<String> {
        let text = alike(text);
        let mut parts: Vec<String> = text.split(", ").map(|part| part.trim_matches(['[', ']']).to_owned()).collect();
        parts.sort();
        parts
    };
    go_value.is_match(stock) && parts(ours) == parts(stock) || ordered(ours) == ordered(stock)
}

/// Without what each server makes up for itself.
fn clean(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["uid", "creationTimestamp", "resourceVersion", "managedFields", "selfLink"] {
            meta.remove(field);
        }
    }
    object
}

fn differences(ours: &Value, stock: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", ours, stock, &mut found);
    found.retain(|difference| !PATTERNS.fields.iter().any(|pattern| pattern.is_match(difference)));
    found
}

fn compare(path: &str, ours: &Value, stock: &Value, found: &mut Vec<String>) {
    match (ours, stock) {
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match (a.get(name), b.get(name)) {
                    (Some(a), Some(b)) => compare(&path, a, b, found),
                    (Some(a), None) => found.push(format!("+{path}={a}")),
                    (None, Some(b)) => found.push(format!("-{path}={b}")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).for_each(|(a, b)| compare(&format!("{path}[]"), a, b, found));
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{path}: {a} / {b}")),
    }
}
