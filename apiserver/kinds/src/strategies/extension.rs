use crate::Strategy;

pub struct ApiService;
impl Strategy for ApiService {}
pub struct Webhooks;
impl Strategy for Webhooks {}
pub struct ResourceDefinition;
impl Strategy for ResourceDefinition {}
