//! Milliseconds of each op, forward and backward, and of a small decoder's training step, as one JSON object.
//! `tests/golden/kernels/bench_torch.py` prints the same keys for PyTorch.
#![expect(clippy::print_stdout, reason = "a measurement is printed")]

use std::time::Instant;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, Var};
use vela_kernels::{
    AdamWStep, AttentionMask, RopeTable, adamw_step, attention_rows, embedding, gelu_erf, gelu_tanh, layer_norm,
    linear, linear_cross_entropy, rms_norm, rope_rows, softmax, square_sum, swiglu,
};

const BATCH: usize = 64;
const LENGTH: usize = 80;
const WIDTH: usize = 96;
const HEAD: usize = 24;
const KEY_WIDTH: usize = 48;
const HIDDEN: usize = 256;
const VOCABULARY: usize = 800;
const LAYERS: usize = 4;
const REPEATS: usize = 15;

type Error = Box<dyn std::error::Error>;

/// Starts a backward with a given gradient.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

fn var(dims: &[usize]) -> Result<Var> {
    let scale = dims.last().map_or(1.0, |d| (*d as f32).powf(-0.5));
    Var::from_tensor(&Tensor::randn(0f32, scale, dims, &Device::Cpu)?)
}

/// Median milliseconds of forward and backward.
fn time(
    name: &str,
    op: &dyn Fn() -> std::result::Result<Tensor, vela_kernels::KernelError>,
) -> std::result::Result<(), Error> {
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        let start = Instant::now();
        let y = op()?;
        times.0.push(start.elapsed().as_secs_f64() * 1e3);
        let seeded = y.apply_op1(Seed(y.ones_like()?))?;
        let start = Instant::now();
        drop(seeded.backward()?);
        times.1.push(start.elapsed().as_secs_f64() * 1e3);
    }
    println!("  \"{name}\": {{\"forward_ms\": {:.3}, \"backward_ms\": {:.3}}},", median(times.0), median(times.1));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Layer {
    norms: [Var; 2],
    qkvo: [Var; 4],
    mlp: [Var; 3],
}

impl Layer {
    fn new() -> Result<Self> {
        let ones = || Var::from_tensor(&Tensor::ones(WIDTH, candle_core::DType::F32, &Device::Cpu)?);
        Ok(Self {
            norms: [ones()?, ones()?],
            qkvo: [var(&[WIDTH, WIDTH])?, var(&[KEY_WIDTH, WIDTH])?, var(&[KEY_WIDTH, WIDTH])?, var(&[WIDTH, WIDTH])?],
            mlp: [var(&[HIDDEN, WIDTH])?, var(&[HIDDEN, WIDTH])?, var(&[WIDTH, HIDDEN])?],
        })
    }

    fn forward(&self, x: &Tensor, positions: &Tensor, table: &RopeTable) -> std::result::Result<Tensor, Error> {
        let h = rms_norm(x, &self.norms[0], 1e-6)?;
        let q = rope_rows(&linear(&h, &self.qkvo[0], None)?, positions, table)?;
        let k = rope_rows(&linear(&h, &self.qkvo[1], None)?, positions, table)?;
        let v = linear(&h, &self.qkvo[2], None)?;
        let mask = AttentionMask::Causal { documents_BT: None, offset: 0 };
        let a = attention_rows(&q, &k, &v, HEAD, &mask, (HEAD as f32).powf(-0.5))?;
        let x = (x + linear(&a, &self.qkvo[3], None)?)?;
        let h = rms_norm(&x, &self.norms[1], 1e-6)?;
        let h = swiglu(&linear(&h, &self.mlp[0], None)?, &linear(&h, &self.mlp[1], None)?)?;
        Ok((x + linear(&h, &self.mlp[2], None)?)?)
    }

    fn vars(&self) -> impl Iterator<Item = &Var> {
        self.norms.iter().chain(&self.qkvo).chain(&self.mlp)
    }
}

fn labels() -> Vec<i32> {
    (0..BATCH * LENGTH).map(|i| if i % LENGTH >= LENGTH - 10 { (i * 7 % VOCABULARY) as i32 } else { -100 }).collect()
}

