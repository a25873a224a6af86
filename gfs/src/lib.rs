//! The cluster file system.
//!
//! A file operation travels one way: [`fuse`] (decode) -> `root` (which tree) -> `client` (lease check, call) ->
//! transport -> `server` (claims, breaks, log) -> reply -> client (install if the stamp holds). Callbacks travel
//! the other way: break -> `client::callback` (flush, forget) -> [`tree::Kernel`] -> ack.
#![warn(missing_docs)]

/// Names a place where a node may die in a simulated world (see `worlds`). A real build has nothing there.
macro_rules! fail_point {
    ($place:literal) => {
        #[cfg(test)]
        $crate::worlds::reached($place);
    };
}

/// Says whether a simulated world has taken a rule away (see `worlds`). A real build never does.
macro_rules! missing {
    ($rule:ident) => {{
        #[cfg(test)]
        {
            $crate::worlds::is_missing($crate::worlds::Mutant::$rule)
        }
        #[cfg(not(test))]
        {
            false
        }
    }};
}

mod birth;
pub mod client;
pub mod data;
pub mod error;
pub mod fsck;
pub mod fuse;
pub mod net;
pub mod root;
pub mod server;
pub mod tree;
#[cfg(test)]
mod worlds;
