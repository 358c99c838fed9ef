//! What training rests on: gradients where they belong, labels that do not cross documents, generation by cache.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use candle_core::Tensor;
use support::{
    DEVICE, IMAGE, batch, document, is_blind, pixels, preset, relative_error, small_config, values, with_image,
};
use vela_kernels::Tape;
use vela_models::{GenerateOptions, LanguageFamily, ModelBatch, ProjectorKind, Prompt, Recompute, VisionFamily, Vlm};

const FAMILIES: [LanguageFamily; 4] =
    [LanguageFamily::Qwen2, LanguageFamily::Llama, LanguageFamily::Qwen3, LanguageFamily::Qwen];

type Trainable = dyn Fn(&str) -> bool;

fn model(trainable: &Trainable) -> Vlm {
    Vlm::init(small_config(), 11, trainable, &DEVICE).unwrap()
}

fn two_rows() -> ModelBatch {
    let first = document(&with_image(&[1, 2], &[3, 4, 5, 6]), 3, 1);
    let second = document(&with_image(&[7], &[8, 9, 10, 11, 12]), 4, 1);
    batch(&[first, second], Some(pixels(2)))
}

/// Names of the trainable parameters whose gradient is finite and not all zero.
fn trained(model: &Vlm, batch: &ModelBatch) -> Vec<String> {
    let gradients = model.loss(batch).unwrap().backward().unwrap();
    let good = |name: &str, tensor: &Tensor| {
        let values = values(tensor);
        values.iter().all(|value| value.is_finite()) && (is_blind(name) || values.iter().any(|value| *value != 0.0))
    };
    let with_gradient = |(name, tensor, trains): (&str, &Tensor, bool)| {
        let gradient = gradients.get(tensor);
        assert_eq!(gradient.is_some(), trains, "{name}: trainable {trains}");
        gradient.filter(|gradient| good(name, gradient)).map(|_| name.to_owned())
    };
    model.params().iter().filter_map(with_gradient).collect()
}

#[test]
fn exactly_the_trainable_parameters_get_a_finite_nonzero_gradient() {
    let stage_1 = |name: &str| name.starts_with("multi_modal_projector.");
    let stage_2 = |name: &str| !name.starts_with("vision_tower.");
    for (trainable, name) in [(&stage_1 as &Trainable, "stage 1"), (&stage_2, "stage 2"), (&|_: &str| true, "full")] {
        let model = model(trainable);
        let expected: Vec<String> = model.params().trainable().map(|(name, _)| name.to_owned()).collect();
        assert!(!expected.is_empty());
        assert_eq!(trained(&model, &two_rows()), expected, "{name}");
    }
}

#[test]
fn every_projector_and_family_trains_in_full() {
    for projector in [ProjectorKind::Linear, ProjectorKind::Mlp2xGelu, ProjectorKind::LnMlp] {
        for vision in [VisionFamily::Clip, VisionFamily::ChineseClip, VisionFamily::Siglip] {
            for language in FAMILIES {
                let config = preset(vision, language, projector).config(80, IMAGE).unwrap();
                let model = Vlm::init(config, 2, &|_| true, &DEVICE).unwrap();
                let count = trained(&model, &two_rows()).len();
                assert_eq!(count, model.params().trainable().count(), "{projector:?} {vision:?} {language:?}");
            }
        }
    }
}

/// The bits of each gradient that a tape gives.
fn taped(model: &Vlm, batch: &ModelBatch) -> Vec<(String, Vec<u32>)> {
    let (loss, tape) = Tape::record(|| model.loss(batch).unwrap());
    let store = tape.backward(loss, 0.5).unwrap();
    let bits = |tensor: &Tensor| values(tensor).into_iter().map(f32::to_bits).collect();
    let with_bits = |(name, var): (&str, &candle_core::Var)| Some((name.to_owned(), bits(store.get(var)?)));
    model.params().trainable().filter_map(with_bits).collect()
}

