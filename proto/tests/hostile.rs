//! What a hostile header takes in memory. Alone in its process, as the system counts the most that one ever took.

use bytes::Bytes;
use vela_proto::PartReader;

const MIB: usize = 1 << 20;

/// The most memory that this process has taken so far; `None` where the system does not tell.
fn peak_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// `BatchPart { header: BatchHeader { FIELD: [{}; num_entries], header_checksum } }` as a message of a stream.
fn header_of_empty_entries(field: u8, num_entries: usize) -> Bytes {
    let entries: Vec<u8> = (0..num_entries).flat_map(|_| [field << 3 | 2, 0]).collect();
    let mut header = vec![1 << 3 | 2];
    prost::encoding::encode_varint(entries.len() as u64 + 5, &mut header);
    header.extend_from_slice(&entries);
    header.push(9 << 3 | 5);
    header.extend(crc32fast::hash(&entries).to_le_bytes());
    [&[0], &(header.len() as u32).to_be_bytes()[..], &header].concat().into()
}

#[test]
fn a_header_of_millions_of_entries_is_refused_before_they_are_made() {
    for (field, name) in [(4, "header.tensors"), (5, "header.image_spans"), (6, "header.samples")] {
        let message = header_of_empty_entries(field, 8 * MIB - 8);
        let before = peak_bytes();
        let refused = PartReader::new(1 << 30, true).read(&mut message.clone()).expect_err("a refusal").to_string();
        assert!(refused.contains(name), "{refused}");
        if let (Some(before), Some(after)) = (before, peak_bytes()) {
            // Once as it came; collected, in a buffer that grew by doubling.
            let taken = after - before;
            assert!(taken < 4 * message.len(), "{} MiB for {} MiB of {name}", taken / MIB, message.len() / MIB);
        }
    }
}

#[test]
fn a_header_is_held_to_the_limit_of_its_batch() {
    let read = |limit, num_entries| {
        let mut message = header_of_empty_entries(6, num_entries);
        PartReader::new(limit, true).read(&mut message).expect_err("no tensors").to_string()
    };
    assert!(read(MIB, 100_000).contains("header"), "{}", read(MIB, 100_000));
    assert!(read(MIB, 2 * MIB).contains("at most 1048"), "{}", read(MIB, 2 * MIB));
    assert!(read(64 * MIB, 100_000).contains("5 tensors"), "{}", read(64 * MIB, 100_000));
}
