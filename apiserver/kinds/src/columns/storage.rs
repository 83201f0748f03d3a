use crate::Column;
use super::PLAIN;

pub const CLAIM: &[Column] = PLAIN;
pub const VOLUME: &[Column] = PLAIN;
pub const CSI_DRIVER: &[Column] = PLAIN;
pub const CSI_NODE: &[Column] = PLAIN;
pub const CAPACITY: &[Column] = PLAIN;
pub const CLASS: &[Column] = PLAIN;
pub const ATTACHMENT: &[Column] = PLAIN;
