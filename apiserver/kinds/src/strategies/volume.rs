use crate::Strategy;

pub struct Claim;
impl Strategy for Claim {}
pub struct Volume;
impl Strategy for Volume {}
pub struct CsiDriver;
impl Strategy for CsiDriver {}
pub struct CsiNode;
impl Strategy for CsiNode {}
pub struct StorageCapacity;
impl Strategy for StorageCapacity {}
pub struct StorageClass;
impl Strategy for StorageClass {}
pub struct Attachment;
impl Strategy for Attachment {}
