//! Messages that end with a checksum of themselves: requests, and what a server says of its data.

use prost::Message;

use crate::checks::check_sum;
use crate::{WireError, v1};

/// A message with a field `checksum`, its last.
pub trait Sealed: Message + Clone + Sized {
    /// Its name, for errors.
    const NAME: &'static str;

    /// The field.
    fn checksum_mut(&mut self) -> &mut Option<u32>;

    /// The message with the checksum of its other fields.
    fn sealed(mut self) -> Self {
        *self.checksum_mut() = None;
        let checksum = crc32fast::hash(&self.encode_to_vec());
        *self.checksum_mut() = Some(checksum);
        self
    }

    /// Compares the checksum; one that was not sent is right.
    ///
    /// # Errors
    /// If it is another.
    fn check(mut self) -> Result<Self, WireError> {
        match self.checksum_mut().take() {
            Some(expected) => {
                check_sum(|| Self::NAME.to_owned(), expected, crc32fast::hash(&self.encode_to_vec())).map(|()| self)
            }
            None => Ok(self),
        }
    }
}

macro_rules! sealed {
    ($($message:ident: $name:literal),*) => {$(
        impl Sealed for v1::$message {
            const NAME: &'static str = $name;

            fn checksum_mut(&mut self) -> &mut Option<u32> {
                &mut self.checksum
            }
        }
    )*};
}

sealed! {
    DescribeDatasetRequest: "the request for a description",
    DescribeDatasetResponse: "the description",
    OpenStream: "the request for a stream",
    GetBatchRequest: "the request for a batch"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turned_bit_is_told_and_no_checksum_is_none() {
        let spec = v1::BatchSpec { global_batch: 8, seed: 3, ..Default::default() };
        let open = v1::OpenStream { spec: Some(spec), credit_bytes: 1 << 20, ..Default::default() };
        assert_eq!(open.clone().check(), Ok(open.clone()));
        let bytes = open.clone().sealed().encode_to_vec();
        assert_eq!(v1::OpenStream::decode(&bytes[..]).expect("a message").check(), Ok(open.clone()));
        // Of the last field, its tag apart: without it the others are as they were.
        for bit in (0..8 * bytes.len()).filter(|bit| bit / 8 != bytes.len() - 5) {
            let mut turned = bytes.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = v1::OpenStream::decode(&turned[..]) {
                let told = other.check().expect_err("a turned bit").to_string();
                assert!(told.starts_with("the request for a stream came damaged"), "{bit}: {told}");
            }
        }
    }
}
