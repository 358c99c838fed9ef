//! The loader and its client over real sockets, against the read side in process.

mod authority;
mod bounds;
mod calls;
mod command;
mod datasets;
mod equality;
mod loader;
mod metrics;
mod python;
mod refusals;
mod replicas;
mod resume;
mod security;
mod shards;
mod strangers;
