//! What the model takes for one forward pass.
//!
//! Shape suffixes: B rows, T columns, N images, C channels, H W image height and width.
#![expect(non_snake_case, reason = "shape suffixes")]

use candle_core::Tensor;

use crate::ModelError;

/// The label of a token that is not to be predicted.
pub const IGNORE_LABEL: i32 = vela_kernels::IGNORE_LABEL;

/// Rows of tokens, image tokens already expanded to what the tower gives.
#[derive(Clone, Debug)]
pub struct ModelBatch {
    /// Token ids, u32 `[B, T]`.
    pub ids_BT: Tensor,
    /// The label of each token, flat `[B * T]`: its id where it is to be predicted, `-100` elsewhere. Not shifted.
    pub labels: Vec<i32>,
    /// Position of each token within its document, u32 `[B, T]`.
    pub positions_BT: Tensor,
    /// Document of each token, u32 `[B, T]`, from 1; 0 for padding. Documents of a row do not see one another.
    pub documents_BT: Tensor,
    /// Normalised pixels, f32 `[N, C, H, W]`, or what the tower gave for them, f32 `[N, image tokens, feature width]`;
    /// `None` where the batch has no image.
    pub pixels_NCHW: Option<Tensor>,
    /// Flat index (row * T + column) of each image token, image after image.
    pub image_rows: Vec<u32>,
}

impl ModelBatch {
    /// (B, T); the other tensors must agree.
    pub(crate) fn check(&self) -> Result<(usize, usize), ModelError> {
        let (rows, columns) = self.ids_BT.dims2()?;
        for (what, tensor) in [("positions", &self.positions_BT), ("documents", &self.documents_BT)] {
            if tensor.dims() != [rows, columns] {
                return Err(ModelError::input(what, format!("[{rows}, {columns}]"), format!("{:?}", tensor.dims())));
            }
        }
        if self.labels.len() != rows * columns {
            return Err(ModelError::input("labels", rows * columns, self.labels.len()));
        }
        Ok((rows, columns))
    }

    /// Labels that the loss sums over: those of tokens that follow another of the same document in the same row.
    pub fn num_labels(&self) -> Result<usize, ModelError> {
        Ok(self.shifted_labels()?.iter().filter(|&&label| label != IGNORE_LABEL).count())
    }

    /// The label each token predicts: that of the next column, where both are of one document.
    pub(crate) fn shifted_labels(&self) -> Result<Vec<i32>, ModelError> {
        let (_, columns) = self.check()?;
        let documents: Vec<u32> = self.documents_BT.flatten_all()?.to_vec1()?;
        let next = |index: usize| {
            let last_column = (index + 1).is_multiple_of(columns);
            let crosses = last_column || documents[index] == 0 || documents[index] != documents[index + 1];
            if crosses { IGNORE_LABEL } else { self.labels[index + 1] }
        };
        Ok((0..self.labels.len()).map(next).collect())
    }
}
