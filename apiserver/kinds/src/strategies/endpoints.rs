use crate::Strategy;

pub struct Endpoints;
impl Strategy for Endpoints {}
pub struct EndpointSlice;
impl Strategy for EndpointSlice {}
