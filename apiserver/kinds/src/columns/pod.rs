use crate::Column;
use super::PLAIN;

pub const POD: &[Column] = PLAIN;
