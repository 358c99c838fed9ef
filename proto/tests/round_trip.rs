//! Whatever is sent comes back equal; whatever else comes is an error, never a panic.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use vela_proto::v1::{self, batch_part::Part};
use vela_proto::{EncodedPart, PART_BYTES, PartReader, Received, WireError, encode_batch};
use vela_types::{
    Batch, BatchSpec, Cursor, DType, DatasetInfo, Fingerprint, HostTensor, ImageNormalization, ImageShape, ImageSpan,
    PackingSpec, Position, ProcessorSummary, SampleSlot, ScatteredBatch,
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

/// The messages of `batch`, each decoded by `prost` from the bytes that would go over the wire.
fn parts(batch: &Batch) -> Vec<v1::BatchPart> {
    let decode = |part: EncodedPart| {
        let bytes: Vec<u8> = part.pieces.into_iter().flatten().collect();
        let (prefix, message) = bytes.split_at(5);
        assert_eq!(prefix, [&[0], &(message.len() as u32).to_be_bytes()[..]].concat(), "gRPC's framing");
        let decoded = v1::BatchPart::decode(message).expect("what was encoded decodes");
        assert_eq!(decoded.encode_to_vec(), message, "as prost would have written it");
        decoded
    };
    encode_batch(scattered(batch)).map(decode).collect()
}

/// `batch` with the checksums that its shard would have.
fn scattered(batch: &Batch) -> ScatteredBatch {
    let (pixels, mut shape) = (batch.pixels.data().clone(), batch.pixels.shape().to_vec());
    let image_bytes = shape[1..].iter().product::<usize>().max(1);
    let image_checksums = pixels.chunks(image_bytes).map(crc32fast::hash).collect();
    let pixel_shape = shape.clone();
    shape[0] = 0;
    let none = HostTensor::new(DType::U8, shape, Bytes::new()).expect("no image");
    ScatteredBatch {
        rest: Batch { pixels: none, ..batch.clone() },
        pixel_shape,
        pixel_pieces: vec![pixels],
        image_checksums,
    }
}

/// What a server of any other make sends for `parts`.
fn framed(parts: impl IntoIterator<Item = v1::BatchPart>) -> Vec<u8> {
    let frame = |mut part: v1::BatchPart| {
        if let Some(Part::Header(header)) = &mut part.part {
            header.header_checksum = None;
            header.header_checksum = Some(crc32fast::hash(&header.encode_to_vec()));
        }
        let message = part.encode_to_vec();
        [&[0], &(message.len() as u32).to_be_bytes()[..], &message].concat()
    };
    parts.into_iter().flat_map(frame).collect()
}

/// Reads `bytes` in pieces of the lengths `cuts` in turn. The batches, and the payload bytes told between them.
fn read(bytes: Vec<u8>, cuts: &[usize]) -> Result<(Vec<Batch>, usize), WireError> {
    let (mut reader, mut bytes) = (PartReader::new(LIMIT, true), Bytes::from(bytes));
    let (mut batches, mut payload, mut announced) = (Vec::new(), 0, 0);
    let mut cuts = cuts.iter().cycle();
    while !bytes.is_empty() {
        let cut = cuts.next().map_or(bytes.len(), |cut| (*cut).max(1));
        let mut piece = bytes.split_to(cut.min(bytes.len()));
        while let Some(received) = reader.read(&mut piece)? {
            match received {
                Received::Header { payload_bytes, .. } => announced += payload_bytes,
                Received::Payload(num_bytes) => payload += num_bytes,
                Received::Batch(batch) => {
                    assert_eq!(payload, announced, "a batch is complete with its last byte");
                    batches.push(*batch);
                }
            }
        }
    }
    Ok((batches, payload))
}

fn assemble(parts: impl IntoIterator<Item = v1::BatchPart>) -> Result<Vec<Batch>, WireError> {
    Ok(read(framed(parts), &[])?.0)
}

proptest! {
    #[test]
    fn a_batch_comes_back_equal(
        rows in 1usize..5, columns in 1usize..70, images in 0usize..4, side in 1usize..400,
        cuts in prop::collection::vec(1usize..5000, 0..4),
    ) {
        let batch = batch(rows, columns, images, side);
        let encoded: Vec<_> = encode_batch(scattered(&batch)).chain(encode_batch(scattered(&batch))).collect();
        let payload: usize = encoded.iter().map(|part| part.payload_bytes).sum();
        prop_assert!(encoded.iter().all(|part| part.pieces.iter().map(Bytes::len).sum::<usize>() <= 1 << 20));
        prop_assert_eq!(payload, 2 * batch.num_bytes());
        let bytes: Vec<u8> = encoded.into_iter().flat_map(|part| part.pieces).flatten().collect();
        prop_assert_eq!(&bytes, &framed(parts(&batch).into_iter().chain(parts(&batch))));
        let (batches, received) = read(bytes, &cuts).expect("a stream as it is sent");
        prop_assert_eq!(received, payload);
        prop_assert_eq!(batches, vec![batch.clone(), batch]);
    }

    #[test]
    fn pixels_in_pieces_travel_as_pixels_in_one(images in 0usize..4, side in 1usize..400, cuts in prop::collection::vec(1usize..200_000, 1..5)) {
        let whole = batch(2, 9, images, side);
        let mut pieces = scattered(&whole);
        let mut pixels = pieces.pixel_pieces.remove(0);
        for cut in cuts.iter().cycle() {
            pieces.pixel_pieces.push(pixels.split_to((*cut).min(pixels.len())));
            if pixels.is_empty() {
                break;
            }
        }
        prop_assert_eq!(pieces.num_bytes(), whole.num_bytes());
        let on_the_wire = |parts: &mut dyn Iterator<Item = EncodedPart>| parts.map(|part| part.pieces.into_iter().flatten().collect()).collect::<Vec<Vec<u8>>>();
        prop_assert_eq!(
            on_the_wire(&mut encode_batch(pieces.clone())),
            on_the_wire(&mut encode_batch(scattered(&whole)))
        );
        prop_assert_eq!(pieces.gather().expect("its own pieces"), whole);
    }

    /// Fields may come in any order and unknown ones in between: whoever writes so is understood.
    #[test]
    fn a_chunk_written_in_another_order_is_read_too(cut in 1usize..40) {
        let batch = batch(2, 5, 1, 4);
        let bytes = framed(parts(&batch));
        let chunk = parts(&batch).remove(1);
        let Some(Part::Chunk(chunk)) = chunk.part else { panic!("a chunk after the header") };
        let header_bytes = framed([parts(&batch).remove(0)]).len();
        let mut fields = vec![0x12];
        prost::encoding::encode_varint(chunk.data.len() as u64, &mut fields);
        fields.extend_from_slice(&chunk.data);
        fields.extend_from_slice(&[0x08, 0, 0x78, 1]);
        let mut message = vec![0x12];
        prost::encoding::encode_varint(fields.len() as u64, &mut message);
        message.extend_from_slice(&fields);
        let prefix = [&[0], &(message.len() as u32).to_be_bytes()[..]].concat();
        let other = [&bytes[..header_bytes], &prefix, &message].concat();
        prop_assert_eq!(read(other, &[cut]).expect("the same message").0, vec![batch]);
    }

    #[test]
    fn spec_and_cursor_come_back_equal(sizes in prop::array::uniform4(1u32..1 << 24), seed: u64, shuffle: bool, packing: bool, place: (u64, u64, u32), name: [u8; 32]) {
        let [global_batch, micro_batch, image_tokens, max_length] = sizes;
        let micro_batch = micro_batch.min(vela_proto::MAX_SAMPLES as u32);
        let global_batch = global_batch.min(vela_proto::MAX_GLOBAL_BATCH);
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

    /// Not one bit of a batch can turn unseen; of framing, a message may be taken for the wait for another.
    #[test]
    fn a_turned_bit_never_makes_another_batch(place in 0usize..1 << 20, cut in 1usize..3000) {
        let batch = batch(2, 5, 3, 40);
        let mut bytes = framed(parts(&batch));
        let place = place % (8 * bytes.len());
        bytes[place / 8] ^= 1 << (place % 8);
        if let Ok((batches, _)) = read(bytes, &[cut]) {
            prop_assert!(batches.is_empty() || batches == [batch]);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let header = framed([parts(&batch(2, 5, 1, 4)).remove(0)]);
        let _ = (read(bytes.clone(), &[7]), read([&header, &bytes[..]].concat(), &[]));
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
    fn a_flipped_byte_never_panics(place in 0usize..1000, value: u8, cut in 1usize..100) {
        let mut bytes = framed(parts(&batch(2, 5, 1, 4)));
        let place = place % bytes.len();
        bytes[place] = value;
        let _ = read(bytes, &[cut]);
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
fn no_tensor_is_copied() {
    let batch = batch(1, 4, 4, 700);
    let tensors = [&batch.input_ids, &batch.labels, &batch.position_ids, &batch.document_ids, &batch.pixels];
    let ranges = tensors.map(|tensor| tensor.data().as_ptr_range());
    let parts: Vec<_> = encode_batch(scattered(&batch)).collect();
    assert!(parts.len() > 6 && parts.iter().all(|part| part.payload_bytes <= PART_BYTES));
    let payload = parts.iter().skip(1).flat_map(|part| part.pieces.iter().skip(1));
    let pieces: Vec<_> = payload.collect();
    assert!(pieces.len() >= 10, "four small tensors, and pixels in several parts");
    assert!(pieces.iter().all(|piece| ranges.iter().any(|range| range.contains(&piece.as_ptr()))));
}

#[test]
fn a_compressed_or_endless_message_is_refused() {
    let refusal = |prefix: [u8; 5]| read(prefix.to_vec(), &[]).expect_err("a refusal").to_string();
    assert!(refusal([1, 0, 0, 0, 9]).contains("compression"));
    assert!(refusal([0, 255, 0, 0, 0]).contains("at most"));
    assert!(refusal([0, 0, 0, 0, 0]).contains("`part`"));
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
    assert!(refusal(|parts| header(parts).image_checksums.clear()).contains("image_checksums"));
    assert!(refusal(|parts| header(parts).token_checksum = None).contains("token_checksum"));
    let no_payload = refusal(|parts| header(parts).tensors.iter_mut().for_each(|tensor| tensor.shape[1] = 0));
    assert!(no_payload.contains("expected a payload"), "{no_payload}");
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
