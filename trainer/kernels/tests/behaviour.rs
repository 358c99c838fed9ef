//! Gradients against finite differences, odd inputs, frozen weights, refusals, and the same bits for any thread count.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use candle_core::{DType, Device, Tensor, Var};
use vela_kernels::{
    AdamWStep, AttentionMask, IGNORE_LABEL, KernelError, RopeTable, adamw_step, attention, attention_rows, dropout,
    embedding, gelu_erf, gelu_tanh, layer_norm, linear, linear_cross_entropy, quick_gelu, rms_norm, rope, scale, silu,
    softmax, splice_rows, square_sum, swiglu,
};

type Op<'a> = (&'static str, Vec<Tensor>, Box<dyn Fn(&[Tensor]) -> vela_kernels::Result<Tensor> + 'a>);

/// Values in -1..1 from a counter, the same on every run.
fn noise(dims: &[usize], seed: u64) -> Tensor {
    let count: usize = dims.iter().product();
    let values: Vec<f32> = (0..count as u64)
        .map(|i| {
            let mut x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
            x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((x >> 40) as f32) / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn ids(ids: &[u32], dims: &[usize]) -> Tensor {
    Tensor::from_slice(ids, dims, &Device::Cpu).unwrap()
}

/// Every op with small odd shapes.
fn ops() -> Vec<Op<'static>> {
    let documents = ids(&[1, 1, 2, 2, 2, 4, 4, 4, 0, 0], &[2, 5]);
    let causal = AttentionMask::Causal { documents_BT: Some(documents), offset: 0 };
    let decoding = AttentionMask::Causal { documents_BT: None, offset: 3 };
    let table = RopeTable::new(6, 100.0, None, 9).unwrap();
    let positions = ids(&[0, 8, 3, 1, 2, 7], &[2, 3]);
    let tokens = ids(&[2, 0, 2], &[3]);
    let labels = [IGNORE_LABEL, 4, 0, IGNORE_LABEL, 4];
    let heads = [2, 4, 5, 3];
    vec![
        ("gelu_erf", vec![noise(&[3, 5], 1)], Box::new(|t| gelu_erf(&t[0]))),
        ("gelu_tanh", vec![noise(&[3, 5], 2)], Box::new(|t| gelu_tanh(&t[0]))),
        ("quick_gelu", vec![noise(&[3, 5], 3)], Box::new(|t| quick_gelu(&t[0]))),
        ("silu", vec![noise(&[3, 5], 4)], Box::new(|t| silu(&t[0]))),
        ("swiglu", vec![noise(&[3, 5], 5), noise(&[3, 5], 6)], Box::new(|t| swiglu(&t[0], &t[1]))),
        ("scale", vec![noise(&[3, 5], 28)], Box::new(|t| scale(&t[0], -2.5))),
        ("dropout", vec![noise(&[2, 3, 5], 29)], Box::new(|t| dropout(&t[0], 0.4, &(0..6).collect(), 1))),
        ("softmax", vec![noise(&[2, 3, 7], 7)], Box::new(|t| softmax(&t[0]))),
        ("rms_norm", vec![noise(&[3, 7], 8), noise(&[7], 9)], Box::new(|t| rms_norm(&t[0], &t[1], 1e-6))),
        (
            "layer_norm",
            vec![noise(&[3, 7], 10), noise(&[7], 11), noise(&[7], 12)],
            Box::new(|t| layer_norm(&t[0], &t[1], &t[2], 1e-5)),
        ),
        (
            "linear",
            vec![noise(&[2, 3, 5], 13), noise(&[4, 5], 14), noise(&[4], 15)],
            Box::new(|t| linear(&t[0], &t[1], Some(&t[2]))),
        ),
        ("rope", vec![noise(&[2, 4, 3, 6], 16)], Box::new(move |t| rope(&t[0], &positions, &table))),
        (
            "attention documents",
            vec![noise(&heads, 17), noise(&[2, 2, 5, 3], 18), noise(&[2, 2, 5, 3], 19)],
            Box::new(move |t| attention(&t[0], &t[1], &t[2], &causal, 0.7)),
        ),
        (
            "attention decoding",
            vec![noise(&[1, 2, 2, 3], 20), noise(&[1, 1, 5, 3], 21), noise(&[1, 1, 5, 3], 22)],
            Box::new(move |t| attention(&t[0], &t[1], &t[2], &decoding, 0.7)),
        ),
        ("embedding", vec![noise(&[4, 3], 23)], Box::new(move |t| embedding(&tokens, &t[0]))),
        ("splice_rows", vec![noise(&[4, 3], 24), noise(&[2, 3], 25)], Box::new(|t| splice_rows(&t[0], &[3, 1], &t[1]))),
        (
            "linear_cross_entropy",
            vec![noise(&[5, 3], 26), noise(&[6, 3], 27)],
            Box::new(move |t| linear_cross_entropy(&t[0], &t[1], &labels)),
        ),
    ]
}

/// Sum of the output weighted by fixed noise, in f64.
fn objective(op: &Op<'_>, inputs: &[Tensor]) -> f64 {
    let out = (op.2)(inputs).unwrap();
    let weights = values(&noise(out.dims(), 99));
    values(&out).iter().zip(weights).map(|(o, w)| f64::from(*o) * f64::from(w)).sum()
}

fn gradients(op: &Op<'_>, inputs: &[Tensor]) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let out = (op.2)(&tracked).unwrap();
    let weights = noise(out.dims(), 99);
    let grads = (out * weights).unwrap().sum_all().unwrap().backward().unwrap();
    vars.iter().map(|v| grads.get(v).unwrap_or_else(|| panic!("{}: no gradient", op.0)).clone()).collect()
}

#[test]
fn every_gradient_equals_central_differences() {
    const STEP: f32 = 1.0 / 128.0;
    for op in ops() {
        let grads = gradients(&op, &op.1);
        for (argument, grad) in grads.iter().enumerate() {
            let dims = op.1[argument].dims().to_vec();
            let base = values(&op.1[argument]);
            for (i, found) in values(grad).into_iter().enumerate() {
                let at = |shift: f32| {
                    let mut moved = base.clone();
                    moved[i] += shift;
                    let mut inputs = op.1.clone();
                    inputs[argument] = Tensor::from_vec(moved, dims.as_slice(), &Device::Cpu).unwrap();
                    objective(&op, &inputs)
                };
                // Richardson's combination removes the quadratic error of one central difference.
                let (fine, coarse) = (at(STEP) - at(-STEP), at(2.0 * STEP) - at(-2.0 * STEP));
                let expected = (8.0 * fine - coarse) / (12.0 * f64::from(STEP));
                assert!(
                    (f64::from(found) - expected).abs() < 1e-3 * (1.0 + expected.abs()),
                    "{} argument {argument}[{i}]: expected {expected}, found {found}",
                    op.0
                );
            }
        }
    }
}

#[test]
fn strided_views_give_the_same_output_and_gradients() {
    for op in ops() {
        let strided: Vec<Tensor> =
            op.1.iter()
                .map(|t| match t.rank() {
                    1 => Tensor::stack(&[t, t], 1).unwrap().narrow(1, 0, 1).unwrap().squeeze(1).unwrap(),
                    rank => t
                        .transpose(rank - 2, rank - 1)
                        .unwrap()
                        .contiguous()
                        .unwrap()
                        .transpose(rank - 2, rank - 1)
                        .unwrap(),
                })
                .collect();
        assert_eq!(values(&(op.2)(&op.1).unwrap()), values(&(op.2)(&strided).unwrap()), "{}", op.0);
        let views = |tensors: &[Tensor]| (op.2)(tensors).unwrap().sum_all().unwrap();
        let vars: Vec<Var> = strided.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        assert!(values(&views(&tracked))[0].is_finite(), "{}", op.0);
    }
}

#[test]
fn a_frozen_argument_gets_no_gradient_and_the_others_keep_theirs() {
    for op in ops().into_iter().filter(|op| op.1.len() > 1) {
        let full = gradients(&op, &op.1);
        for frozen in 0..op.1.len() {
            let vars: Vec<Var> = op.1.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
            let inputs: Vec<Tensor> = (0..vars.len())
                .map(|i| if i == frozen { vars[i].as_detached_tensor() } else { vars[i].as_tensor().clone() })
                .collect();
            let out = (op.2)(&inputs).unwrap();
            let weights = noise(out.dims(), 99);
            let grads = (out * weights).unwrap().sum_all().unwrap().backward().unwrap();
            for (i, var) in vars.iter().enumerate() {
                match grads.get_id(inputs[i].id()) {
                    None => assert_eq!(i, frozen, "{}: argument {i} lost its gradient", op.0),
                    Some(grad) => {
                        assert_ne!(i, frozen, "{}: frozen argument {i} got a gradient", op.0);
                        assert_eq!(values(grad), values(&full[i]), "{} argument {i}, {:?}", op.0, var.dims());
                    }
                }
            }
        }
    }
}

#[test]
fn a_tracked_intermediate_passes_its_gradient_on() {
    let base = Var::from_tensor(&noise(&[4, 5], 30)).unwrap();
    let w = (base.as_tensor() * 2.0).unwrap();
    let x = noise(&[3, 5], 31);
    let grads = linear(&x, &w, None).unwrap().sum_all().unwrap().backward().unwrap();
    let expected = values(&x.sum(0).unwrap());
    for row in values(grads.get(&base).unwrap()).chunks(5) {
        assert!(row.iter().zip(&expected).all(|(g, e)| (g - 2.0 * e).abs() < 1e-5), "{row:?} {expected:?}");
    }
}

#[test]
fn no_labelled_row_gives_zero_loss_and_zero_gradients() {
    let hidden = Var::from_tensor(&noise(&[3, 4], 32)).unwrap();
    let weight = Var::from_tensor(&noise(&[6, 4], 33)).unwrap();
    let loss = linear_cross_entropy(&hidden, &weight, &[IGNORE_LABEL; 3]).unwrap();
    assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
    let grads = loss.backward().unwrap();
    for var in [&hidden, &weight] {
        assert!(values(grads.get(var).unwrap()).iter().all(|g| *g == 0.0));
    }
}

#[test]
fn padding_attends_to_nothing_and_stays_finite() {
    let documents = ids(&[0, 0, 0, 7, 7, 0], &[2, 3]);
    let mask = AttentionMask::Causal { documents_BT: Some(documents), offset: 0 };
    let [q, k, v] = [1, 2, 3].map(|seed| Var::from_tensor(&(noise(&[2, 2, 3, 4], seed) * 50.0).unwrap()).unwrap());
    let out = attention(&q, &k, &v, &mask, 1.0).unwrap();
    let rows: Vec<Vec<f32>> = values(&out).chunks(4).map(<[f32]>::to_vec).collect();
    let grads = out.sum_all().unwrap().backward().unwrap();
    for padding in [0, 1, 2, 3, 4, 5, 8, 11] {
        assert_eq!(rows[padding], [0.0; 4], "row {padding}");
        for var in [&q, &k, &v] {
            assert_eq!(values(grads.get(var).unwrap())[padding * 4..][..4], [0.0; 4], "row {padding}");
        }
    }
    assert_eq!(rows[6], values(&v)[24..28], "the first token of a document sees itself alone");
}

#[test]
fn a_token_sees_no_other_document_and_no_later_token() {
    let mask = AttentionMask::Causal { documents_BT: Some(ids(&[1, 1, 2, 2], &[1, 4])), offset: 0 };
    let (q, k, v) = (noise(&[1, 4, 6], 41), noise(&[1, 4, 6], 42), noise(&[1, 4, 6], 43));
    let before = values(&attention_rows(&q, &k, &v, 3, &mask, 1.0).unwrap());
    let shift = Tensor::from_slice(&[0f32, 5.0, 0.0, 0.0], (1, 4, 1), &Device::Cpu).unwrap();
    let moved = |t: &Tensor| t.broadcast_add(&shift).unwrap();
    let after = values(&attention_rows(&q, &moved(&k), &moved(&v), 3, &mask, 1.0).unwrap());
    let changed: Vec<usize> = (0..4).filter(|i| before[i * 6..][..6] != after[i * 6..][..6]).collect();
    assert_eq!(changed, [1]);
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    let x = noise(&[2, 3], 50);
    let shape = |r: vela_kernels::Result<Tensor>| matches!(r.unwrap_err(), KernelError::Shape { .. });
    assert!(shape(linear(&x, &noise(&[4, 5], 1), None)));
    assert!(shape(linear(&x, &noise(&[4, 3], 1), Some(&noise(&[3], 2)))));
    assert!(shape(rms_norm(&x, &noise(&[2], 1), 1e-6)));
    assert!(shape(swiglu(&x, &noise(&[3, 2], 1))));
    assert!(shape(splice_rows(&x, &[1, 1], &noise(&[2, 3], 1))));
    assert!(shape(linear_cross_entropy(&x, &noise(&[5, 3], 1), &[0])));
    let heads = noise(&[1, 3, 2, 4], 1);
    assert!(shape(attention(&heads, &noise(&[1, 2, 2, 4], 1), &noise(&[1, 2, 2, 4], 1), &AttentionMask::Full, 1.0)));
    let causal = AttentionMask::Causal { documents_BT: None, offset: 1 };
    assert!(shape(attention(&heads, &heads, &heads, &causal, 1.0)));
    let message = linear_cross_entropy(&x, &noise(&[5, 3], 1), &[0, 5]).unwrap_err().to_string();
    assert_eq!(message, "`linear_cross_entropy`: expected each of `labels` below 5, found 5 at index 1");
    let negative = linear_cross_entropy(&x, &noise(&[5, 3], 1), &[0, -7]);
    assert!(matches!(negative.unwrap_err(), KernelError::Index { found: -7, .. }));
    assert!(matches!(embedding(&ids(&[9], &[1]), &x).unwrap_err(), KernelError::Index { found: 9, limit: 2, .. }));
    let table = RopeTable::new(4, 1e4, None, 3).unwrap();
    let late = rope(&heads, &ids(&[0, 3], &[1, 2]), &table);
    assert!(matches!(late.unwrap_err(), KernelError::Index { found: 3, limit: 3, .. }));
    assert!(matches!(RopeTable::new(5, 1e4, None, 3).unwrap_err(), KernelError::Shape { .. }));
    let wide = silu(&x.to_dtype(DType::F64).unwrap());
    assert!(matches!(wide.unwrap_err(), KernelError::Dtype { found: DType::F64, .. }));
    let param = Var::from_tensor(&x).unwrap();
    let step = AdamWStep { lr: 0.1, beta1: 0.9, beta2: 0.9, eps: 1e-8, weight_decay: 0.0, step: 1, grad_scale: 1.0 };
    let short = adamw_step(&param, &x, &mut [0.0; 5], &mut [0.0; 6], &step);
    assert!(matches!(short.unwrap_err(), KernelError::Shape { .. }));
}

/// Outputs and gradients of every op at sizes that split into several tasks.
fn large_results() -> Vec<Vec<f32>> {
    let mask = AttentionMask::Causal { documents_BT: None, offset: 0 };
    let labels: Vec<i32> = (0..3000).map(|i| if i % 3 == 0 { IGNORE_LABEL } else { i % 300 }).collect();
    let tokens: Vec<u32> = (0..6000).map(|i| i * i % 97).collect();
    let tokens = ids(&tokens, &[6000]);
    let large: Vec<Op<'_>> = vec![
        ("gelu_erf", vec![noise(&[3000, 24], 1)], Box::new(|t| gelu_erf(&t[0]))),
        ("swiglu", vec![noise(&[3000, 24], 2), noise(&[3000, 24], 3)], Box::new(|t| swiglu(&t[0], &t[1]))),
        ("softmax", vec![noise(&[3000, 24], 4)], Box::new(|t| softmax(&t[0]))),
        ("rms_norm", vec![noise(&[3000, 24], 5), noise(&[24], 6)], Box::new(|t| rms_norm(&t[0], &t[1], 1e-6))),
        (
            "linear",
            vec![noise(&[3000, 24], 7), noise(&[40, 24], 8), noise(&[40], 9)],
            Box::new(|t| linear(&t[0], &t[1], Some(&t[2]))),
        ),
        (
            "attention",
            vec![noise(&[5, 4, 90, 8], 10), noise(&[5, 2, 90, 8], 11), noise(&[5, 2, 90, 8], 12)],
            Box::new(move |t| attention(&t[0], &t[1], &t[2], &mask, 0.3)),
        ),
        ("embedding", vec![noise(&[97, 48], 13)], Box::new(move |t| embedding(&tokens, &t[0]))),
        (
            "linear_cross_entropy",
            vec![noise(&[3000, 24], 14), noise(&[300, 24], 15)],
            Box::new(move |t| linear_cross_entropy(&t[0], &t[1], &labels)),
        ),
    ];
    let mut results = Vec::new();
    for op in &large {
        results.push(values(&(op.2)(&op.1).unwrap()));
        results.extend(gradients(op, &op.1).iter().map(values));
    }
    let big = noise(&[300, 300], 16);
    results.push(vec![f32::from_bits(square_sum(&big).unwrap().to_bits() as u32)]);
    let param = Var::from_tensor(&big).unwrap();
    let (mut m, mut v) = (vec![0f32; 90_000], vec![0f32; 90_000]);
    let step = AdamWStep { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };
    adamw_step(&param, &noise(&[300, 300], 17), &mut m, &mut v, &step).unwrap();
    results.extend([values(&param), m, v]);
    results
}

#[test]
fn one_thread_and_three_give_the_same_bits() {
    let with = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(large_results);
    let (one, three) = (with(1), with(3));
    for (i, (one, three)) in one.iter().zip(&three).enumerate() {
        let differs = one.iter().zip(three).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differs, None, "result {i}");
    }
}
