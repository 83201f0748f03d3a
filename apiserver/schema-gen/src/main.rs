//! Writes what `schema` compiles in: the table of types (`schema/src/generated.rs`) and the OpenAPI documents (`schema/openapi/`).
//!
//! Sources, all at v1.33: `go-types.txt` (Go struct tags), the text of the `k8s-pb` crate (comments with `+listType` and the like),
//! which also has the descriptions, and the `KINDS` table for the paths. Run from this folder: `cargo run --release`. The output is committed.

mod gnostic;
mod markers;
mod openapi;
mod paths;
mod table;
mod types;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = here.join("../schema");
    let mut types = types::parse(&std::fs::read_to_string(here.join("go-types.txt"))?)?;
    markers::read(&crate_source("k8s-pb-0.9.0")?.join("src"), &mut types)?;
    std::fs::write(schema.join("src/generated.rs"), table::emit(&types)).context("write the table")?;
    openapi::write(&types, &schema)
}

/// Where cargo keeps a crate's source.
fn crate_source(name: &str) -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"), PathBuf::from);
    for index in std::fs::read_dir(home.join("registry/src"))? {
        let path = index?.path().join(name);
        if path.is_dir() {
            return Ok(path);
        }
    }
    anyhow::bail!("{name} is not in cargo's registry: run `cargo fetch` in the main workspace")
}
