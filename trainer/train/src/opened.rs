//! What a rank needs for its steps, opened and found to belong together.

use std::path::Path;

use vela_dataset::{MicroExtents, Partition};
use vela_processor::Processor;

use crate::checkpoint::TrainerState;
use crate::data::{OpenSource, check_features, check_max_length, check_model, check_processor, open_source};
use crate::device_batch::{ImageInput, PixelTable};
use crate::error::TrainError;
use crate::gradient_check::GradientCheck;
use crate::guard::Guard;
use crate::open::{open_model, open_optimizer, open_processor, open_saved, open_state};
use crate::recipe::Recipe;
use crate::step::Stepper;
use crate::validation::Validation;

/// Model, data and state of a run on one rank; nothing of it writes.
pub(crate) struct Opened {
    pub(crate) stepper: Stepper,
    pub(crate) processor: Processor,
    /// Of the processor, for answers.
    pub(crate) pixels: PixelTable,
    pub(crate) validation: Option<Validation>,
    pub(crate) largest: MicroExtents,
    pub(crate) state: TrainerState,
    pub(crate) steps_per_epoch: u64,
}

impl Opened {
    /// Opens what the recipe names, or what `checkpoint` holds, for a rank that takes `part` of every global batch.
    pub(crate) fn open(recipe: &Recipe, checkpoint: Option<&Path>, part: Partition) -> Result<Self, TrainError> {
        let saved = checkpoint.map(open_saved).transpose()?;
        // A checkpoint is whole without the folder that the run began with.
        let processor = match (checkpoint, &recipe.settings().model.processor) {
            (Some(checkpoint), None) => open_processor(checkpoint)?,
            _ => open_processor(recipe.processor())?,
        };
        let model = open_model(recipe, checkpoint, processor.summary())?;
        check_model(model.config(), processor.summary())?;
        check_max_length(model.config(), recipe.settings().batch.max_length)?;
        let spec = recipe.batch_spec(model.image_tokens() as u32);
        let OpenSource { mut source, largest } = open_source(recipe.data(), spec.clone(), recipe.limits(), part)?;
        check_processor(processor.summary(), &source.info().processor)?;
        check_features(&model, &source.info().processor)?;
        let validation = Validation::open(recipe, &spec, &model, processor.summary(), part)?;
        let steps_per_epoch = source.steps_per_epoch();
        let schedule = recipe.schedule(recipe.total_steps(steps_per_epoch)?)?;
        let mut optimizer = open_optimizer(recipe, &model);
        let state = open_state(recipe, &processor, source.as_mut(), &mut optimizer, saved)?;
        let pixels = PixelTable::new(&processor.summary().normalization);
        let images = ImageInput::of(&source.info().processor, &pixels);
        let guard = Guard::new(&recipe.settings().guard, state.skipped);
        let gradient_check = GradientCheck::default();
        let seed = recipe.seed();
        let stepper = Stepper { model, optimizer, schedule, source, images, gradient_check, guard, seed };
        Ok(Self { stepper, processor, pixels, validation, largest, state, steps_per_epoch })
    }
}
