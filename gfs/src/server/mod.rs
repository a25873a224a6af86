//! The metadata service.

pub mod log;
pub mod machine;
