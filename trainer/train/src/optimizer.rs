//! AdamW over parameter groups, its state, and the gradients it consumes.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use vela_kernels::{AdamWStep, adamw_step, add_assign, clip_coefficient, square_sum};

use crate::error::TrainError;
use crate::parameter_groups::ParameterGroups;
use crate::recipe::RawOptimizer;

/// The gradients of one optimizer step by parameter name, summed over its micro-batches.
#[derive(Default)]
pub(crate) struct Gradients {
    by_name: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// Adds one micro-batch's gradient of a parameter, whose first one is kept and added to. Sums run in micro-batch order.
    pub(crate) fn add(&mut self, name: &str, gradient: Tensor) -> Result<(), TrainError> {
        match self.by_name.get(name) {
            Some(sum) => add_assign(sum, &gradient.contiguous()?)?,
            None => {
                self.by_name.insert(name.to_owned(), gradient);
            }
        }
        Ok(())
    }

    /// Replaces the gradient of a parameter.
    pub(crate) fn put(&mut self, name: &str, gradient: Tensor) {
        self.by_name.insert(name.to_owned(), gradient);
    }

    /// The gradient of a parameter, if the loss depends on it.
    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name)
    }

    /// L2 norm over all gradients, accumulated in f64 in name order.
    pub(crate) fn norm(&self) -> Result<f64, TrainError> {
        let mut total = 0.0f64;
        for gradient in self.by_name.values() {
            total += square_sum(gradient)?;
        }
        Ok(total.sqrt())
    }

    /// The first parameter by name whose gradient is not finite throughout, and what its sum of squares is.
    pub(crate) fn first_non_finite(&self) -> Result<Option<(&str, f64)>, TrainError> {
        for (name, gradient) in &self.by_name {
            let sum = square_sum(gradient)?;
            if !sum.is_finite() {
                return Ok(Some((name, sum)));
            }
        }
        Ok(None)
    }
}

/// One trained parameter with its two running moments (f32, row-major).
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) var: Var,
    pub(crate) exp_avg: Vec<f32>,
    pub(crate) exp_avg_sq: Vec<f32>,
    /// Updates made so far: what the moments' bias is corrected by, as PyTorch's `state['step']`.
    pub(crate) steps: u64,
    /// Number of its parameter group.
    group: usize,
    weight_decay: f64,
}

/// AdamW with decoupled weight decay (Loshchilov and Hutter 2019, in the form of `torch.optim.AdamW`). Each parameter group
/// has its own learning rate and decay; within it, tensors with fewer than two axes (norms, biases) are not decayed.
pub(crate) struct Optimizer {
    slots: Vec<Slot>,
    settings: RawOptimizer,
    groups: ParameterGroups,
}

impl Optimizer {
    /// Zero moments for the parameters given, each with the number of its group, kept in the order given.
    pub(crate) fn new(
        trained: impl Iterator<Item = (String, Var, usize)>,
        settings: RawOptimizer,
        groups: ParameterGroups,
    ) -> Self {
        let slot = |(name, var, group): (String, Var, usize)| {
            let zeros = vec![0.0; var.elem_count()];
            let weight_decay = if var.rank() >= 2 { groups.get(group).weight_decay } else { 0.0 };
            Slot { exp_avg: zeros.clone(), exp_avg_sq: zeros, steps: 0, name, var, group, weight_decay }
        };
        Self { slots: trained.map(slot).collect(), settings, groups }
    }

