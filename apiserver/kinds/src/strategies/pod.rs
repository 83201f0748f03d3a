use crate::Strategy;

pub struct Binding;
impl Strategy for Binding {}
pub struct Pod;
impl Strategy for Pod {}
pub struct PodTemplate;
impl Strategy for PodTemplate {}
