use crate::Strategy;

pub struct CronJob;
impl Strategy for CronJob {}
pub struct Job;
impl Strategy for Job {}