#[test]
fn recomputed_blocks_give_the_bits_of_blocks_that_are_held() {
    for vision in [VisionFamily::Clip, VisionFamily::ChineseClip, VisionFamily::Siglip] {
        for language in FAMILIES {
            let config = preset(vision, language, ProjectorKind::LnMlp).config(80, IMAGE).unwrap();
            let mut model = Vlm::init(config, 2, &|_| true, &DEVICE).unwrap();
            let held = taped(&model, &two_rows());
            model.set_recompute(Recompute::Block);
            assert_eq!(held.len(), model.params().trainable().count(), "{vision:?} {language:?}");
            assert!(taped(&model, &two_rows()) == held, "{vision:?} {language:?}");
        }
    }
}

#[test]
fn weights_after_the_feature_layer_are_never_trainable() {
    let model = model(&|_| true);
    let frozen: Vec<&str> = model.params().iter().filter(|(_, _, trains)| !trains).map(|(name, ..)| name).collect();
    assert_eq!(frozen.len(), 16 + 2);
    let carried = |name: &str| name.contains("encoder.layers.2.") || name.contains("post_layernorm");
    assert!(frozen.iter().all(|name| carried(name)), "{frozen:?}");
}

#[test]
fn a_frozen_model_records_no_graph() {
    let model = model(&|_| false);
    assert!(!model.loss(&two_rows()).unwrap().track_op());
    assert!(!model.logits(&two_rows()).unwrap().track_op());
}

#[test]
fn a_frozen_tower_records_no_graph_under_a_trained_projector() {
    let model = model(&|name| name.starts_with("multi_modal_projector."));
    let features = model.tower().forward(&pixels(1)).unwrap();
    assert!(!features.track_op());
    assert!(model.projector().forward(&features).unwrap().track_op());
}

#[test]
fn a_step_in_place_is_seen_by_loss_and_by_generation() {
    let mut model = model(&|_| true);
    let (loss, logits) = (values(&model.loss(&two_rows()).unwrap()), values(&model.logits(&two_rows()).unwrap()));
    let name = "language_model.model.layers.0.mlp.up_proj.weight";
    let doubled = model.params().get(name).unwrap().tensor().affine(2.0, 0.0).unwrap().detach();
    model.params_mut().set(name, &doubled).unwrap();
    assert_ne!(loss, values(&model.loss(&two_rows()).unwrap()));
    assert_ne!(logits, values(&model.logits(&two_rows()).unwrap()));
}

#[test]
fn defect_15_packed_documents_do_not_see_one_another() {
    let model = model(&|_| true);
    let first = document(&with_image(&[1, 2], &[3, 4, 5, 6]), 3, 1);
    let second = document(&with_image(&[7], &[8, 9, 10, 11, 12]), 4, 2);
    let padding = vec![(0, -100, 0, 0); 3];
    let packed = batch(&[[first.clone(), second.clone(), padding].concat()], Some(pixels(2)));
    let images = pixels(2);
    let alone = |row: &[_], image| batch(&[row.to_vec()], Some(images.narrow(0, image, 1).unwrap()));
    let parts = [alone(&first, 0), alone(&second, 1)];
    let logits = model.logits(&packed).unwrap();
    let mut start = 0;
    for part in &parts {
        let expected = model.logits(part).unwrap();
        let length = expected.dim(1).unwrap();
        let error = relative_error(&logits.narrow(1, start, length).unwrap(), &expected, 1e-6);
        assert!(error < 1e-3, "document at {start}: {error}");
        start += length;
    }
    let scalar = |batch: &ModelBatch| model.loss(batch).unwrap().to_scalar::<f32>().unwrap();
    let (whole, sum) = (scalar(&packed), scalar(&parts[0]) + scalar(&parts[1]));
    assert!((whole / sum - 1.0).abs() < 1e-4, "packed {whole}, alone {sum}");
    assert_eq!(packed.num_labels().unwrap(), 3 + 4);
}

#[test]
fn the_first_token_of_a_row_or_document_is_never_predicted() {
    let first = document(&[1, 2, 3], 3, 1);
    let second = document(&[4, 5], 2, 2);
    let packed = batch(&[[first, second, vec![(0, 9, 0, 0)]].concat(), document(&[6; 6], 6, 1)], None);
    assert_eq!(packed.num_labels().unwrap(), 2 + 1 + 5);
}

/// Greedy answer by running the whole row anew for each token.
fn recomputed(model: &Vlm, prompt: &[u32], image: &Tensor, count: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let batch = batch(&[document(&ids, 0, 1)], Some(image.clone()));
        let last = model.logits(&batch).unwrap().narrow(1, ids.len() - 1, 1).unwrap().flatten_all().unwrap();
        ids.push(last.argmax(0).unwrap().to_scalar::<u32>().unwrap());
    }
    ids.split_off(prompt.len())
}

