//! Whatever is sent comes back equal; whatever else comes is an error, never a panic.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use vela_proto::v1::{self, batch_part::Part};
use vela_proto::{Assembler, PART_BYTES, WireError, batch_chunks, batch_header};
use vela_types::{
    Batch, BatchSpec, Cursor, DType, DatasetInfo, Fingerprint, HostTensor, ImageNormalization, ImageShape, ImageSpan,
    PackingSpec, Position, ProcessorSummary, SampleSlot,
};

const LIMIT: usize = 64 << 20;

fn tokens(rows: usize, columns: usize, seed: i32) -> HostTensor {
    let values: Vec<i32> = (0..rows * columns).map(|index| (index as i32).wrapping_mul(seed)).collect();
    HostTensor::from_i32(vec![rows, columns], &values).expect("rows times columns values")
}

fn batch(rows: usize, columns: usize, images: usize, side: usize) -> Batch {
    let pixels: Vec<u8> = (0..images * 3 * side * side).map(|index| index as u8).collect();
    let slot =
        |row: usize| SampleSlot { row: row as u32, index: row as u64 * 7, id: format!("s/{row}"), valid: row != 1 };
    Batch {
        position: Position { epoch: 3, step: 5, micro: 1 },
        num_micro: 2,
        input_ids: tokens(rows, columns, 3),
        labels: tokens(rows, columns, -5),
        position_ids: tokens(rows, columns, 1),
        document_ids: tokens(rows, columns, 0),
        pixels: HostTensor::new(DType::U8, vec![images, 3, side, side], pixels.into()).expect("images fill the shape"),
        image_spans: (0..images).map(|image| ImageSpan { row: (image % rows) as u32, start: 0 }).collect(),
        samples: (0..rows).map(slot).collect(),
        step_label_tokens: 99,
    }
}

fn parts(batch: &Batch) -> Vec<v1::BatchPart> {
    let header = Part::Header(batch_header(batch));
    let chunks = batch_chunks(batch).map(Part::Chunk);
    std::iter::once(header).chain(chunks).map(|part| v1::BatchPart { part: Some(part) }).collect()
}

/// Through the encoded bytes and back.
fn over_the_wire(part: &v1::BatchPart) -> v1::BatchPart {
    v1::BatchPart::decode(Bytes::from(part.encode_to_vec())).expect("what was encoded decodes")
}

fn assemble(parts: impl IntoIterator<Item = v1::BatchPart>) -> Result<Vec<Batch>, WireError> {
    let mut assembler = Assembler::new(LIMIT);
    let mut batches = Vec::new();
    for part in parts {
        batches.extend(assembler.push(part)?);
    }
    Ok(batches)
}

proptest! {
    #[test]
    fn a_batch_comes_back_equal(rows in 1usize..5, columns in 1usize..70, images in 0usize..4, side in 1usize..400) {
        let batch = batch(rows, columns, images, side);
        let parts = parts(&batch);
        for part in &parts {
            prop_assert!(part.encoded_len() + 5 <= 1 << 20);
        }
        let twice = parts.iter().chain(&parts).map(over_the_wire);
        prop_assert_eq!(assemble(twice), Ok(vec![batch.clone(), batch]));
    }

    #[test]
    fn spec_and_cursor_come_back_equal(sizes in prop::array::uniform4(1u32..1 << 24), seed: u64, shuffle: bool, packing: bool, place: (u64, u64, u32), name: [u8; 32]) {
        let [global_batch, micro_batch, image_tokens, max_length] = sizes;
        let micro_batch = micro_batch.min(vela_proto::MAX_SAMPLES as u32);
        let packing = packing.then_some(PackingSpec { max_images: image_tokens, window: global_batch });
        let spec =
            BatchSpec { global_batch, micro_batch, seed, shuffle, shuffle_window: max_length, image_tokens, max_length, packing };
        prop_assert_eq!(vela_proto::decode_spec(Some(vela_proto::encode_spec(&spec))), Ok(spec));
        let (epoch, step, micro) = place;
        let cursor = Cursor { epoch, step, ..Cursor::start(Fingerprint(name), Fingerprint([7; 32])) };
        prop_assert_eq!(vela_proto::decode_cursor(Some(vela_proto::encode_cursor(&cursor))), Ok(cursor));
        let position = Position { epoch, step, micro };
        prop_assert_eq!(vela_proto::decode_position(Some(vela_proto::encode_position(position))), Ok(position));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        if let Ok(part) = v1::BatchPart::decode(bytes.clone()) {
            let _ = assemble([part.clone(), part]);
        }
        if let Ok(request) = v1::OpenStream::decode(bytes.clone()) {
            let _ = (vela_proto::decode_spec(request.spec), vela_proto::decode_partition(request.partition));
            let _ = vela_proto::decode_cursor(request.cursor);
        }
        if let Ok(info) = v1::DatasetInfo::decode(bytes) {
            let _ = vela_proto::decode_info(Some(info));
        }
    }

    #[test]
    fn a_flipped_byte_never_panics(part_index in 0usize..2, place in 0usize..400, value: u8) {
        let mut parts = parts(&batch(2, 5, 1, 4));
        let mut bytes = parts[part_index].encode_to_vec();
        let place = place % bytes.len();
        bytes[place] = value;
        if let Ok(part) = v1::BatchPart::decode(Bytes::from(bytes)) {
            parts[part_index] = part;
            let _ = assemble(parts);
        }
    }
}

