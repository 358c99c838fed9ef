//! The on-disk contract: Parquet shards, manifest, lengths index, checksums, stores.
//!
//! A shard is one Parquet file whose page `r` of every column is row `r`, so that a mapped file serves any row without
//! decoding another and any image without a copy (`docs/formats/shard-v2.md`). A folder of shards is a data set once
//! its manifest stands in it; readers follow the manifest alone. This crate decides nothing about order or batches,
//! and never repairs or skips: damage is an error that names the file and the row.

mod build;
mod cache;
mod discard;
mod error;
mod lengths;
mod local;
mod manifest;
mod mapping;
mod page;
mod page_table;
mod reader;
mod remote;
mod row;
mod schema;
mod store;
mod writer;

pub use build::{BuildFolder, CompletedShard, GatheredShards};
pub use cache::CacheSettings;
pub use discard::DiscardStore;
pub use error::ShardError;
pub use lengths::{LENGTHS_FILE, LENGTHS_SUMS_FILE, LengthGroup, LengthsFiles, LengthsIndex, LengthsWriter};
pub use local::LocalStore;
pub use manifest::{FileEntry, MANIFEST_FILE, Manifest, ShardEntry, Totals};
pub use reader::ShardReader;
pub use remote::{RemoteOptions, RemoteStore, stage_input};
pub use row::{ImageHome, RowBuffer};
pub use schema::{MAX_TOKENS, SCHEMA_VERSION};
pub use store::{Claim, FileStamp, Store, StoreFile, is_partial_name, local_path, open_store};
pub use writer::{DEFAULT_ROW_GROUP_BYTES, ShardSettings, ShardWriter, shard_file_name};
