use crate::Column;
use super::PLAIN;

pub const API_SERVICE: &[Column] = PLAIN;
pub const AUTOSCALER: &[Column] = PLAIN;
pub const SIGNING_REQUEST: &[Column] = PLAIN;
pub const DISRUPTION_BUDGET: &[Column] = PLAIN;
pub const ROLE_BINDING: &[Column] = PLAIN;
pub const CREATED_AT: &[Column] = PLAIN;
pub const WEBHOOKS: &[Column] = PLAIN;
pub const ADMISSION_POLICY: &[Column] = PLAIN;
pub const ADMISSION_BINDING: &[Column] = PLAIN;
pub const PRIORITY_CLASS: &[Column] = PLAIN;
pub const FLOW_SCHEMA: &[Column] = PLAIN;
pub const PRIORITY_LEVEL: &[Column] = PLAIN;
