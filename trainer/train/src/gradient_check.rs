//! The first step's proof that exactly the parameters the recipe names are learning.

use candle_core::backprop::GradStore;
use vela_kernels::square_sum;
use vela_models::Vlm;

use crate::error::TrainError;
use crate::groups::Component;
use crate::optimizer::Gradients;

/// Names listed per fault; the rest is counted.
const MAX_NAMES: usize = 8;

/// Checks the first step: every trained parameter has a gradient that is not zero throughout, no frozen one has any.
/// Projector and tower wait for the first step with an image.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GradientCheck {
    done: bool,
    frozen_done: bool,
}

impl GradientCheck {
    /// Refuses a gradient for a frozen parameter: it would have been computed for nothing.
    pub(crate) fn check_frozen(&mut self, model: &Vlm, store: &GradStore) -> Result<(), TrainError> {
        if self.frozen_done {
            return Ok(());
        }
        let frozen = model.params().iter().filter(|(_, _, trained)| !trained);
        let found: Vec<&str> =
            frozen.filter(|(_, tensor, _)| store.get(tensor).is_some()).map(|param| param.0).collect();
        self.frozen_done = true;
        refuse([("frozen, yet with a gradient", found)])
    }

    /// Refuses a trained parameter whose gradient is absent or zero throughout. The gradients are finite.
    pub(crate) fn check_step(&mut self, model: &Vlm, gradients: &Gradients, images: bool) -> Result<(), TrainError> {
        if self.done {
            return Ok(());
        }
        let (mut missing, mut zero) = (Vec::new(), Vec::new());
        for (name, _) in model.params().trainable() {
            if !images && !learns_from_text(name) {
                continue;
            }
            match gradients.get(name).map(square_sum).transpose()? {
                None => missing.push(name),
                Some(0.0) if !is_blind(name) => zero.push(name),
                Some(_) => {}
            }
        }
        self.done = images;
        refuse([("trained, yet without a gradient", missing), ("zero throughout", zero)])
    }
}

/// Whether a parameter has a gradient without an image.
fn learns_from_text(name: &str) -> bool {
    name.starts_with("language_model.")
}

/// Softmax does not see a shift of all its inputs, so the bias of a key projection without rotary positions has a true
/// gradient of zero. So has an adapter's first matrix while its second is all zero, as it is at the start.
fn is_blind(name: &str) -> bool {
    let is_key_bias = Component::of(name) == Some(Component::VisionTower) && name.ends_with("k_proj.bias");
    is_key_bias || name.contains(".lora_A.")
}

fn refuse<const N: usize>(kinds: [(&str, Vec<&str>); N]) -> Result<(), TrainError> {
    let faults: Vec<String> =
        kinds.iter().filter(|(_, names)| !names.is_empty()).map(|(kind, names)| describe(kind, names)).collect();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(TrainError::Gradients { faults }),
    }
}

fn describe(kind: &str, names: &[&str]) -> String {
    let listed: Vec<String> = names.iter().take(MAX_NAMES).map(|name| format!("`{name}`")).collect();
    match names.len().checked_sub(MAX_NAMES) {
        Some(more) if more > 0 => format!("{kind}: {} and {more} more", listed.join(", ")),
        _ => format!("{kind}: {}", listed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Var};
    use vela_models::ModelPreset;

    use super::*;

    fn model() -> Vlm {
        let preset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/model/demo.toml");
        let config = ModelPreset::load(&preset).and_then(|preset| preset.config(64, 3)).expect("a right preset");
        Vlm::init(config, 1, &|name| name.starts_with("multi_modal_projector."), &Device::Cpu).expect("a model")
    }

    /// A gradient of `value` throughout for every trained parameter but those called `skipped`.
    fn gradients(model: &Vlm, skipped: &str, value: f64) -> Gradients {
        let mut gradients = Gradients::default();
        for (name, var) in model.params().trainable().filter(|(name, _)| *name != skipped) {
            gradients.add(name, var.ones_like().and_then(|ones| ones * value).expect("made")).expect("added");
        }
        gradients
    }

    fn fault(model: &Vlm, gradients: &Gradients) -> String {
        GradientCheck::default().check_step(model, gradients, true).expect_err("a fault").to_string()
    }

    #[test]
    fn missing_and_zero_gradients_are_told_by_name() {
        let model = model();
        let bias = "multi_modal_projector.linear_1.bias";
        let told = fault(&model, &gradients(&model, bias, 1.0));
        assert!(told.contains(&format!("trained, yet without a gradient: `{bias}`")), "{told}");
        let told = fault(&model, &gradients(&model, "", 0.0));
        assert!(told.contains("zero throughout") && told.contains(bias), "{told}");
        let whole = gradients(&model, "", 1e-3);
        assert!(GradientCheck::default().check_step(&model, &whole, true).is_ok());
    }

    #[test]
    fn projector_gradients_are_awaited_until_a_step_has_images() {
        let model = model();
        let mut check = GradientCheck::default();
        check.check_step(&model, &Gradients::default(), false).expect("no image yet");
        assert!(check.check_step(&model, &Gradients::default(), true).is_err());
    }

    #[test]
    fn a_gradient_computed_for_a_frozen_parameter_is_told_by_name() {
        let model = model();
        let name = "language_model.model.norm.weight";
        let frozen = model.params().get(name).expect("there").tensor();
        let var = Var::from_tensor(&frozen.ones_like().expect("made")).expect("a variable");
        let product = frozen.mul(var.as_tensor()).and_then(|product| product.sum_all()).expect("a sum");
        let store = product.backward().expect("candle's own backward keeps both sides");
        let told = GradientCheck::default().check_frozen(&model, &store).expect_err("a fault").to_string();
        assert!(told.contains(name) && told.contains("frozen"), "{told}");
    }
}
