//! What a tape holds in memory, counted by the allocator.
#![allow(clippy::unwrap_used, reason = "a test")]
#![expect(non_snake_case, reason = "shape suffixes")]
#![expect(unsafe_code, reason = "an allocator that counts is the only way to see what is held")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var};
use vela_kernels::{KernelError, Tape, add, gelu_tanh, linear, linear_cross_entropy, recompute, rms_norm, swiglu};

static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; only a number is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROWS: usize = 1024;
const WIDTH: usize = 64;
/// Bytes of one activation of that width.
const ONE: usize = 4 * ROWS * WIDTH;
const LAYERS: usize = 16;

fn var(dims: (usize, usize)) -> Var {
    Var::from_tensor(&Tensor::full(0.01f32, dims, &Device::Cpu).unwrap()).unwrap()
}

/// Bytes held now, beside those held at `start`, in activations.
fn held_since(start: usize) -> f64 {
    (LIVE.load(Ordering::Relaxed) as f64 - start as f64) / ONE as f64
}

/// One layer: norm, two linears with a gated product, residual. The linears are frozen unless `trained`.
fn layer(x_ND: &Tensor, weights: &[Tensor; 3]) -> Result<Tensor, KernelError> {
    let h_ND = rms_norm(x_ND, &weights[0], 1e-6)?;
    let h_ND = swiglu(&linear(&h_ND, &weights[1], None)?, &linear(&h_ND, &weights[2], None)?)?;
    add(x_ND, &gelu_tanh(&h_ND)?)
}

/// Activations held after the forward, and when the walk has come back to the first layer.
fn held_by_a_pass(trained: bool, again: bool) -> [f64; 2] {
    let first = var((ROWS, WIDTH));
    let norm = Tensor::ones(WIDTH, DType::F32, &Device::Cpu).unwrap();
    let square = || var((WIDTH, WIDTH));
    let weights = [norm, square().into_inner(), square().into_inner()];
    let weights = if trained { weights } else { weights.map(|weight| weight.detach()) };
    let head = var((8, WIDTH)).as_tensor().detach();
    let start = LIVE.load(Ordering::Relaxed);
    let seen: Arc<Mutex<Vec<f64>>> = Arc::default();
    let (loss, tape) = Tape::record(|| {
        let seen = seen.clone();
        let probe = move |x_ND: &Tensor| {
            seen.lock().unwrap().push(held_since(start));
            gelu_tanh(x_ND)
        };
        let mut x_ND = recompute(&first, probe).unwrap();
        for _ in 0..LAYERS {
            let weights = weights.clone();
            x_ND = match again {
                true => recompute(&x_ND, move |x_ND| layer(x_ND, &weights)).unwrap(),
                false => layer(&x_ND, &weights).unwrap(),
            };
        }
        linear_cross_entropy(&x_ND, &head, &[1; ROWS]).unwrap()
    });
    let after_forward = held_since(start);
    let store = tape.backward(loss, 1.0).unwrap();
    assert!(store.get(&first).is_some());
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2, "forward and on the way back");
    [after_forward, seen[1]]
}

/// One test, so that nothing else allocates.
#[test]
fn a_tape_holds_what_backwards_read_and_frees_it_on_the_way() {
    held_by_a_pass(true, false);
    for (trained, again, per_layer) in [
        // The norm's input, gate and up; norm and product are computed again, the activation and the sum are read by none.
        (true, false, 3.0),
        (false, false, 3.0),
        (true, true, 1.0),
        (false, true, 1.0),
    ] {
        let [after_forward, at_the_first] = held_by_a_pass(trained, again);
        let expected = per_layer * LAYERS as f64;
        // The loss holds the gradient of its input; a few small things stand beside the activations.
        assert!((after_forward - expected - 1.0).abs() < 1.0, "{trained} {again}: {after_forward}, not {expected}");
        assert!(at_the_first < 4.0, "{trained} {again}: {at_the_first} at the first layer, of {after_forward}");
    }
}
