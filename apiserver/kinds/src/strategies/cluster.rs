use crate::Strategy;

pub struct Namespace;
impl Strategy for Namespace {}
pub struct Node;
impl Strategy for Node {}
pub struct Lease;
impl Strategy for Lease {}
pub struct RuntimeClass;
impl Strategy for RuntimeClass {}
