use crate::Strategy;

pub struct ReplicationController;
impl Strategy for ReplicationController {}
pub struct ControllerRevision;
impl Strategy for ControllerRevision {}
pub struct DaemonSet;
impl Strategy for DaemonSet {}
pub struct Deployment;
impl Strategy for Deployment {}
pub struct ReplicaSet;
impl Strategy for ReplicaSet {}
pub struct StatefulSet;
impl Strategy for StatefulSet {}
