//! The tape gives the gradients of candle's own backward.
#![allow(clippy::unwrap_used, reason = "a test")]
#![expect(non_snake_case, reason = "shape suffixes")]

use candle_core::{Device, Tensor, Var};
use vela_kernels::{
    AttentionMask, KernelError, Tape, add, attention_rows, concat, embedding, gelu_tanh, layer_norm, linear,
    linear_cross_entropy, recompute, reshape, rms_norm, splice_rows, swiglu,
};

const WIDTH: usize = 8;
const VOCABULARY: usize = 11;

/// A fixed variable of small numbers.
fn var(seed: usize, dims: &[usize]) -> Var {
    let count: usize = dims.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 + seed * 101) % 29) as f32 / 29.0 - 0.5).collect();
    Var::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn weights() -> Vec<Var> {
    let square = [WIDTH, WIDTH];
    let shapes: [&[usize]; 8] =
        [&[VOCABULARY, WIDTH], &[2, WIDTH], &square, &square, &[WIDTH], &[WIDTH], &square, &[WIDTH]];
    shapes.iter().enumerate().map(|(seed, dims)| var(seed + 1, dims)).collect()
}

/// A small model with a tied table, two uses of most tensors, a broadcast by candle in the middle, and a frozen weight.
fn loss(w: &[Var]) -> Tensor {
    let ids = Tensor::from_vec(vec![1u32, 2, 3, 3, 2, 0], (2, 3), &Device::Cpu).unwrap();
    let frozen_OI = var(99, &[WIDTH, WIDTH]).as_tensor().detach();
    let patches_MD = w[1].broadcast_add(&w[7]).unwrap();
    let patches_MD = gelu_tanh(&layer_norm(&patches_MD, &w[4], &w[5], 1e-5).unwrap()).unwrap();
    let x_BTD = embedding(&ids, &w[0]).unwrap();
    let x_ND = splice_rows(&reshape(&x_BTD, (6, WIDTH)).unwrap(), &[0, 4], &patches_MD).unwrap();
    let x_BTD = reshape(&x_ND, (2, 3, WIDTH)).unwrap();
    let h_BTD = rms_norm(&x_BTD, &w[4], 1e-6).unwrap();
    let q_BTX = linear(&h_BTD, &w[2], Some(&w[5])).unwrap();
    let k_BSX = linear(&h_BTD, &frozen_OI, None).unwrap();
    let mask = AttentionMask::Causal { documents_BT: None, offset: 0 };
    let a_BTD = attention_rows(&q_BTX, &k_BSX, &h_BTD, 4, &mask, 0.5).unwrap();
    let x_BTD = add(&x_BTD, &a_BTD).unwrap();
    let x_BTD = add(&x_BTD, &x_BTD).unwrap();
    let gated_BTD = swiglu(&linear(&x_BTD, &w[3], None).unwrap(), &linear(&x_BTD, &w[6], None).unwrap()).unwrap();
    let x_ND = reshape(&add(&x_BTD, &gated_BTD).unwrap(), (6, WIDTH)).unwrap();
    linear_cross_entropy(&x_ND, &w[0], &[3, -100, 5, 0, 10, -100]).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn gradients_equal_candles_backward() {
    let weights = weights();
    let (recorded, tape) = Tape::record(|| loss(&weights));
    let found = tape.backward(recorded, 0.25).unwrap();
    let expected = loss(&weights).affine(0.25, 0.0).unwrap().backward().unwrap();
    for (index, weight) in weights.iter().enumerate() {
        let (found, expected) = (values(found.get(weight).unwrap()), values(expected.get(weight).unwrap()));
        assert!(expected.iter().any(|g| *g != 0.0), "weight {index}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-6 + 1e-5 * expected.abs(), "weight {index}: {found} {expected}");
        }
    }
}

#[test]
fn nothing_is_recorded_outside_and_a_loss_from_outside_is_still_differentiated() {
    let weights = weights();
    let outside = loss(&weights);
    let ((), tape) = Tape::record(|| ());
    let found = tape.backward(outside, 1.0).unwrap();
    let expected = loss(&weights).backward().unwrap();
    for weight in &weights {
        assert_eq!(values(found.get(weight).unwrap()), values(expected.get(weight).unwrap()));
    }
}

/// The bits of each variable's gradient.
fn bits(weights: &[Var], run: impl FnOnce() -> Tensor) -> Vec<Option<Vec<u32>>> {
    let (loss, tape) = Tape::record(run);
    let store = tape.backward(loss, 0.5).unwrap();
    weights.iter().map(|weight| store.get(weight).map(|g| values(g).iter().map(|g| g.to_bits()).collect())).collect()
}

/// A block of a model over its input and three of the weights; they learn from outside and from inside of it.
fn block(x_ND: &Tensor, w: &[Var]) -> Result<Tensor, KernelError> {
    let h_ND = rms_norm(x_ND, &w[4], 1e-6)?;
    let gated_ND = swiglu(&linear(&h_ND, &w[2], Some(&w[5]))?, &linear(&h_ND, &w[3], None)?)?;
    add(x_ND, &add(&gated_ND, &linear(&gated_ND, &w[3], None)?)?)
}

#[test]
fn parts_that_are_recomputed_have_gradients_of_the_same_bits() {
    let weights = weights();
    let run = |again: bool| {
        let ids = Tensor::from_vec(vec![1u32, 2, 3, 3, 2, 0], 6, &Device::Cpu).unwrap();
        let mut x_ND = layer_norm(&embedding(&ids, &weights[0]).unwrap(), &weights[4], &weights[7], 1e-5).unwrap();
        for _ in 0..3 {
            let w = weights.clone();
            x_ND = match again {
                true => recompute(&x_ND, move |x_ND| block(x_ND, &w)).unwrap(),
                false => block(&x_ND, &w).unwrap(),
            };
        }
        let x_ND = add(&x_ND, &linear(&x_ND, &weights[6], None).unwrap()).unwrap();
        linear_cross_entropy(&x_ND, &weights[0], &[3, -100, 5, 0, 10, -100]).unwrap()
    };
    let kept = bits(&weights, || run(false));
    assert!(kept[2].as_ref().unwrap().iter().any(|bits| *bits != 0));
    assert_eq!(bits(&weights, || run(true)), kept);
    // Without a tape the part is computed as it stands.
    assert!(run(true).track_op());
}

#[test]
fn a_part_that_fails_on_the_way_back_says_why() {
    let weights = weights();
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let (loss, tape) = Tape::record(|| {
        let w = weights.clone();
        let fails_again = move |x_ND: &Tensor| match turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => linear(x_ND, &w[2], None),
            _ => linear(x_ND, &w[1].narrow(1, 0, 3).unwrap(), None),
        };
        let x_ND = recompute(weights[2].as_tensor(), fails_again).unwrap();
        linear_cross_entropy(&x_ND, &weights[0], &[1; WIDTH]).unwrap()
    });
    let error = tape.backward(loss, 1.0).unwrap_err();
    let told = std::error::Error::source(&error).unwrap().to_string();
    assert!(told.contains("`linear`: expected"), "{told}");
}

