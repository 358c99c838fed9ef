//! Rotary position embedding in the rotate-half convention of Hugging Face's Llama and Qwen2.

mod cpu;

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::error::{InOp, KernelError, Result, check_cpu, check_dims, check_f32};
use crate::tape::{self, Needs};

/// Llama 3's frequency scaling (`rope_scaling` of type `llama3` in a Hugging Face config).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// Low frequencies are divided by it.
    pub factor: f64,
    /// Wavelengths above `original_max_positions / low_freq_factor` are scaled fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_positions / high_freq_factor` are left alone.
    pub high_freq_factor: f64,
    /// Positions the model was first trained with.
    pub original_max_positions: usize,
}

/// Cosines and sines of every position, in f32: `[max_positions, head_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    half: usize,
    max_positions: usize,
}

impl RopeTable {
    /// Angles `position * theta^(-2 i / head_dim)`, scaled if `scaling` is given.
    ///
    /// # Errors
    /// If `head_dim` is odd or zero.
    pub fn new(head_dim: usize, theta: f64, scaling: Option<Llama3Scaling>, max_positions: usize) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(KernelError::Shape {
                op: "rope",
                expected: "an even `head_dim` above zero".to_owned(),
                found: head_dim.to_string(),
            });
        }
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| frequency(i, head_dim, theta, scaling)).collect();
        let mut cos = Vec::with_capacity(max_positions * half);
        let mut sin = Vec::with_capacity(max_positions * half);
        for position in 0..max_positions {
            for &frequency in &frequencies {
                // The angle is rounded to f32 as the reference does; its cosine is then taken exactly.
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        Ok(Self { cos: cos.into(), sin: sin.into(), half, max_positions })
    }

    /// The number of positions the table holds.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// The head width the table is for.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        2 * self.half
    }
}

/// One inverse wavelength, rounded to f32 step by step as the reference does.
fn frequency(index: usize, head_dim: usize, theta: f64, scaling: Option<Llama3Scaling>) -> f32 {
    let exponent = (2 * index) as f32 / head_dim as f32;
    let frequency = 1.0 / (theta.powf(f64::from(exponent)) as f32);
    let Some(scaling) = scaling else { return frequency };
    let wavelength = 2.0 * std::f64::consts::PI / f64::from(frequency);
    let original = scaling.original_max_positions as f64;
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        (f64::from(frequency) / scaling.factor) as f32
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        ((1.0 - smooth) * f64::from(frequency) / scaling.factor + smooth * f64::from(frequency)) as f32
    }
}

/// Rotates each head by the angle of its position: `x_BHTD`, `positions_BT` (u32).
///
/// # Errors
/// If the shapes do not fit, a position is beyond the table, or a tensor is not f32 (u32 for positions) on a device
/// this build has code for.
pub fn rope(x_BHTD: &Tensor, positions_BT: &Tensor, table: &RopeTable) -> Result<Tensor> {
    let Ok((batch, heads, length, width)) = x_BHTD.dims4() else {
        return Err(shape_error("`x` [batch, heads, positions, head_dim]".to_owned(), x_BHTD));
    };
    if width != table.head_dim() {
        return Err(shape_error(format!("heads of width {}, the table's", table.head_dim()), x_BHTD));
    }
    let positions = check_positions(x_BHTD, positions_BT, batch, length, table)?;
    let rotate = cpu::Rotate { positions, table: table.clone(), heads, heads_first: true };
    tape::contiguous(x_BHTD).and_then(|x| tape::apply1(&x, rotate, Needs::SHAPES)).in_op(OP)
}

/// [`rope`] for heads that lie side by side in a row, as a projection leaves them: `x_BTX` with `X = H * D`.
///
/// # Errors
/// As [`rope`].
pub fn rope_rows(x_BTX: &Tensor, positions_BT: &Tensor, table: &RopeTable) -> Result<Tensor> {
    let Ok((batch, length, width)) = x_BTX.dims3() else {
        return Err(shape_error("`x` [batch, positions, heads * head_dim]".to_owned(), x_BTX));
    };
    if !width.is_multiple_of(table.head_dim()) {
        return Err(shape_error(format!("rows of whole heads of width {}, the table's", table.head_dim()), x_BTX));
    }
    let positions = check_positions(x_BTX, positions_BT, batch, length, table)?;
    let heads = width / table.head_dim();
    let rotate = cpu::Rotate { positions, table: table.clone(), heads, heads_first: false };
    tape::contiguous(x_BTX).and_then(|x| tape::apply1(&x, rotate, Needs::SHAPES)).in_op(OP)
}

const OP: &str = "rope";

fn shape_error(expected: String, x: &Tensor) -> KernelError {
    KernelError::Shape { op: OP, expected, found: format!("{:?}", x.dims()) }
}

/// The positions as one row-major list, each within the table.
fn check_positions(
    x: &Tensor,
    positions_BT: &Tensor,
    batch: usize,
    length: usize,
    table: &RopeTable,
) -> Result<Vec<u32>> {
    check_f32(OP, "x", x)?;
    check_cpu(OP, "positions", positions_BT, DType::U32)?;
    check_dims(OP, "positions", positions_BT, &[batch, length])?;
    let positions = positions_BT.flatten_all().and_then(|t| t.to_vec1::<u32>()).in_op(OP)?;
    if let Some((index, &found)) = positions.iter().enumerate().find(|(_, p)| **p as usize >= table.max_positions) {
        let limit = table.max_positions;
        return Err(KernelError::Index { op: OP, name: "positions", limit, found: i64::from(found), index });
    }
    Ok(positions)
}
