//! The data of files.

pub mod extents;
