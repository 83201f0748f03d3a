use crate::Column;
use super::PLAIN;

pub const POD_TEMPLATE: &[Column] = PLAIN;
pub const REPLICA_SET: &[Column] = PLAIN;
pub const CONTROLLER_REVISION: &[Column] = PLAIN;
pub const DAEMON_SET: &[Column] = PLAIN;
pub const DEPLOYMENT: &[Column] = PLAIN;
pub const STATEFUL_SET: &[Column] = PLAIN;
pub const CRON_JOB: &[Column] = PLAIN;
pub const JOB: &[Column] = PLAIN;
