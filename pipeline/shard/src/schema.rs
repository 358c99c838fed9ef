//! Columns and metadata of a shard, version 2.

use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as PhysicalType, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::{ColumnPath, Type, TypePtr};
use vela_types::{ImageShape, ProcessorSummary};

/// Version of the shard files, the manifest and the lengths index, raised together.
pub const SCHEMA_VERSION: u32 = 2;

/// Longest record a shard holds, in tokens with images counted as one: it bounds what a reader ever allocates.
pub const MAX_TOKENS: usize = 1 << 20;

/// Leaf columns in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Id,
    Source,
    Language,
    InputIds,
    Labels,
    ImageRows,
    ImageIndices,
    ImageHashes,
    ImageChecksums,
    Checksum,
    Pixels,
}

impl Column {
    pub(crate) const ALL: [Self; 11] = [
        Self::Id,
        Self::Source,
        Self::Language,
        Self::InputIds,
        Self::Labels,
        Self::ImageRows,
        Self::ImageIndices,
        Self::ImageHashes,
        Self::ImageChecksums,
        Self::Checksum,
        Self::Pixels,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Source => "source",
            Self::Language => "language",
            Self::InputIds => "input_ids",
            Self::Labels => "labels",
            Self::ImageRows => "image_rows",
            Self::ImageIndices => "image_indices",
            Self::ImageHashes => "image_hashes",
            Self::ImageChecksums => "image_checksums",
            Self::Checksum => "checksum",
            Self::Pixels => "pixels",
        }
    }

    /// Token columns shrink under zstd; the others are a few bytes per row, which a frame header would only lengthen.
    pub(crate) const fn is_compressed(self) -> bool {
        matches!(self, Self::InputIds | Self::Labels)
    }

    fn field(self) -> Result<TypePtr, ParquetError> {
        let name = self.name();
        match self {
            Self::Id | Self::Source | Self::Language => text(name),
            Self::InputIds | Self::ImageRows | Self::ImageIndices | Self::ImageChecksums => {
                list(name, unsigned("element")?)
            }
            Self::Labels => list(name, leaf("element", PhysicalType::INT32, None, -1)?),
            Self::ImageHashes => list(name, leaf("element", PhysicalType::FIXED_LEN_BYTE_ARRAY, None, 32)?),
            Self::Checksum => unsigned(name),
            Self::Pixels => leaf(name, PhysicalType::BYTE_ARRAY, None, -1),
        }
    }
}

fn leaf(name: &str, kind: PhysicalType, logical: Option<LogicalType>, length: i32) -> Result<TypePtr, ParquetError> {
    let builder = Type::primitive_type_builder(name, kind).with_repetition(Repetition::REQUIRED);
    builder.with_logical_type(logical).with_length(length).build().map(Arc::new)
}

fn text(name: &str) -> Result<TypePtr, ParquetError> {
    leaf(name, PhysicalType::BYTE_ARRAY, Some(LogicalType::String), -1)
}

fn unsigned(name: &str) -> Result<TypePtr, ParquetError> {
    leaf(name, PhysicalType::INT32, Some(LogicalType::integer(32, false)), -1)
}

/// The three-level list of the Parquet specification; neither the list nor its elements may be null.
fn list(name: &str, element: TypePtr) -> Result<TypePtr, ParquetError> {
    let repeated = Type::group_type_builder("list").with_repetition(Repetition::REPEATED).with_fields(vec![element]);
    let outer = Type::group_type_builder(name).with_repetition(Repetition::REQUIRED);
    let outer = outer.with_logical_type(Some(LogicalType::List)).with_fields(vec![Arc::new(repeated.build()?)]);
    outer.build().map(Arc::new)
}

/// The file schema.
pub(crate) fn file_schema() -> Result<TypePtr, ParquetError> {
    let fields = Column::ALL.iter().map(|column| column.field()).collect::<Result<_, _>>()?;
    Type::group_type_builder("vela_record").with_fields(fields).build().map(Arc::new)
}

/// Writer settings: everything that could vary between runs or library versions is pinned.
pub(crate) fn writer_properties(processor: &ProcessorSummary) -> Result<WriterProperties, ParquetError> {
    let mut builder = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(format!("vela-shard version {SCHEMA_VERSION}"))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_compression(Compression::UNCOMPRESSED)
        .set_offset_index_disabled(false)
        // One row is one page: a row is then found through the offset index and decoded alone.
        .set_data_page_row_count_limit(1)
        .set_data_page_size_limit(usize::MAX)
        .set_write_batch_size(usize::MAX >> 1)
        .set_max_row_group_row_count(None)
        .set_key_value_metadata(Some(file_metadata(processor)));
    for column in Column::ALL.into_iter().filter(|column| column.is_compressed()) {
        let path =
            ColumnPath::new(["list", "element"].iter().fold(vec![column.name().to_owned()], |mut path, part| {
                path.push((*part).to_owned());
                path
            }));
        builder = builder.set_column_compression(path, Compression::ZSTD(ZstdLevel::try_new(1)?));
    }
    Ok(builder.build())
}

const KEY_VERSION: &str = "vela.schema_version";
const KEY_SHAPE: &str = "vela.image_shape";
const KEY_PROCESSOR: &str = "vela.processor_fingerprint";

fn file_metadata(processor: &ProcessorSummary) -> Vec<KeyValue> {
    let ImageShape { channels, height, width } = processor.image_shape;
    let entries = [
        (KEY_VERSION, SCHEMA_VERSION.to_string()),
        (KEY_SHAPE, format!("{channels}x{height}x{width}")),
        (KEY_PROCESSOR, processor.fingerprint.to_string()),
    ];
    entries.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect()
}

/// Version and image shape from a file's metadata; `None` where one is absent or malformed.
pub(crate) fn parse_file_metadata(entries: &[KeyValue]) -> Option<(u32, ImageShape)> {
    let value = |key: &str| entries.iter().find(|entry| entry.key == key)?.value.as_deref();
    let extents: Vec<u32> = value(KEY_SHAPE)?.split('x').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [channels, height, width] = extents[..] else { return None };
    Some((value(KEY_VERSION)?.parse().ok()?, ImageShape { channels, height, width }))
}
