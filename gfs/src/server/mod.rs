//! The metadata service.
//!
//! [`service`] is the way in; [`machine`] is what the log asks of the state.

mod barriers;
mod claims;
mod grants;
pub mod machine;
mod reaper;
pub mod service;
