//! The metadata service.

pub mod machine;
pub mod ops;
pub mod state;
