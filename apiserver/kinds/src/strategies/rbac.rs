use crate::Strategy;

pub struct LocalAccessReview;
impl Strategy for LocalAccessReview {}
pub struct SelfAccessReview;
impl Strategy for SelfAccessReview {}
pub struct AccessReview;
impl Strategy for AccessReview {}
pub struct ClusterRoleBinding;
impl Strategy for ClusterRoleBinding {}
pub struct ClusterRole;
impl Strategy for ClusterRole {}
pub struct RoleBinding;
impl Strategy for RoleBinding {}
pub struct Role;
impl Strategy for Role {}
