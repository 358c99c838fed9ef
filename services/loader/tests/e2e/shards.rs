//! A shard set made on the spot: every sample of another length, some without an image, pixels from a seeded stream.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use vela_shard::{BuildFolder, ShardSettings, Store, open_store};
use vela_types::{
    BatchSpec, Fingerprint, IGNORE_LABEL, ImageNormalization, ImageShape, ImageTensor, Language, ProcessorSummary,
    Record, SeedStream,
};

const IMAGE_TOKEN: u32 = 999;

/// What to make.
pub(crate) struct Plan {
    pub(crate) num_samples: u64,
    /// Height and width of the images.
    pub(crate) side: u32,
    /// Every sample has an image; otherwise every third has none.
    pub(crate) always_image: bool,
    /// Tokens of the shortest sample; the longest has 30 more.
    pub(crate) num_tokens: usize,
    /// Another seed is another data set.
    pub(crate) seed: u64,
}

impl Plan {
    /// Small batches, as most tests want them.
    pub(crate) fn small() -> Self {
        Self { num_samples: 23, side: 16, always_image: false, num_tokens: 5, seed: 7 }
    }
}

/// Writes the set, in two shards, into `folder`.
pub(crate) fn write(folder: &Path, plan: &Plan) {
    write_shards(folder, plan, 2);
}

/// Writes the set in `num_shards` shards into `folder`.
pub(crate) fn write_shards(folder: &Path, plan: &Plan, num_shards: u32) {
    write_to(open_store(&folder.display().to_string()).expect("a local folder"), plan, num_shards);
}

/// Writes the set in `num_shards` shards to a store.
pub(crate) fn write_to(store: Arc<dyn Store>, plan: &Plan, num_shards: u32) {
    let shape = ImageShape { channels: 3, height: plan.side, width: plan.side };
    let settings = ShardSettings::new(processor(shape));
    let name = Fingerprint(*blake3::hash(&plan.seed.to_le_bytes()).as_bytes());
    let build = BuildFolder::open(store, name, settings).expect("an empty folder");
    let first_row = |index: u32| plan.num_samples * u64::from(index) / u64::from(num_shards);
    for index in 0..num_shards {
        let mut writer = build.create_shard(index).expect("a writer");
        for row in first_row(index)..first_row(index + 1) {
            writer.push(&record(plan, shape, row)).expect("a good record");
        }
        let shard = writer.finish().expect("a shard");
        build.complete_shard(index, &shard, serde_json::Value::Null).expect("recorded");
    }
    build.commit(num_shards, BTreeMap::new(), serde_json::json!({})).expect("a manifest");
}

/// Turns bytes of a shard whose images are at least 64 x 64.
pub(crate) fn damage(shard: &Path) {
    let mut bytes = std::fs::read(shard).expect("a shard");
    bytes.iter_mut().skip(1000).take(40_000).for_each(|byte| *byte ^= 0x55);
    std::fs::write(shard, bytes).expect("written");
}

/// Batches of six in micro-batches of two, on one to three ranks.
pub(crate) fn spec() -> BatchSpec {
    BatchSpec {
        global_batch: 6,
        micro_batch: 2,
        seed: 11,
        shuffle: true,
        image_tokens: 4,
        max_length: 4096,
        shuffle_window: 0,
        packing: None,
    }
}

fn processor(image_shape: ImageShape) -> ProcessorSummary {
    ProcessorSummary {
        fingerprint: Fingerprint([9; 32]),
        image_shape,
        normalization: ImageNormalization { rescale_factor: 1.0 / 255.0, mean: vec![0.5; 3], std: vec![0.25; 3] },
        image_mode: "pillow".into(),
        template: "llama3.2".into(),
        template_date: "2024-07-26".into(),
        vocab_size: 1000,
        image_token_id: IMAGE_TOKEN,
        pad_token_id: 0,
        end_of_turn_id: 2,
    }
}

fn record(plan: &Plan, shape: ImageShape, row: u64) -> Record {
    let mut draws = SeedStream::named(plan.seed, "record", &row.to_string());
    let has_image = plan.always_image || !row.is_multiple_of(3);
    let mut input_ids: Vec<u32> = has_image.then_some(IMAGE_TOKEN).into_iter().collect();
    let num_tokens = plan.num_tokens + draws.below(31) as usize;
    input_ids.extend((0..num_tokens).map(|_| 3 + draws.below(900) as u32));
    let is_label = |(index, &id): (usize, &u32)| if index > 2 { id as i32 } else { IGNORE_LABEL };
    let labels = input_ids.iter().enumerate().map(is_label).collect();
    let images = has_image.then(|| image(shape, &mut draws)).into_iter().collect();
    let (id, source) = (format!("made/{row}"), "made".to_owned());
    Record { id, source, language: Language::En, input_ids, labels, images }
}

fn image(shape: ImageShape, draws: &mut SeedStream) -> ImageTensor {
    let words = shape.num_elements().div_ceil(8);
    let mut data: Vec<u8> = (0..words).flat_map(|_| draws.next_u64().to_le_bytes()).collect();
    data.truncate(shape.num_elements());
    let hash = Fingerprint(*blake3::hash(&data).as_bytes());
    ImageTensor { shape, data: data.into(), hash }
}
