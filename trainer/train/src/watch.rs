//! What a run shows while it goes on: the progress line, TensorBoard, Prometheus, and how hard the machine works.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use vela_models::Vlm;
use vela_runtime::{MetricsServer, Progress};

use crate::error::TrainError;
use crate::flops::{FlopCount, measure_peak};
use crate::memory::in_mib;
use crate::metrics::StepMetrics;
use crate::recipe::RawLogging;
use crate::run_folder::RunFolder;
use crate::stopwatch::Speed;
use crate::tensorboard::EventFile;

/// The most that the machine can do, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peak {
    /// Operations per second, of all ranks.
    pub(crate) flops: f64,
    /// By a product at the start of the run; otherwise the recipe says so.
    pub(crate) is_measured: bool,
}

impl Peak {
    /// As the recipe says, or measured on this machine.
    pub(crate) fn of(settings: &RawLogging, model: &Vlm) -> Result<Self, TrainError> {
        match settings.peak_tflops {
            Some(peak) => Ok(Self { flops: peak * 1e12, is_measured: false }),
            None => Ok(Self { flops: measure_peak(model.device())?, is_measured: true }),
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let how = match self.is_measured {
            true => "measured by a product of 768 x 768 at the start, or by steps that did more",
            false => "as the recipe says",
        };
        format!("{:.3} TFLOP/s, {how}", self.flops / 1e12)
    }
}

/// The places that are told of each metrics line.
pub(crate) struct Watch {
    flops: FlopCount,
    pub(crate) peak: Peak,
    events: Option<EventFile>,
    server: Option<MetricsServer>,
}

impl Watch {
    /// Opens what the recipe asks for, for a run that goes on with one-based step `first_step`.
    pub(crate) fn open(
        settings: &RawLogging,
        count: (Peak, FlopCount),
        folder: &RunFolder,
        first_step: u64,
    ) -> Result<Self, TrainError> {
        let (peak, flops) = count;
        let events = || EventFile::create(&folder.path_of("tensorboard"), first_step);
        let serve = |address: &String| {
            let fault = |source| TrainError::Metrics { address: address.clone(), source };
            let listen: SocketAddr = address.parse().expect("the recipe's check has parsed it");
            MetricsServer::start(listen).map_err(fault)
        };
        Ok(Self {
            flops,
            peak,
            events: settings.tensorboard.then(events).transpose()?,
            server: settings.metrics.as_ref().map(serve).transpose()?,
        })
    }

    /// Says where the metrics are and what utilisation means here.
    pub(crate) fn introduce(&self, progress: &Progress) {
        progress.note(&format!("utilisation (MFU) is counted against {}", self.peak.describe()));
        if let Some(server) = &self.server {
            progress.note(&format!("metrics at http://{}/metrics", server.address()));
        }
    }

    /// The utilisation of a stretch of steps. Steps that do more than the measured peak show that it was measured while others
    /// were at the machine: it is theirs from then on.
    pub(crate) fn utilisation(&mut self, speed: &Speed) -> f64 {
        let reached = self.flops.of(&speed.size) / speed.seconds;
        if self.peak.is_measured {
            self.peak.flops = self.peak.flops.max(reached);
        }
        reached / self.peak.flops
    }

    /// Tells everyone of a line.
    pub(crate) fn tell(&mut self, line: &StepMetrics, progress: &Progress) -> Result<(), TrainError> {
        progress.set_message(&in_words(line));
        if self.server.is_some() {
            expose(line);
        }
        self.events.as_mut().map_or(Ok(()), |events| events.push(line))
    }
}

/// `loss 2.31, 812 tokens/s, 6.2 samples/s, MFU 41 %, data wait 0.3 %, 1.2 GiB`
fn in_words(line: &StepMetrics) -> String {
    let mut text = format!(
        "loss {:.4}, {:.0} tokens/s, {:.1} samples/s",
        line.loss, line.tokens_per_second, line.samples_per_second
    );
    if let Some(mfu) = line.mfu {
        text += &format!(", MFU {:.1} %", 100.0 * mfu);
    }
    text += &format!(", data wait {:.1} %", 100.0 * line.data_wait);
    if let Some(bytes) = line.memory_bytes {
        text += &format!(", {}", in_mib(bytes));
    }
    text
}

fn expose(line: &StepMetrics) {
    metrics::gauge!("vela_trainer_step").set(line.step as f64);
    metrics::gauge!("vela_trainer_epoch").set(line.epoch);
    metrics::gauge!("vela_trainer_loss").set(line.loss);
    metrics::gauge!("vela_trainer_gradient_norm").set(line.grad_norm);
    metrics::gauge!("vela_trainer_samples_per_second").set(line.samples_per_second);
    metrics::gauge!("vela_trainer_tokens_per_second").set(line.tokens_per_second);
    metrics::gauge!("vela_trainer_data_wait_ratio").set(line.data_wait);
    for (group, rate) in &line.lr {
        metrics::gauge!("vela_trainer_learning_rate", "group" => group.clone()).set(*rate);
    }
    if let Some(loss) = line.validation_loss {
        metrics::gauge!("vela_trainer_validation_loss").set(loss);
    }
    if let Some(mfu) = line.mfu {
        metrics::gauge!("vela_trainer_mfu_ratio").set(mfu);
    }
    if let Some(bytes) = line.memory_bytes {
        metrics::gauge!("vela_trainer_memory_bytes").set(bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flops::StepSize;

    #[test]
    fn steps_raise_a_measured_peak_and_no_other() {
        let speed = |tokens: u64| Speed {
            samples: 0.0,
            tokens: 0.0,
            label_tokens: 0.0,
            images: 0.0,
            data_wait: 0.0,
            size: StepSize { tokens, ..StepSize::default() },
            seconds: 2.0,
        };
        for (is_measured, expected) in [(true, [0.5, 1.0, 0.25]), (false, [0.5, 2.0, 0.5])] {
            let flops = FlopCount::for_test(1.0);
            let mut watch = Watch { flops, peak: Peak { flops: 10.0, is_measured }, events: None, server: None };
            assert_eq!([10, 40, 10].map(|tokens| watch.utilisation(&speed(tokens))), expected);
        }
    }

    #[test]
    fn the_line_says_what_is_known() {
        let line = StepMetrics { loss: 2.31, tokens_per_second: 811.6, data_wait: 0.003, ..StepMetrics::default() };
        assert_eq!(in_words(&line), "loss 2.3100, 812 tokens/s, 0.0 samples/s, data wait 0.3 %");
        let more = StepMetrics { mfu: Some(0.412), memory_bytes: Some(3 << 29), ..line };
        assert!(in_words(&more).contains("MFU 41.2 %") && in_words(&more).ends_with("1.5 GiB"), "{}", in_words(&more));
    }
}
