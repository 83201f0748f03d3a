use crate::Strategy;

pub struct SigningRequest;
impl Strategy for SigningRequest {}