#[test]
fn a_description_comes_back_equal() {
    let processor = ProcessorSummary {
        fingerprint: Fingerprint([2; 32]),
        image_shape: ImageShape { channels: 3, height: 224, width: 336 },
        normalization: ImageNormalization { rescale_factor: 1.0 / 255.0, mean: vec![0.1; 3], std: vec![0.3; 3] },
        image_mode: "pillow".into(),
        template: "llama3.2".into(),
        template_date: "2024-07-26".into(),
        vocab_size: 151_936,
        image_token_id: 151_665,
        pad_token_id: 151_643,
        end_of_turn_id: 151_645,
    };
    let info =
        DatasetInfo { fingerprint: Fingerprint([1; 32]), num_samples: 10, num_images: 8, num_tokens: 900, processor };
    assert_eq!(vela_proto::decode_info(Some(vela_proto::encode_info(&info))), Ok(info.clone()));
    let mut hostile = vela_proto::encode_info(&info);
    if let Some(processor) = &mut hostile.processor {
        (processor.image_height, processor.image_width) = (u32::MAX, u32::MAX);
    }
    assert!(vela_proto::decode_info(Some(hostile)).is_err());
}

#[test]
fn chunks_of_one_tensor_share_its_memory() {
    let batch = batch(1, 4, 4, 700);
    let pixels = batch.pixels.data();
    let inside = |chunk: &v1::BatchChunk| pixels.as_ptr_range().contains(&chunk.data.as_ptr());
    let chunks: Vec<_> = batch_chunks(&batch).collect();
    assert!(chunks.len() > 5 && chunks.iter().all(|chunk| chunk.data.len() <= PART_BYTES));
    assert!(chunks[1..].iter().all(inside), "only the first chunk, which joins small tensors, is a copy");
}

fn refusal(change: impl FnOnce(&mut Vec<v1::BatchPart>)) -> String {
    let mut parts = parts(&batch(2, 5, 1, 4));
    change(&mut parts);
    assemble(parts).expect_err("a refusal").to_string()
}

fn header(parts: &mut [v1::BatchPart]) -> &mut v1::BatchHeader {
    match parts[0].part.as_mut() {
        Some(Part::Header(header)) => header,
        other => panic!("expected the header, found {other:?}"),
    }
}

#[test]
fn each_broken_batch_is_refused_by_what_is_wrong() {
    assert!(refusal(|parts| drop(parts.remove(0))).contains("expected a header"));
    assert!(refusal(|parts| parts.insert(1, parts[0].clone())).contains("chunk at offset 0"));
    assert!(refusal(|parts| parts[0].part = None).contains("`part`"));
    assert!(refusal(|parts| header(parts).tensors[4].shape[0] = 1 << 50).contains("at most"));
    assert!(refusal(|parts| header(parts).tensors[4].shape = vec![1 << 40; 8]).contains("fit in memory"));
    assert!(refusal(|parts| header(parts).tensors[4].shape = vec![1; 9]).contains("axes"));
    assert!(refusal(|parts| header(parts).tensors[0].dtype = 1).contains("DTYPE_I32"));
    assert!(refusal(|parts| header(parts).tensors.swap(0, 1)).contains("INPUT_IDS"));
    assert!(refusal(|parts| drop(header(parts).tensors.pop())).contains("5 tensors"));
    assert!(refusal(|parts| header(parts).image_spans[0].row = 2).contains("image_spans"));
    assert!(refusal(|parts| header(parts).image_spans.clear()).contains("one image per span"));
    assert!(refusal(|parts| header(parts).samples[0].row = 2).contains("samples"));
    assert!(refusal(|parts| header(parts).samples[0].id = "x".repeat(5000)).contains("sample.id"));
    assert!(refusal(|parts| header(parts).num_micro = 1).contains("position.micro"));
    assert!(refusal(|parts| header(parts).position = None).contains("`position`"));
    assert!(refusal(|parts| header(parts).tensors[1].shape.swap(0, 1)).contains("labels"));
}

#[test]
fn a_chunk_out_of_place_or_too_long_is_refused() {
    let change = |edit: fn(&mut v1::BatchChunk)| {
        refusal(|parts| match parts[1].part.as_mut() {
            Some(Part::Chunk(chunk)) => edit(chunk),
            other => panic!("expected a chunk, found {other:?}"),
        })
    };
    assert!(change(|chunk| chunk.offset = 1).contains("offset 0"));
    assert!(change(|chunk| chunk.data = Bytes::new()).contains("chunk.data"));
    assert!(change(|chunk| chunk.data = vec![0; 4096].into()).contains("chunk.data"));
}
