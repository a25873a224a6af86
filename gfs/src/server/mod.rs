//! The metadata service.

pub mod machine;
