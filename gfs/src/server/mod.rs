//! The metadata service: [`service`] is the way in.

mod barriers;
mod claims;
mod grants;
pub mod log;
pub mod machine;
mod ops;
mod reaper;
pub mod service;
pub mod state;