    /// The trained parameters in order.
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The trained parameters, for a checkpoint to put their moments back.
    pub(crate) fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }

    /// One update. `step` is one-based; `factor` is the schedule's; `norm` the gradients' norm, for clipping. A parameter
    /// without a gradient (no image in the step) keeps its weights and moments, as in PyTorch.
    pub(crate) fn step(&mut self, gradients: &Gradients, factor: f64, norm: f64) -> Result<(), TrainError> {
        let grad_scale = match self.settings.clip_norm {
            0.0 => 1.0,
            clip_norm => clip_coefficient(norm, clip_norm),
        };
        let [beta1, beta2] = self.settings.betas;
        for slot in &mut self.slots {
            let Some(gradient) = gradients.get(&slot.name) else { continue };
            let lr = self.groups.get(slot.group).lr * factor;
            let eps = self.settings.eps;
            slot.steps += 1;
            let (weight_decay, step) = (slot.weight_decay, slot.steps);
            let numbers = AdamWStep { lr, beta1, beta2, eps, weight_decay, step, grad_scale };
            adamw_step(&slot.var, gradient, &mut slot.exp_avg, &mut slot.exp_avg_sq, &numbers)
                .map_err(TrainError::Update)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::Value;

    use super::*;
    use crate::groups::Component;

    fn groups(lr: f64, weight_decay: f64) -> ParameterGroups {
        ParameterGroups::for_test(&[(Component::Projector, lr)], weight_decay)
    }

    fn floats(value: &Value) -> Vec<f32> {
        value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number") as f32).collect()
    }

    fn parameter(name: &str, values: Vec<f32>, shape: &[usize]) -> (String, Var, usize) {
        (name.to_owned(), Var::from_vec(values, shape, &Device::Cpu).expect("fits"), 0)
    }

    fn values(slot: &Slot) -> Vec<f32> {
        slot.var.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32")
    }

    #[test]
    fn ten_clipped_steps_equal_torch() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/train/adamw.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("committed")).expect("JSON");
        let matrix = golden["start"][0].as_array().expect("rows").iter().flat_map(floats).collect();
        let shapes: [&[usize]; 2] = [&[3, 4], &[5]];
        let trained = [parameter("a", matrix, shapes[0]), parameter("b", floats(&golden["start"][1]), shapes[1])];
        let clip_norm = golden["clip_norm"].as_f64().expect("a number");
        let settings = RawOptimizer { betas: [0.9, 0.98], eps: 1e-8, weight_decay: 0.1, clip_norm };
        let mut optimizer = Optimizer::new(trained.into_iter(), settings, groups(1.0, 0.1));
        for expected in golden["steps"].as_array().expect("steps") {
            let mut gradients = Gradients::default();
            for (index, name) in ["a", "b"].into_iter().enumerate() {
                let gradient = Tensor::from_vec(floats(&expected["gradients"][index]), shapes[index], &Device::Cpu);
                gradients.add(name, gradient.expect("fits")).expect("added");
            }
            let norm = gradients.norm().expect("finite");
            assert!((norm - expected["norm"].as_f64().expect("a number")).abs() < 1e-5 * norm);
            optimizer.step(&gradients, expected["lr"].as_f64().expect("a number"), norm).expect("stepped");
            for (slot, expected) in optimizer.slots().iter().zip(expected["parameters"].as_array().expect("two")) {
                for (found, expected) in values(slot).iter().zip(floats(expected)) {
                    assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} {expected}");
                }
            }
        }
    }

    #[test]
    fn defect_10_a_learning_rate_of_a_millionth_moves_a_weight() {
        let settings = RawOptimizer { clip_norm: 0.0, ..RawOptimizer::default() };
        let trained = [parameter("a", vec![0.5, -0.5], &[2])];
        let mut optimizer = Optimizer::new(trained.into_iter(), settings, groups(1e-6, 0.0));
        let mut gradients = Gradients::default();
        gradients.add("a", Tensor::new(&[0.3f32, 0.3], &Device::Cpu).expect("made")).expect("added");
        optimizer.step(&gradients, 1.0, 1.0).expect("stepped");
        // The first step of Adam moves by the learning rate; in bf16 both weights would stay where they are.
        for (found, expected) in values(&optimizer.slots()[0]).into_iter().zip([0.499_999, -0.500_001]) {
            assert!((found - expected).abs() < 6e-8, "{found} {expected}");
        }
    }

    #[test]
    fn the_first_gradient_of_a_parameter_moves_it_by_the_learning_rate_however_late_it_comes() {
        let trained = [parameter("a", vec![1.0], &[1]), parameter("b", vec![1.0], &[1])];
        let settings = RawOptimizer { clip_norm: 0.0, weight_decay: 0.0, ..RawOptimizer::default() };
        let mut optimizer = Optimizer::new(trained.into_iter(), settings, groups(0.1, 0.0));
        for names in [&["a"][..], &["a"], &["a", "b"]] {
            let mut gradients = Gradients::default();
            for name in names {
                gradients.add(name, Tensor::new(&[0.5f32], &Device::Cpu).expect("made")).expect("added");
            }
            optimizer.step(&gradients, 1.0, 1.0).expect("stepped");
        }
        assert!((values(&optimizer.slots()[1])[0] - 0.9).abs() < 1e-6);
        assert_eq!(optimizer.slots().iter().map(|slot| slot.steps).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn micro_batches_sum_and_a_parameter_without_gradient_stays() {
        let trained = [parameter("a", vec![1.0], &[1]), parameter("b", vec![1.0], &[1])];
        let mut optimizer = Optimizer::new(trained.into_iter(), RawOptimizer::default(), groups(0.1, 0.0));
        let mut gradients = Gradients::default();
        for gradient in [3.0f32, 1.0] {
            gradients.add("a", Tensor::new(&[gradient], &Device::Cpu).expect("made")).expect("added");
        }
        assert_eq!(gradients.norm().expect("finite"), 4.0);
        optimizer.step(&gradients, 1.0, 4.0).expect("stepped");
        assert_ne!(values(&optimizer.slots()[0]), [1.0]);
        assert_eq!((values(&optimizer.slots()[1]), optimizer.slots()[1].exp_avg.clone()), (vec![1.0], vec![0.0]));
    }
}
