//! Checksums of a batch's payload, taken while it comes.

use std::collections::VecDeque;

use crc32fast::Hasher;

use crate::WireError;

/// What is still to be compared of a payload: its tokens, then image by image.
#[derive(Debug)]
pub(crate) struct PayloadChecks {
    /// Bytes and checksum of each stretch, the first under way.
    stretches: VecDeque<(usize, u32)>,
    num_images: usize,
    hasher: Hasher,
}

impl PayloadChecks {
    /// `token_bytes` with the checksum `tokens`, then images of `image_bytes` each.
    pub(crate) fn new(token_bytes: usize, tokens: u32, image_bytes: usize, images: &[u32]) -> Self {
        let images = images.iter().map(|&image| (image_bytes, image));
        let mut stretches: VecDeque<_> = std::iter::once((token_bytes, tokens)).chain(images).collect();
        stretches.retain(|&(num_bytes, _)| num_bytes > 0);
        Self {
            num_images: stretches.len().saturating_sub(usize::from(token_bytes > 0)),
            stretches,
            hasher: Hasher::new(),
        }
    }

    /// Takes the next bytes of the payload.
    ///
    /// # Errors
    /// If a stretch that they end has another checksum than it should.
    pub(crate) fn update(&mut self, mut data: &[u8]) -> Result<(), WireError> {
        while let Some((left, expected)) = self.stretches.front_mut()
            && let Some(now) = data.split_off(..data.len().min(*left)).filter(|now| !now.is_empty())
        {
            self.hasher.update(now);
            *left -= now.len();
            if *left == 0 {
                let (expected, found) = (*expected, std::mem::take(&mut self.hasher).finalize());
                let name = || self.name();
                check_sum(name, expected, found)?;
                self.stretches.pop_front();
            }
        }
        Ok(())
    }

    /// Of the stretch under way.
    fn name(&self) -> String {
        match self.num_images.checked_sub(self.stretches.len()) {
            Some(image) => format!("image {image} of a batch"),
            None => "the tokens of a batch".to_owned(),
        }
    }
}

/// Refuses what has not the checksum it should have.
pub(crate) fn check_sum(what: impl FnOnce() -> String, expected: u32, found: u32) -> Result<(), WireError> {
    match expected == found {
        true => Ok(()),
        false => Err(WireError::Checksum { what: what(), expected, found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_told_by_what_it_is_in() {
        let payload: Vec<u8> = (0..100).collect();
        let sums = [&payload[..40], &payload[40..70], &payload[70..]].map(crc32fast::hash);
        let read = |payload: &[u8], cut: usize| {
            let mut checks = PayloadChecks::new(40, sums[0], 30, &sums[1..]);
            payload.chunks(cut).try_for_each(|data| checks.update(data))
        };
        for cut in 1..=100 {
            assert_eq!(read(&payload, cut), Ok(()));
            for (at, what) in [(0, "the tokens"), (39, "the tokens"), (40, "image 0"), (69, "image 0"), (70, "image 1")]
            {
                let mut wrong = payload.clone();
                wrong[at] ^= 16;
                let told = read(&wrong, cut).expect_err("a wrong byte").to_string();
                assert!(told.starts_with(what), "{at}: {told}");
            }
        }
    }
}
