//! The tape gives the gradients of candle's own backward.
#![allow(clippy::unwrap_used, reason = "a test")]
#![expect(non_snake_case, reason = "shape suffixes")]

use candle_core::{Device, Tensor, Var};
use vela_kernels::{
    AttentionMask, Tape, add, attention_rows, embedding, gelu_tanh, layer_norm, linear, linear_cross_entropy, reshape,
    rms_norm, splice_rows, swiglu,
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
    let found = tape.backward(&recorded, 0.25).unwrap();
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
    let found = tape.backward(&outside, 1.0).unwrap();
    let expected = outside.backward().unwrap();
    for weight in &weights {
        assert_eq!(values(found.get(weight).unwrap()), values(expected.get(weight).unwrap()));
    }
}
