//! Loss over held-out data.

use vela_dataset::Partition;
use vela_models::Vlm;
use vela_runtime::Shutdown;
use vela_types::{BatchSource, BatchSpec, Fingerprint, Position, ProcessorSummary};

use crate::data::{check_features, check_processor, next_batch, open_validation};
use crate::device_batch::{ImageInput, PixelTable, to_model_batch};
use crate::error::TrainError;
use crate::ranks::Ranks;
use crate::recipe::Recipe;
use crate::step::has_labels;

/// The held-out data of a run: opened once, before the first step, so that what is wrong with it is told then.
pub(crate) struct Validation {
    source: Box<dyn BatchSource>,
    images: ImageInput,
    image_tokens: u32,
}

impl Validation {
    /// Opens what the recipe names, if it names any; refuses data that do not belong to model and processor.
    pub(crate) fn open(
        recipe: &Recipe,
        spec: &BatchSpec,
        model: &Vlm,
        processor: &ProcessorSummary,
        part: Partition,
    ) -> Result<Option<Self>, TrainError> {
        let Some(place) = &recipe.settings().data.validation else { return Ok(None) };
        let open = || -> Result<Self, TrainError> {
            let source = open_validation(place, spec, recipe.limits(), part)?;
            let data = &source.info().processor;
            check_processor(processor, data)?;
            check_features(model, data)?;
            let images = ImageInput::of(data, &PixelTable::new(&processor.normalization));
            Ok(Self { images, image_tokens: spec.image_tokens, source })
        };
        let fault = |source| TrainError::Validation { place: place.clone(), source: Box::new(source) };
        open().map(Some).map_err(fault)
    }

    /// Of the data.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.source.info().fingerprint
    }

    /// Mean loss per label token over one pass of all ranks, in nats; `None` if a stop was asked for before its end.
    pub(crate) fn measure(
        &mut self,
        model: &Vlm,
        shutdown: &Shutdown,
        ranks: &mut Ranks<'_>,
    ) -> Result<Option<f64>, TrainError> {
        self.rewind()?;
        let loss = self.pass(model, shutdown, ranks)?;
        // Lets go of what was read ahead.
        self.rewind()?;
        Ok(loss)
    }

    fn rewind(&mut self) -> Result<(), TrainError> {
        let start = self.source.start_cursor();
        self.source.seek(&start).map_err(TrainError::Seek)
    }

    fn pass(&mut self, model: &Vlm, shutdown: &Shutdown, ranks: &mut Ranks<'_>) -> Result<Option<f64>, TrainError> {
        let (mut sum, mut num_labels) = (0.0, 0);
        for step in 0..self.source.steps_per_epoch() {
            if ranks.any("asking whether to stop a validation", shutdown.requested())? {
                return Ok(None);
            }
            let batch = next_batch(self.source.as_mut(), Position { epoch: 0, step, micro: 0 })?;
            if has_labels(&batch) {
                let inputs = to_model_batch(&batch, self.image_tokens, &self.images, model.device())?;
                sum += f64::from(model.loss(&inputs)?.to_scalar::<f32>()?);
            }
            num_labels += batch.step_label_tokens;
        }
        let [sum] = ranks.sum("the validation loss", [sum])?;
        Ok(Some(sum / num_labels.max(1) as f64))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use candle_core::Device;
    use vela_processor::{Processor, ProcessorOptions};
    use vela_types::{Batch, Cursor, DType, DatasetInfo, HostTensor, IGNORE_LABEL, SourceError};

    use super::*;
    use crate::collective::Single;

    /// A hundred batches without labels; somebody asks for a stop while the second is made.
    struct Interrupted {
        info: DatasetInfo,
        next: Position,
        asked: Arc<AtomicU64>,
        shutdown: Shutdown,
    }

    impl BatchSource for Interrupted {
        fn info(&self) -> &DatasetInfo {
            &self.info
        }

        fn seek(&mut self, cursor: &Cursor) -> Result<(), SourceError> {
            self.next = Position { epoch: cursor.epoch, step: cursor.step, micro: 0 };
            Ok(())
        }

        fn start_cursor(&self) -> Cursor {
            Cursor::start(Fingerprint([1; 32]), Fingerprint([2; 32]))
        }

        fn steps_per_epoch(&self) -> u64 {
            100
        }

        fn next_batch(&mut self) -> Result<Batch, SourceError> {
            if self.asked.fetch_add(1, Ordering::SeqCst) == 1 {
                self.shutdown.request();
            }
            let position = self.next;
            self.next.step += 1;
            let column = |value| HostTensor::from_i32(vec![1, 1], &[value]).expect("one value");
            Ok(Batch {
                position,
                num_micro: 1,
                input_ids: column(0),
                labels: column(IGNORE_LABEL),
                position_ids: column(0),
                document_ids: column(0),
                pixels: HostTensor::new(DType::U8, vec![0, 3, 1, 1], Default::default()).expect("none"),
                image_spans: Vec::new(),
                samples: Vec::new(),
                step_label_tokens: 1,
            })
        }
    }

    #[test]
    fn a_stop_is_looked_at_between_batches() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/train");
        let model = Vlm::load(&golden.join("model"), &|_| false, &Device::Cpu).expect("a model");
        let processor = Processor::load(&golden.join("processor"), &ProcessorOptions::default()).expect("whole");
        let processor = processor.summary().clone();
        let images = ImageInput::Pixels(PixelTable::new(&processor.normalization));
        let info = DatasetInfo {
            fingerprint: Fingerprint([1; 32]),
            num_samples: 100,
            num_images: 0,
            num_tokens: 100,
            processor,
        };
        let (asked, shutdown) = (Arc::new(AtomicU64::new(0)), Shutdown::new());
        let next = Position { epoch: 0, step: 0, micro: 0 };
        let source = Interrupted { info, next, asked: Arc::clone(&asked), shutdown: shutdown.clone() };
        let mut validation = Validation { source: Box::new(source), images, image_tokens: 4 };
        assert_eq!(validation.measure(&model, &shutdown, &mut Ranks::new(&mut Single)).expect("given up"), None);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert_eq!(
            validation.measure(&model, &Shutdown::new(), &mut Ranks::new(&mut Single)).expect("a whole pass"),
            Some(0.0)
        );
        assert_eq!(asked.load(Ordering::SeqCst), 102);
    }
}
