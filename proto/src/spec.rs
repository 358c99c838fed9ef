//! Batch spec, partition, cursor and position.

use bytes::Bytes;
use vela_types::{BatchSpec, Cursor, Fingerprint, PackingSpec, Position};

use crate::{MAX_SAMPLES, WireError, v1};

/// Ranks a job may have.
pub const MAX_WORLD: u32 = 1 << 20;

/// Columns of a row: far above any use, far below any overflow. What they may cost is the limit of bytes of whoever makes the batch.
const MAX_EXTENT: u32 = 1 << 24;

/// Rows of a step: whoever makes one of its micro-batches counts the labels of them all.
pub const MAX_GLOBAL_BATCH: u32 = 1 << 20;

/// The field, or the error that names it.
pub(crate) fn required<T>(field: Option<T>, name: &'static str) -> Result<T, WireError> {
    field.ok_or(WireError::Missing { field: name })
}

fn in_range(value: u32, limit: u32, field: &'static str) -> Result<u32, WireError> {
    match (1..=limit).contains(&value) {
        true => Ok(value),
        false => Err(WireError::value(field, format_args!("1 to {limit}"), value)),
    }
}

/// The spec as a message.
pub fn encode_spec(spec: &BatchSpec) -> v1::BatchSpec {
    let BatchSpec { global_batch, micro_batch, seed, shuffle, shuffle_window, image_tokens, max_length, packing } =
        *spec;
    let packing = packing.map(|PackingSpec { max_images, window }| v1::Packing { max_images, window });
    v1::BatchSpec { global_batch, micro_batch, seed, shuffle, shuffle_window, image_tokens, max_length, packing }
}

/// The spec of a message; sizes must be above 0 and sane.
pub fn decode_spec(spec: Option<v1::BatchSpec>) -> Result<BatchSpec, WireError> {
    let spec = required(spec, "spec")?;
    Ok(BatchSpec {
        global_batch: in_range(spec.global_batch, MAX_GLOBAL_BATCH, "spec.global_batch")?,
        micro_batch: in_range(spec.micro_batch, MAX_SAMPLES as u32, "spec.micro_batch")?,
        seed: spec.seed,
        shuffle: spec.shuffle,
        shuffle_window: spec.shuffle_window,
        image_tokens: in_range(spec.image_tokens, MAX_EXTENT, "spec.image_tokens")?,
        max_length: in_range(spec.max_length, MAX_EXTENT, "spec.max_length")?,
        packing: spec.packing.map(decode_packing).transpose()?,
    })
}

fn decode_packing(packing: v1::Packing) -> Result<PackingSpec, WireError> {
    Ok(PackingSpec {
        max_images: in_range(packing.max_images, MAX_EXTENT, "spec.packing.max_images")?,
        window: in_range(packing.window, MAX_EXTENT, "spec.packing.window")?,
    })
}

/// Rank and world of a message; the rank must be below the world.
pub fn decode_partition(partition: Option<v1::Partition>) -> Result<(u32, u32), WireError> {
    let v1::Partition { rank, world } = required(partition, "partition")?;
    let world = in_range(world, MAX_WORLD, "partition.world")?;
    match rank < world {
        true => Ok((rank, world)),
        false => Err(WireError::value("partition.rank", format_args!("0 to {}", world - 1), rank)),
    }
}

/// The 32 bytes as a message field.
pub fn encode_fingerprint(fingerprint: &Fingerprint) -> Bytes {
    Bytes::copy_from_slice(&fingerprint.0)
}

/// The fingerprint in `bytes`, which must be 32.
pub fn decode_fingerprint(bytes: &[u8], field: &'static str) -> Result<Fingerprint, WireError> {
    let found = || WireError::value(field, "32 bytes", bytes.len());
    bytes.try_into().map(Fingerprint).map_err(|_| found())
}

/// The cursor as a message.
pub fn encode_cursor(cursor: &Cursor) -> v1::Cursor {
    v1::Cursor {
        version: cursor.version,
        fingerprint: encode_fingerprint(&cursor.fingerprint),
        spec: encode_fingerprint(&cursor.spec),
        epoch: cursor.epoch,
        step: cursor.step,
    }
}

/// The cursor of a message. Whether it belongs to the data is [`Cursor::check`]'s to say.
pub fn decode_cursor(cursor: Option<v1::Cursor>) -> Result<Cursor, WireError> {
    let cursor = required(cursor, "cursor")?;
    Ok(Cursor {
        version: cursor.version,
        fingerprint: decode_fingerprint(&cursor.fingerprint, "cursor.fingerprint")?,
        spec: decode_fingerprint(&cursor.spec, "cursor.spec")?,
        epoch: cursor.epoch,
        step: cursor.step,
    })
}

/// The position as a message.
pub fn encode_position(position: Position) -> v1::Position {
    let Position { epoch, step, micro } = position;
    v1::Position { epoch, step, micro }
}

/// The position of a message.
pub fn decode_position(position: Option<v1::Position>) -> Result<Position, WireError> {
    let v1::Position { epoch, step, micro } = required(position, "position")?;
    Ok(Position { epoch, step, micro })
}

/// The position that follows `position` in a rank's stream, where its step has `num_micro` micro-batches and each
/// epoch `steps_per_epoch` steps.
pub fn next_position(position: Position, num_micro: u32, steps_per_epoch: u64) -> Position {
    let Position { epoch, step, micro } = position;
    match (micro.saturating_add(1) < num_micro, step.saturating_add(1) < steps_per_epoch) {
        (true, _) => Position { epoch, step, micro: micro + 1 },
        (false, true) => Position { epoch, step: step + 1, micro: 0 },
        (false, false) => Position { epoch: epoch.saturating_add(1), step: 0, micro: 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_micro_batches_then_steps_then_epochs() {
        let mut position = Position { epoch: 0, step: 0, micro: 0 };
        let mut seen = Vec::new();
        for _ in 0..9 {
            seen.push((position.epoch, position.step, position.micro));
            position = next_position(position, 2, 2);
        }
        let epoch = |epoch| [(epoch, 0, 0), (epoch, 0, 1), (epoch, 1, 0), (epoch, 1, 1)];
        assert_eq!(seen, [&epoch(0)[..], &epoch(1), &[(2, 0, 0)]].concat());
    }

    #[test]
    fn a_rank_outside_its_world_is_refused_by_name() {
        let decode = |rank, world| decode_partition(Some(v1::Partition { rank, world }));
        assert_eq!(decode(1, 2), Ok((1, 2)));
        for (rank, world) in [(2, 2), (0, 0), (0, u32::MAX)] {
            assert!(decode(rank, world).expect_err("refused").to_string().contains("partition."));
        }
    }
}
