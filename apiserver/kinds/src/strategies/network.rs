use crate::Strategy;

pub struct IngressClass;
impl Strategy for IngressClass {}
pub struct Ingress;
impl Strategy for Ingress {}
pub struct IpAddress;
impl Strategy for IpAddress {}
pub struct NetworkPolicy;
impl Strategy for NetworkPolicy {}
pub struct ServiceCidr;
impl Strategy for ServiceCidr {}
