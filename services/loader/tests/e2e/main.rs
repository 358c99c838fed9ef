//! The loader and its client over real sockets, against the read side in process.

mod bounds;
mod calls;
mod command;
mod equality;
mod loader;
mod refusals;
mod resume;
mod shards;