#[test]
fn a_recorded_tensor_that_candle_takes_further_is_refused() {
    let weights = weights();
    let (loss, tape) = Tape::record(|| {
        let x_ND = linear(&weights[2], &weights[3], None).unwrap();
        let x_ND = (x_ND * 2.0).unwrap();
        linear_cross_entropy(&x_ND, &weights[0], &[1; WIDTH]).unwrap()
    });
    let error = tape.backward(loss, 1.0).unwrap_err();
    let told = std::error::Error::source(&error).unwrap().to_string();
    assert!(told.contains("an op that the tape does not know"), "{told}");
}

#[test]
fn joined_columns_give_each_its_part_of_the_gradient() {
    let weights = weights();
    let run = || {
        let x_ND = concat(&linear(&weights[2], &weights[3], None).unwrap(), &gelu_tanh(&weights[6]).unwrap()).unwrap();
        assert_eq!(x_ND.dims(), [WIDTH, 2 * WIDTH]);
        let head = concat(&weights[0], &weights[0]).unwrap();
        linear_cross_entropy(&x_ND, &head, &[1; WIDTH]).unwrap()
    };
    let found = bits(&weights, run);
    let plain = run().affine(0.5, 0.0).unwrap().backward().unwrap();
    for index in [0, 2, 3, 6] {
        let (found, expected) = (found[index].as_ref().unwrap(), values(plain.get(&weights[index]).unwrap()));
        for (found, expected) in found.iter().map(|bits| f32::from_bits(*bits)).zip(expected) {
            assert!((found - expected).abs() <= 1e-6 + 1e-5 * expected.abs(), "weight {index}: {found} {expected}");
        }
    }
}
