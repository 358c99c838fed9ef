//! The registry of a model's parameters, in name order.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::ModelError;
use crate::init::{Init, InitConfig};

/// What the config says about one parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParamSpec {
    pub(crate) shape: Vec<usize>,
    pub(crate) init: Init,
    /// The loss depends on it. Weights that are only carried along (blocks after the feature layer, a pooling head) are
    /// never trainable.
    pub(crate) used: bool,
}

/// The parameters a config asks for, by name.
pub(crate) struct Specs<'a> {
    pub(crate) init: &'a InitConfig,
    map: BTreeMap<String, ParamSpec>,
    used: bool,
}

impl<'a> Specs<'a> {
    pub(crate) fn new(init: &'a InitConfig) -> Self {
        Self { init, map: BTreeMap::new(), used: true }
    }

    /// Adds a parameter.
    pub(crate) fn add(&mut self, name: String, shape: &[usize], init: Init) {
        self.map.insert(name, ParamSpec { shape: shape.to_vec(), init, used: self.used });
    }

    /// What is added inside `body` is carried along and never computed.
    pub(crate) fn unused(&mut self, body: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.used, false);
        body(self);
        self.used = before;
    }

    pub(crate) fn into_map(self) -> BTreeMap<String, ParamSpec> {
        self.map
    }
}

/// One parameter: f32, and a variable if it trains.
#[derive(Clone, Debug)]
pub struct Param {
    tensor: Tensor,
    var: Option<Var>,
}

impl Param {
    /// Takes `tensor` as a parameter; a trainable one becomes a variable (one copy).
    pub(crate) fn new(tensor: Tensor, trainable: bool) -> Result<Self, ModelError> {
        if !trainable {
            return Ok(Self { tensor, var: None });
        }
        let var = Var::from_tensor(&tensor)?;
        Ok(Self { tensor: var.as_tensor().clone(), var: Some(var) })
    }

    /// The tensor; a clone of it shares the values.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The variable of a trainable parameter.
    pub fn var(&self) -> Option<&Var> {
        self.var.as_ref()
    }
}

/// A model's parameters under the names of a `LlavaForConditionalGeneration` file, always visited in name order.
///
/// Names start with the component: `vision_tower.vision_model.`, `multi_modal_projector.`, `language_model.model.`
/// (`language_model.transformer.` of the first Qwen) or `language_model.lm_head.` (absent when tied). Trainable
/// parameters are variables, frozen ones plain tensors, for which candle records no operation.
#[derive(Clone, Debug)]
pub struct Params {
    entries: BTreeMap<String, Param>,
}

impl Params {
    pub(crate) fn new(entries: BTreeMap<String, Param>) -> Self {
        Self { entries }
    }

    /// Draws every parameter of `specs` from (seed, name).
    pub(crate) fn init(
        specs: &BTreeMap<String, ParamSpec>,
        seed: u64,
        trainable: &dyn Fn(&str) -> bool,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut entries = BTreeMap::new();
        for (name, spec) in specs {
            let values = spec.init.draw(seed, name, spec.shape.iter().product());
            let tensor = Tensor::from_vec(values, spec.shape.as_slice(), device)?;
            entries.insert(name.clone(), Param::new(tensor, spec.used && trainable(name))?);
        }
        Ok(Self { entries })
    }

    /// (name, tensor, trainable), in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor, bool)> {
        self.entries.iter().map(|(name, param)| (name.as_str(), &param.tensor, param.var.is_some()))
    }

    /// (name, variable) of the trainable parameters, in name order.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().filter_map(|(name, param)| param.var.as_ref().map(|var| (name.as_str(), var)))
    }

    /// The parameter `name`.
    pub fn get(&self, name: &str) -> Result<&Param, ModelError> {
        self.entries.get(name).ok_or_else(|| ModelError::UnknownParam { name: name.to_owned() })
    }

    /// Number of values, all and trainable.
    pub fn num_values(&self) -> (usize, usize) {
        self.iter().fold((0, 0), |(all, trained), (_, tensor, trainable)| {
            let count = tensor.elem_count();
            (all + count, trained + if trainable { count } else { 0 })
        })
    }

    /// Overwrites the values of `name` in place; every user of the parameter sees them.
    pub fn set(&mut self, name: &str, values: &Tensor) -> Result<(), ModelError> {
        let param = self.entries.get(name).ok_or_else(|| ModelError::UnknownParam { name: name.to_owned() })?;
        let (shape, dtype) = (param.tensor.dims(), param.tensor.dtype());
        if values.dims() != shape || values.dtype() != dtype {
            let found = format!("{:?} {:?}", values.dtype(), values.dims());
            return Err(ModelError::input("parameter values", format!("{dtype:?} {shape:?}"), found));
        }
        match &param.var {
            Some(var) => Ok(var.set(values)?),
            None => Err(ModelError::input("parameter values", format!("`{name}` to be trainable"), "a frozen one")),
        }
    }

    /// The same values, none of them a variable: nothing computed from them records a graph.
    pub(crate) fn detached(&self) -> Self {
        let detach = |param: &Param| Param { tensor: param.tensor.detach(), var: None };
        Self { entries: self.entries.iter().map(|(name, param)| (name.clone(), detach(param))).collect() }
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        self.get(name).map(|param| param.tensor.clone())
    }
}

/// The element type of every parameter.
pub(crate) const PARAM_DTYPE: DType = DType::F32;
