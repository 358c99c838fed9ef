//! Why a batch cannot be made.

use std::sync::Arc;

use vela_shard::ShardError;
use vela_types::{CursorMismatch, PackFault, PackItem, PackLimits, TensorError};

/// A failure of the read side: where, what was expected, what was found, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// The shard set cannot be opened or read.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The shard set holds no record.
    #[error("`{url}` holds no records; build it from a source that has some")]
    Empty {
        /// The shard set.
        url: String,
    },
    /// A field of the batch spec makes no sense.
    #[error("batch spec: expected `{field}` {expected}, found {found}")]
    Spec {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: u64,
    },
    /// The rank is not one of the world's.
    #[error("expected a rank below {world}, found rank {rank}")]
    Rank {
        /// The rank.
        rank: u32,
        /// Ranks.
        world: u32,
    },
    /// The position is not in the epoch.
    #[error("expected a {what} below {bound}, found {found}")]
    Position {
        /// `step` or `micro-batch`.
        what: &'static str,
        /// How many there are.
        bound: u64,
        /// The one asked for.
        found: u64,
    },
    /// An index past the last record.
    #[error("`{url}` holds {num_samples} records, there is no record {index}")]
    NoSuchRecord {
        /// The shard set.
        url: String,
        /// The index.
        index: u64,
        /// Records of the set.
        num_samples: u64,
    },
    /// A record does not fit the longest row accepted.
    #[error(
        "record `{id}` (index {index}) has {length} tokens once its {num_images} images take {image_tokens} each, `max_length` is {max_length}; raise `max_length` or build the shards with a smaller one"
    )]
    TooLong {
        /// The record.
        id: String,
        /// Its index in the manifest's order.
        index: u64,
        /// Its expanded length.
        length: u64,
        /// Its images.
        num_images: u32,
        /// Tokens of an image.
        image_tokens: u32,
        /// The limit of the spec.
        max_length: u32,
    },
    /// A sample that no packed row can hold.
    #[error(
        "record `{id}` (index {index}) has {} tokens with its images expanded and {} images, a packed row holds at most {} tokens and {} images; raise `max_length` or `packing.max_images`",
        item.tokens, item.images, limits.tokens, limits.images
    )]
    Unpackable {
        /// The record.
        id: String,
        /// Its index in the manifest's order.
        index: u64,
        /// What it takes.
        item: PackItem,
        /// What a row holds.
        limits: PackLimits,
    },
    /// The parts of a blend do not fit together.
    #[error("blend: `{url}`: expected {expected}, found {found}")]
    Blend {
        /// The part.
        url: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// More records are damaged than the budget allows.
    #[error("more than {budget} records are damaged; mend the shard set, or raise the budget")]
    BudgetSpent {
        /// Records that may be masked.
        budget: u64,
        /// The damage of the record that is one too many.
        source: Box<DatasetError>,
    },
    /// A shard was found damaged a moment ago, and is not asked for again so soon.
    #[error(transparent)]
    StillDamaged(Arc<DatasetError>),
    /// A shard that was there in its full size when the set was opened is not any more. No record is damaged by that: none is masked.
    #[error("since the set was opened: {0}; put the shard back, under a temporary name first and renamed when whole")]
    Gone(#[source] Box<ShardError>),
    /// Nothing can be packed so.
    #[error(transparent)]
    Pack(#[from] PackFault),
    /// The largest micro-batch of the spec is larger than this process may make.
    #[error(
        "a micro-batch of {num_rows} rows of up to {columns} tokens with up to {num_images} images: expected at most {limit} bytes, found {found}; lower the micro-batch (`batch.micro` of a recipe) or raise the limit (`data.max_batch_bytes`, `loader serve --max-batch-bytes`)"
    )]
    TooLarge {
        /// Its rows.
        num_rows: u64,
        /// Tokens of its longest row.
        columns: u64,
        /// Images of its rows.
        num_images: u64,
        /// Bytes it may take.
        limit: u64,
        /// Bytes it takes at most.
        found: u64,
    },
    /// A record's image tokens, images and index entry disagree.
    #[error("record `{id}` (index {index}): expected {expected}, found {found}; build the shards again")]
    Inconsistent {
        /// The record.
        id: String,
        /// Its index in the manifest's order.
        index: u64,
        /// What the lengths index and manifest say.
        expected: String,
        /// What the record has.
        found: String,
    },
    /// A cursor of other data or another spec.
    #[error(transparent)]
    Cursor(#[from] CursorMismatch),
    /// The batch's own buffers do not fit its shapes.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The operating system gave no thread.
    #[error("cannot start a thread; raise the limit of threads (`ulimit -u`) or free memory")]
    Thread(#[source] std::io::Error),
    /// The prefetch thread ended without a batch or an error.
    #[error("the prefetch thread ended early; this is a defect of Vela")]
    WorkerLost,
}

impl DatasetError {
    /// True if the place that was named holds no shard set to open: whoever named it is to correct it.
    pub fn is_wrong_place(&self) -> bool {
        match self {
            Self::Empty { .. } => true,
            Self::Shard(ShardError::MissingManifest { .. } | ShardError::UnsupportedUrl { .. }) => true,
            // A file, often the manifest itself, where the folder was asked for.
            Self::Shard(ShardError::Io { source, .. }) => source.kind() == std::io::ErrorKind::NotADirectory,
            _ => false,
        }
    }

    /// Whether it is of here and now rather than of the data: a store that does not answer, a shard that is gone, a full cache, too many open files. The same
    /// request may succeed later, or elsewhere.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Gone(_)
                | Self::Shard(ShardError::Remote { .. } | ShardError::Io { .. } | ShardError::CacheFull { .. })
        )
    }

    /// True if stored bytes are wrong.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Shard(fault) => fault.is_damage(),
            Self::Inconsistent { .. } | Self::StillDamaged(_) => true,
            _ => false,
        }
    }
}
