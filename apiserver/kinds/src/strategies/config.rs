use crate::Strategy;

pub struct ConfigMap;
impl Strategy for ConfigMap {}
pub struct Secret;
impl Strategy for Secret {}
pub struct ServiceAccount;
impl Strategy for ServiceAccount {}
