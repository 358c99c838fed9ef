//! Gradients summed over the ranks, in buckets of one size.

use std::ops::Range;

use candle_core::{Tensor, Var};

use crate::collective::Collective;
use crate::error::TrainError;
use crate::optimizer::Gradients;

/// Values that travel together, 32 MiB: few enough to fit beside the gradients, enough that latency does not count.
const BUCKET: usize = 8 << 20;

/// A part of one parameter's values, in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    parameter: usize,
    values: Range<usize>,
}

/// Cuts parameters of these lengths, laid end to end, into buckets of `most` values; the last may have fewer.
fn cut(lengths: &[usize], most: usize) -> Vec<Vec<Piece>> {
    let (mut buckets, mut room) = (Vec::<Vec<Piece>>::new(), 0);
    for (parameter, &length) in lengths.iter().enumerate() {
        let mut start = 0;
        while start < length {
            if room == 0 {
                buckets.push(Vec::new());
                room = most;
            }
            let end = length.min(start + room);
            buckets.last_mut().expect("one was begun").push(Piece { parameter, values: start..end });
            room -= end - start;
            start = end;
        }
    }
    buckets
}

/// Replaces the gradients of `parameters` by their sums over all ranks. A parameter that has none here counts as zero, since another rank has one.
pub(super) fn sum_gradients(
    collective: &mut dyn Collective,
    step: u64,
    parameters: &[(&str, &Var)],
    gradients: &mut Gradients,
) -> Result<(), TrainError> {
    let lengths: Vec<usize> = parameters.iter().map(|(_, var)| var.elem_count()).collect();
    let buckets = cut(&lengths, BUCKET);
    // The sums of the parameter that is under way.
    let mut sums = Vec::new();
    let mut values = Vec::new();
    for (index, bucket) in buckets.iter().enumerate() {
        collective.announce(&format!("step {step}: gradients, bucket {} of {}", index + 1, buckets.len()));
        values.clear();
        for piece in bucket {
            append(&mut values, gradients.get(parameters[piece.parameter].0), piece)?;
        }
        collective.all_reduce(&mut values)?;
        let mut rest = &values[..];
        for Piece { parameter, values } in bucket {
            let (mine, after) = rest.split_at(values.len());
            rest = after;
            sums.extend_from_slice(mine);
            if values.end == lengths[*parameter] {
                let (name, var) = parameters[*parameter];
                let sum = Tensor::from_vec(std::mem::take(&mut sums), var.shape(), var.device())?;
                gradients.put(name, sum);
            }
        }
    }
    Ok(())
}

fn append(values: &mut Vec<f32>, gradient: Option<&Tensor>, piece: &Piece) -> Result<(), TrainError> {
    let Range { start, end } = piece.values;
    match gradient {
        None => values.resize(values.len() + (end - start), 0.0),
        Some(gradient) => {
            values.extend(gradient.flatten_all()?.narrow(0, start, end - start)?.to_vec1::<f32>()?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_is_in_one_bucket_and_all_but_the_last_are_full(
            lengths in prop::collection::vec(0usize..40, 0..12), most in 1usize..30,
        ) {
            let buckets = cut(&lengths, most);
            let flat: Vec<(usize, usize)> = buckets
                .iter()
                .flatten()
                .flat_map(|piece| piece.values.clone().map(|value| (piece.parameter, value)))
                .collect();
            let all: Vec<(usize, usize)> = lengths
                .iter()
                .enumerate()
                .flat_map(|(parameter, &length)| (0..length).map(move |value| (parameter, value)))
                .collect();
            prop_assert_eq!(flat, all);
            let sizes: Vec<usize> =
                buckets.iter().map(|bucket| bucket.iter().map(|piece| piece.values.len()).sum()).collect();
            prop_assert!(sizes.iter().rev().skip(1).all(|&size| size == most), "{:?}", sizes);
            prop_assert!(sizes.iter().all(|&size| 0 < size && size <= most), "{:?}", sizes);
        }
    }

    /// Every rank has the same values: two of them.
    struct Twins {
        calls: usize,
    }

    impl Collective for Twins {
        fn rank(&self) -> usize {
            0
        }

        fn world(&self) -> usize {
            2
        }

        fn all_reduce(&mut self, values: &mut Vec<f32>) -> Result<(), TrainError> {
            self.calls += 1;
            values.iter_mut().for_each(|value| *value += *value);
            Ok(())
        }

        fn broadcast(&mut self, _bytes: &mut Vec<u8>) -> Result<(), TrainError> {
            Ok(())
        }

        fn barrier(&mut self) -> Result<(), TrainError> {
            Ok(())
        }

        fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
            Ok(vec![bytes.to_vec(); 2])
        }

        fn finish(&mut self) -> Result<(), TrainError> {
            Ok(())
        }
    }

    #[test]
    fn gradients_of_several_buckets_come_back_in_their_places() {
        let device = &Device::Cpu;
        let long: Vec<f32> = (0..BUCKET + 5).map(|index| (index % 1000) as f32).collect();
        let var = |values: &[f32]| Var::from_vec(values.to_vec(), values.len(), device).expect("made");
        let (a, b, c) = (var(&[1.0, 2.0]), var(&long), var(&[3.0]));
        let mut gradients = Gradients::default();
        gradients.add("a", a.as_tensor().clone()).expect("added");
        gradients.add("b", b.as_tensor().clone()).expect("added");
        let mut twins = Twins { calls: 0 };
        sum_gradients(&mut twins, 1, &[("a", &a), ("b", &b), ("c", &c)], &mut gradients).expect("summed");
        assert_eq!(twins.calls, 2);
        let values = |name: &str| gradients.get(name).expect("there").to_vec1::<f32>().expect("f32");
        assert_eq!((values("a"), values("c")), (vec![2.0, 4.0], vec![0.0]));
        assert!(values("b").iter().zip(&long).all(|(sum, value)| *sum == 2.0 * value));
    }
}
