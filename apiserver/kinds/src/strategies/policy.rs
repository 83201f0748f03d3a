use crate::Strategy;

pub struct Autoscaler;
impl Strategy for Autoscaler {}
pub struct DisruptionBudget;
impl Strategy for DisruptionBudget {}
pub struct PriorityClass;
impl Strategy for PriorityClass {}
