//! The metadata service: [`service`] is the way in.

pub mod backup;
mod barriers;
mod check;
mod claims;
mod grants;
mod locks;
pub mod log;
pub mod machine;
mod notes;
pub(crate) mod ops;
mod reaper;
mod reign;
mod repair;
mod revoked;
pub mod service;
pub mod state;
pub mod stream;
mod upgrade;
mod voters;
mod watches;
