//! OpenAPI documents.
use std::path::Path;
use anyhow::Result;
use crate::types::Types;
pub fn write(_types: &Types, _folder: &Path) -> Result<()> {
    Ok(())
}
