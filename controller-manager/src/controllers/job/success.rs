//! successPolicy: when the indexes that succeeded are enough.
//!
//! Upstream: `pkg/controller/job/success_policy.go`.

use k8s_openapi::api::batch::v1::{JobSpec, SuccessPolicyRule};

use super::indexes::{self, Indexes};

/// The words of the first rule that is met.
pub fn met(spec: &JobSpec, succeeded: &Indexes) -> Option<String> {
    let (rules, completions) = (&spec.success_policy.as_ref()?.rules, spec.completions.unwrap_or(0));
    let index = rules.iter().position(|rule| is_met(rule, completions, succeeded))?;
    Some(format!("Matched rules at index {index}"))
}

fn is_met(rule: &SuccessPolicyRule, completions: i32, succeeded: &Indexes) -> bool {
    let enough = |have: usize| rule.succeeded_count.is_some_and(|count| have >= usize::try_from(count).unwrap_or(0));
    match &rule.succeeded_indexes {
        None => enough(succeeded.len()),
        Some(listed) => {
            let wanted = indexes::parse(listed, completions);
            let have = wanted.intersection(succeeded).count();
            have == wanted.len() || enough(have)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::batch::v1::SuccessPolicy;

    #[test]
    fn the_first_rule_that_is_met_says_so() {
        let rule =
            |indexes: Option<&str>, count| SuccessPolicyRule { succeeded_indexes: indexes.map(str::to_owned), succeeded_count: count };
        let rules = vec![rule(Some("0,2"), None), rule(Some("4-6"), Some(2)), rule(None, Some(4))];
        let spec = JobSpec { completions: Some(9), success_policy: Some(SuccessPolicy { rules }), ..JobSpec::default() };
        let met = |text: &str| met(&spec, &indexes::parse(text, 9)).map(|words| words.chars().last().unwrap_or_default());
        assert_eq!(met("0,1"), None);
        assert_eq!(met("0-2"), Some('0'));
        assert_eq!(met("4,6"), Some('1'));
        assert_eq!(met("1,3,7,8"), Some('2'));
    }
}
