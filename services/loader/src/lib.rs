//! The loader service: shard sets and blends of them, served to any number of consumers over gRPC.
//!
//! It owns sessions, credit, health and orderly stop; every batch is [`vela_dataset::Dataset::batch`]'s, so a server
//! keeps nothing that another could not make again. It holds at most three batches per consumer, however
//! slow that consumer is, and it never decides what a batch contains.

mod body;
mod catalog;
mod config;
mod connection;
mod error;
mod health;
mod plans;
mod server;
mod service;
mod session;
mod shared;
mod tenants;

pub use catalog::{DEFAULT_DATASET, DatasetConfig};
pub use config::{ServeArgs, ServeConfig};
pub use connection::{RELOAD_EVERY, TlsFiles};
pub use error::LoaderError;
pub use health::{HealthTls, check_health};
pub use server::{LoaderReport, RunningLoader, serve};
