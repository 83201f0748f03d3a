//! Runs stages in order, prints how long each took, and closes with a summary a machine can read.

use std::time::Instant;

use anyhow::Result;

pub struct Stage<C> {
    pub name: &'static str,
    pub run: fn(&C) -> Result<()>,
}

/// `stages![a, b::c]`: each named after its function.
#[macro_export]
macro_rules! stages {
    ($($stage:path),* $(,)?) => { vec![$($crate::runner::Stage { name: stringify!($stage), run: $stage }),*] };
}

/// Runs every stage whose name holds one of the filters (all without filters), even after one failed. Returns (passed, failed, skipped).
pub fn run<C>(context: &C, stages: &[Stage<C>], filters: &[String]) -> (usize, Vec<&'static str>, usize) {
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for stage in stages {
        if !filters.is_empty() && !filters.iter().any(|filter| stage.name.contains(filter.as_str())) {
            skipped += 1;
            continue;
        }
        let began = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (stage.run)(context)));
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(Ok(())) => {
                passed += 1;
                println!("test {} ... ok ({seconds:.1}s)", stage.name);
            }
            Ok(Err(e)) => {
                failed.push(stage.name);
                println!("test {} ... FAILED ({seconds:.1}s)\n    {}", stage.name, format!("{e:#}").replace('\n', "\n    "));
            }
            Err(_) => {
                failed.push(stage.name);
                println!("test {} ... FAILED by panic ({seconds:.1}s)", stage.name);
            }
        }
    }
    (passed, failed, skipped)
}
