use crate::Strategy;

pub struct LimitRange;
impl Strategy for LimitRange {}
pub struct ResourceQuota;
impl Strategy for ResourceQuota {}
