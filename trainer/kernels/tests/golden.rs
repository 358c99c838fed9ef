//! Every op against PyTorch: outputs and input gradients in `tests/golden/kernels/golden.safetensors` (made by `make.py`
//! beside it).
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use vela_kernels::{
    AdamWStep, AttentionMask, Llama3Scaling, RopeTable, adamw_step, attention, attention_rows, clip_coefficient,
    embedding, gelu_erf, gelu_tanh, layer_norm, linear, linear_cross_entropy, quick_gelu, rms_norm, rope, rope_rows,
    silu, softmax, splice_rows, square_sum, swiglu,
};

type Op<'a> = &'a dyn Fn(&[Tensor]) -> vela_kernels::Result<Tensor>;

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/kernels/golden.safetensors");
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no golden tensor `{name}`")).clone()
    }

    /// Integers, whatever their stored width.
    fn integers(&self, name: &str) -> Tensor {
        self.get(name).to_dtype(DType::I64).unwrap().to_dtype(DType::U32).unwrap()
    }

    /// Runs `op` on the case's inputs as variables; output and each gradient must match.
    fn check(&self, case: &str, arguments: &[&str], op: Op<'_>) {
        let vars: Vec<Var> =
            arguments.iter().map(|a| Var::from_tensor(&self.get(&format!("{case}.in.{a}"))).unwrap()).collect();
        let inputs: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let out = op(&inputs).unwrap();
        close(case, &out, &self.get(&format!("{case}.out")));
        let seed = self.get(&format!("{case}.seed"));
        let grads = (out * seed).unwrap().sum_all().unwrap().backward().unwrap();
        for (argument, var) in arguments.iter().zip(&vars) {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{case}: no gradient of `{argument}`"));
            close(&format!("{case} grad {argument}"), grad, &self.get(&format!("{case}.grad.{argument}")));
        }
    }
}

/// Largest difference at most 1e-5 of the largest expected magnitude (plus 1e-6).
fn close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shape");
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let scale = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        assert!((f - e).abs() <= 1e-5 * scale + 1e-6, "{what}[{i}]: expected {e}, found {f} (scale {scale})");
    }
}

#[test]
fn activations_and_softmax_equal_pytorch() {
    let golden = Golden::load();
    golden.check("gelu_erf", &["x"], &|t| gelu_erf(&t[0]));
    golden.check("gelu_tanh", &["x"], &|t| gelu_tanh(&t[0]));
    golden.check("quick_gelu", &["x"], &|t| quick_gelu(&t[0]));
    golden.check("silu", &["x"], &|t| silu(&t[0]));
    golden.check("swiglu", &["gate", "up"], &|t| swiglu(&t[0], &t[1]));
    golden.check("softmax", &["x"], &|t| softmax(&t[0]));
}

#[test]
fn norms_equal_pytorch() {
    let golden = Golden::load();
    for case in ["rms_norm", "rms_norm_rows"] {
        golden.check(case, &["x", "w"], &|t| rms_norm(&t[0], &t[1], 1e-6));
    }
    golden.check("layer_norm", &["x", "w", "b"], &|t| layer_norm(&t[0], &t[1], &t[2], 1e-5));
}

#[test]
fn linear_equals_pytorch_with_and_without_bias_for_many_rows_and_for_one() {
    let golden = Golden::load();
    golden.check("linear", &["input", "weight"], &|t| linear(&t[0], &t[1], None));
    for case in ["linear_bias", "linear_rows", "linear_one_row"] {
        golden.check(case, &["input", "weight", "bias"], &|t| linear(&t[0], &t[1], Some(&t[2])));
    }
}

#[test]
fn rope_equals_transformers_in_both_layouts() {
    let golden = Golden::load();
    let scaling =
        Llama3Scaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };
    for (case, theta, scaling) in [("rope", 10000.0, None), ("rope_llama3", 500_000.0, Some(scaling))] {
        let table = RopeTable::new(8, theta, scaling, 512).unwrap();
        let positions = golden.integers(&format!("{case}.in.positions"));
        golden.check(case, &["x"], &|t| rope(&t[0], &positions, &table));
        golden.check(case, &["x"], &|t| {
            let rows = t[0].transpose(1, 2).unwrap().flatten_from(2).unwrap();
            let turned = rope_rows(&rows, &positions, &table)?;
            Ok(turned.reshape((2, 5, 3, 8)).unwrap().transpose(1, 2).unwrap())
        });
    }
}

/// `[B, H, T, D]` as rows of heads, and back.
fn as_rows(t: &Tensor) -> Tensor {
    t.transpose(1, 2).unwrap().flatten_from(2).unwrap()
}

#[test]
fn attention_equals_pytorch_in_both_layouts() {
    let golden = Golden::load();
    let documents = golden.integers("attention_documents.in.documents");
    let cases = [
        ("attention_full", AttentionMask::Full),
        ("attention_causal", AttentionMask::Causal { documents_BT: None, offset: 0 }),
        ("attention_offset", AttentionMask::Causal { documents_BT: None, offset: 7 }),
        ("attention_documents", AttentionMask::Causal { documents_BT: Some(documents), offset: 0 }),
    ];
    for (case, mask) in cases {
        golden.check(case, &["q", "k", "v"], &|t| attention(&t[0], &t[1], &t[2], &mask, 0.3));
        let (batch, heads, queries, width) = golden.get(&format!("{case}.in.q")).dims4().unwrap();
        golden.check(case, &["q", "k", "v"], &|t| {
            let rows = attention_rows(&as_rows(&t[0]), &as_rows(&t[1]), &as_rows(&t[2]), width, &mask, 0.3)?;
            Ok(rows.reshape((batch, queries, heads, width)).unwrap().transpose(1, 2).unwrap())
        });
    }
}

#[test]
fn row_ops_and_loss_equal_pytorch() {
    let golden = Golden::load();
    let ids = golden.integers("embedding.in.ids");
    golden.check("embedding", &["table"], &|t| embedding(&ids, &t[0]));
    let rows = golden.integers("splice_rows.in.rows").to_vec1::<u32>().unwrap();
    golden.check("splice_rows", &["base", "values"], &|t| splice_rows(&t[0], &rows, &t[1]));
    let labels = golden.get("linear_cross_entropy.in.labels").to_dtype(DType::I64).unwrap();
    let labels: Vec<i32> = labels.to_vec1::<i64>().unwrap().into_iter().map(|l| i32::try_from(l).unwrap()).collect();
    golden.check("linear_cross_entropy", &["hidden", "weight"], &|t| linear_cross_entropy(&t[0], &t[1], &labels));
}

#[test]
fn twenty_clipped_adamw_steps_equal_pytorch() {
    let golden = Golden::load();
    let param = Var::from_tensor(&golden.get("adamw.in.param")).unwrap();
    let (grads, norms) = (golden.get("adamw.in.grads"), golden.get("adamw.norms").to_vec1::<f32>().unwrap());
    let (mut m, mut v) = (vec![0f32; 35], vec![0f32; 35]);
    for (i, expected) in norms.into_iter().enumerate() {
        let grad = grads.get(i).unwrap();
        let norm = square_sum(&grad).unwrap().sqrt();
        assert!((norm - f64::from(expected)).abs() < 1e-5, "norm at step {i}: expected {expected}, found {norm}");
        let step = AdamWStep {
            lr: 0.02,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step: i as u64 + 1,
            grad_scale: clip_coefficient(norm, 5.0),
        };
        adamw_step(&param, &grad, &mut m, &mut v, &step).unwrap();
    }
    close("adamw", &param, &golden.get("adamw.out"));
}