fn train_step() -> std::result::Result<(), Error> {
    let layers = (0..LAYERS).map(|_| Layer::new()).collect::<Result<Vec<_>>>()?;
    let (table, head) = (var(&[VOCABULARY, WIDTH])?, var(&[VOCABULARY, WIDTH])?);
    let vars: Vec<&Var> = layers.iter().flat_map(Layer::vars).chain([&table, &head]).collect();
    let mut moments: Vec<_> = vars.iter().map(|v| (vec![0f32; v.elem_count()], vec![0f32; v.elem_count()])).collect();
    let ids: Vec<u32> = (0..BATCH * LENGTH).map(|i| (i * 13 % VOCABULARY) as u32).collect();
    let ids = Tensor::from_vec(ids, (BATCH, LENGTH), &Device::Cpu)?;
    let (labels, positions, rope) = (labels(), positions()?, RopeTable::new(HEAD, 1e4, None, LENGTH)?);
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for step in 1..=REPEATS as u64 {
        let start = Instant::now();
        let mut x = embedding(&ids, &table)?;
        for layer in &layers {
            x = layer.forward(&x, &positions, &rope)?;
        }
        let loss = linear_cross_entropy(&x.flatten_to(1)?, &head, &labels)?;
        let forward = Instant::now();
        let grads = loss.backward()?;
        let backward = Instant::now();
        let mut norm = 0.0;
        for var in &vars {
            norm += square_sum(grads.get(var).ok_or("a variable without gradient")?)?;
        }
        let config = AdamWStep {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.01,
            step,
            grad_scale: 1.0 / norm.sqrt(),
        };
        for (var, (m, v)) in vars.iter().zip(&mut moments) {
            adamw_step(var, grads.get(var).ok_or("a variable without gradient")?, m, v, &config)?;
        }
        drop((loss, x, grads));
        for (times, span) in times.iter_mut().zip([forward - start, backward - forward, backward.elapsed()]) {
            times.push(span.as_secs_f64() * 1e3);
        }
    }
    let [forward, backward, update] = times.map(median);
    println!(
        "  \"train_step\": {{\"forward_ms\": {forward:.3}, \"backward_ms\": {backward:.3}, \"update_ms\": {update:.3}}}"
    );
    Ok(())
}

fn positions() -> Result<Tensor> {
    Tensor::arange(0u32, LENGTH as u32, &Device::Cpu)?.unsqueeze(0)?.broadcast_as((BATCH, LENGTH))?.contiguous()
}

fn main() -> std::result::Result<(), Error> {
    let x = var(&[BATCH, LENGTH, WIDTH])?;
    let (wide, wide2) = (var(&[BATCH, LENGTH, HIDDEN])?, var(&[BATCH, LENGTH, HIDDEN])?);
    let (square, up, down) = (var(&[WIDTH, WIDTH])?, var(&[HIDDEN, WIDTH])?, var(&[WIDTH, HIDDEN])?);
    let (gain, bias) = (var(&[WIDTH])?, var(&[WIDTH])?);
    let (k, v) = (var(&[BATCH, LENGTH, KEY_WIDTH])?, var(&[BATCH, LENGTH, KEY_WIDTH])?);
    let (positions, table) = (positions()?, RopeTable::new(HEAD, 1e4, None, LENGTH)?);
    let (rows, head, labels) = (var(&[BATCH * LENGTH, WIDTH])?, var(&[VOCABULARY, WIDTH])?, labels());
    let mask = AttentionMask::Causal { documents_BT: None, offset: 0 };
    let frozen = square.as_detached_tensor();
    println!("{{");
    time("linear_96_96_bias", &|| linear(&x, &square, Some(&bias)))?;
    time("linear_96_96_frozen", &|| linear(&x, &frozen, None))?;
    time("linear_96_256", &|| linear(&x, &up, None))?;
    time("linear_256_96", &|| linear(&wide, &down, None))?;
    time("rms_norm", &|| rms_norm(&x, &gain, 1e-6))?;
    time("layer_norm", &|| layer_norm(&x, &gain, &bias, 1e-5))?;
    time("softmax", &|| softmax(&x))?;
    time("gelu_erf", &|| gelu_erf(&wide))?;
    time("gelu_tanh", &|| gelu_tanh(&wide))?;
    time("swiglu", &|| swiglu(&wide, &wide2))?;
    time("rope", &|| rope_rows(&x, &positions, &table))?;
    time("attention_causal", &|| attention_rows(&x, &k, &v, HEAD, &mask, 0.2))?;
    time("attention_full", &|| attention_rows(&x, &k, &v, HEAD, &AttentionMask::Full, 0.2))?;
    time("linear_cross_entropy", &|| linear_cross_entropy(&rows, &head, &labels))?;
    train_step()?;
    println!("}}");
    Ok(())
}
