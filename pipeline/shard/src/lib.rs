//! The on-disk contract: Parquet shards, manifest, lengths index, checksums, stores.
