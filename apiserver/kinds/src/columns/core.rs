use crate::Column;
use super::PLAIN;

pub const COMPONENT_STATUS: &[Column] = PLAIN;
pub const CONFIG_MAP: &[Column] = PLAIN;
pub const EVENT: &[Column] = PLAIN;
pub const LIMIT_RANGE: &[Column] = PLAIN;
pub const NAMESPACE: &[Column] = PLAIN;
pub const NODE: &[Column] = PLAIN;
pub const RESOURCE_QUOTA: &[Column] = PLAIN;
pub const SECRET: &[Column] = PLAIN;
pub const SERVICE_ACCOUNT: &[Column] = PLAIN;
pub const LEASE: &[Column] = PLAIN;
pub const RUNTIME_CLASS: &[Column] = PLAIN;