#[test]
fn cached_generation_equals_full_recomputation() {
    for family in FAMILIES {
        let config = preset(VisionFamily::Clip, family, ProjectorKind::Mlp2xGelu).config(80, IMAGE).unwrap();
        check_cached(&Vlm::init(config, 11, &|_| false, &DEVICE).unwrap());
    }
}

fn check_cached(model: &Vlm) {
    let options = GenerateOptions { max_new_tokens: 10, ..GenerateOptions::default() };
    for (index, prompt) in [with_image(&[1, 2], &[3]), with_image(&[5], &[6, 7, 8])].iter().enumerate() {
        let image = pixels(2).narrow(0, index, 1).unwrap();
        let answer = model.generate(prompt, Some(&image), &options).unwrap();
        assert_eq!(answer, recomputed(model, prompt, &image, 10));
    }
}

#[test]
fn prompts_answered_together_are_answered_as_alone() {
    let model = model(&|_| true);
    let images = pixels(4);
    let image: Vec<Tensor> = (0..4).map(|index| images.narrow(0, index, 1).unwrap()).collect();
    let ids = [vec![1, IMAGE, 3], vec![4, 5, 6, 7], with_image(&[9], &[3]), vec![8, IMAGE, 2], vec![IMAGE, 2]];
    let pixels = [Some(&image[0]), None, Some(&image[1]), Some(&image[2]), Some(&image[3])];
    let prompts: Vec<Prompt<'_>> = ids.iter().zip(pixels).map(|(ids, pixels)| Prompt { ids, pixels }).collect();
    let free = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    // A stop token that some answers reach and others do not.
    let stop = model.generate(&ids[0], pixels[0], &free).unwrap()[2];
    let options = GenerateOptions { stop_ids: vec![stop], max_rows: 2, ..free };
    let together = model.generate_batch(&prompts, &options).unwrap();
    for (prompt, answer) in prompts.iter().zip(&together) {
        assert_eq!(&model.generate(prompt.ids, prompt.pixels, &options).unwrap(), answer);
        assert!(!answer.contains(&stop));
    }
    assert!(together[0].len() <= 2);
}

#[test]
fn prompts_that_contradict_their_images_are_refused() {
    let model = model(&|_| false);
    let options = GenerateOptions::default();
    let error = |ids: &[u32], pixels: Option<&Tensor>| model.generate(ids, pixels, &options).unwrap_err().to_string();
    assert!(error(&[1, IMAGE, IMAGE], Some(&pixels(1))).contains("expected 1, one per image, or 9"));
    assert!(error(&[1, IMAGE], None).contains("image tokens of the prompt"));
    assert!(error(&[], None).contains("at least one token"));
    assert!(error(&[1; 128], None).contains("fewer than 128 tokens"));
    let wide = Tensor::zeros((1, 3, 28, 28), candle_core::DType::F32, &DEVICE).unwrap();
    assert!(error(&[1, IMAGE], Some(&wide)).contains("pixels: expected [N, 3, 14, 14]"));
}

#[test]
fn batches_that_contradict_themselves_are_refused() {
    let model = model(&|_| false);
    let error = |batch: &ModelBatch| model.loss(batch).unwrap_err().to_string();
    let mut short = two_rows();
    short.labels.pop();
    assert!(error(&short).contains("labels"));
    let fewer = ModelBatch { image_rows: vec![2, 3], ..two_rows() };
    assert!(error(&fewer).contains("image rows: expected 18"));
    assert!(error(&ModelBatch { pixels_NCHW: None, ..two_rows() }).contains("image rows: expected none"));
    let narrow =
        ModelBatch { positions_BT: Tensor::zeros((2, 3), candle_core::DType::U32, &DEVICE).unwrap(), ..two_rows() };
    assert!(error(&narrow).contains("positions"));
}

#[test]
fn equal_seeds_give_equal_weights_whatever_trains() {
    let (left, right) = (model(&|_| true), model(&|_| false));
    assert!(left.params().iter().zip(right.params().iter()).all(|(a, b)| values(a.1) == values(b.1)));
}
