use crate::Column;
use super::PLAIN;

pub const ENDPOINTS: &[Column] = PLAIN;
pub const SERVICE: &[Column] = PLAIN;
pub const INGRESS_CLASS: &[Column] = PLAIN;
pub const INGRESS: &[Column] = PLAIN;
pub const IP_ADDRESS: &[Column] = PLAIN;
pub const NETWORK_POLICY: &[Column] = PLAIN;
pub const SERVICE_CIDR: &[Column] = PLAIN;
pub const ENDPOINT_SLICE: &[Column] = PLAIN;
