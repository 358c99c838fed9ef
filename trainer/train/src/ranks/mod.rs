//! What makes several processes one run: the same start, sums over all of them, one decision.

mod buckets;
mod identity;
mod share;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vela_dataset::Partition;
use vela_models::Vlm;

use crate::collective::Collective;
use crate::error::TrainError;
use crate::optimizer::Gradients;
use crate::step::StepReport;
use identity::{Account, first_difference, trained_weights};

pub(crate) use identity::account_of;
use share::StepShare;

/// The ranks of a run, as one of them sees them. A run of one process never waits and never copies.
pub(crate) struct Ranks<'a> {
    collective: &'a mut dyn Collective,
}

/// What rank 0 decided about the start.
#[derive(Serialize, Deserialize)]
enum Decision {
    From(Option<PathBuf>),
    Refused(Refusal),
}

/// An error as the other ranks hear of it.
#[derive(Serialize, Deserialize)]
pub(super) struct Refusal {
    fault: String,
    usage: bool,
}

impl Refusal {
    fn of(fault: &TrainError) -> Self {
        let causes = std::iter::successors(std::error::Error::source(fault), |cause| cause.source());
        let text = causes.fold(fault.to_string(), |text, cause| format!("{text}: {cause}"));
        Self { fault: text, usage: fault.is_usage() }
    }

    fn at(self, rank: usize) -> TrainError {
        TrainError::OtherRank { rank, fault: self.fault, usage: self.usage }
    }
}

impl<'a> Ranks<'a> {
    pub(crate) fn new(collective: &'a mut dyn Collective) -> Self {
        Self { collective }
    }

    /// Whether this process writes what the run leaves: rank 0.
    pub(crate) fn leads(&self) -> bool {
        self.collective.rank() == 0
    }

    pub(crate) fn world(&self) -> usize {
        self.collective.world()
    }

    fn is_alone(&self) -> bool {
        self.collective.world() == 1
    }

    /// This rank's part of every global batch.
    pub(crate) fn partition(&self) -> Partition {
        Partition { rank: self.collective.rank() as u32, world: self.collective.world() as u32 }
    }

    /// The checkpoint to start from, which rank 0 finds by `find`: the others hear of it, and of a refusal.
    pub(crate) fn start_from(
        &mut self,
        find: impl FnOnce() -> Result<Option<PathBuf>, TrainError>,
    ) -> Result<Option<PathBuf>, TrainError> {
        if self.is_alone() {
            return find();
        }
        self.collective.announce("choosing the checkpoint to start from");
        let found = if self.leads() { Some(find()) } else { None };
        let mut bytes = match &found {
            None => Vec::new(),
            Some(Ok(path)) => to_json(&Decision::From(path.clone())),
            Some(Err(fault)) => to_json(&Decision::Refused(Refusal::of(fault))),
        };
        self.collective.broadcast(&mut bytes)?;
        match (found, from_json(&bytes)) {
            (Some(found), _) => found,
            (None, Decision::From(path)) => Ok(path),
            (None, Decision::Refused(refusal)) => Err(refusal.at(0)),
        }
    }

    /// Goes on if every rank has opened the run and all hold the same; `account` tells what this one holds.
    ///
    /// # Errors
    /// This rank's own; else [`TrainError::OtherRank`] for the first that failed, or [`TrainError::RanksDiffer`], on all ranks.
    pub(crate) fn agree<T>(
        &mut self,
        opened: Result<T, TrainError>,
        account: impl FnOnce(&T) -> Result<Account, TrainError>,
    ) -> Result<T, TrainError> {
        if self.is_alone() {
            return opened;
        }
        self.collective.announce("comparing what the ranks have opened");
        let told = opened.and_then(|opened| account(&opened).map(|account| (opened, account)));
        let said = told.as_ref().map(|(_, account)| account).map_err(Refusal::of);
        let answers = self.collective.all_gather(&to_json(&said))?;
        let (opened, _) = told?;
        let mut accounts = Vec::with_capacity(answers.len());
        for (rank, bytes) in answers.iter().enumerate() {
            match from_json::<Result<Account, Refusal>>(bytes) {
                Ok(account) => accounts.push(account),
                Err(refusal) => return Err(refusal.at(rank)),
            }
        }
        first_difference(&accounts).map_or(Ok(opened), Err)
    }

    /// Refuses to go on with trained weights that are no longer those of the other ranks, bit for bit.
    pub(crate) fn check_weights(&mut self, step: u64, model: &Vlm) -> Result<(), TrainError> {
        if self.is_alone() {
            return Ok(());
        }
        self.collective.announce(&format!("step {step}: comparing the weights"));
        let answers = self.collective.all_gather(trained_weights(model)?.as_bytes())?;
        match answers.iter().position(|answer| *answer != answers[0]) {
            None => Ok(()),
            Some(rank) => Err(TrainError::Drifted { step, rank }),
        }
    }

    /// Makes this rank's share of a step the whole step: losses, counts and gradients summed over the ranks, in their order.
    pub(crate) fn sum_step(
        &mut self,
        step: u64,
        model: &Vlm,
        gradients: &mut Gradients,
        report: &mut StepReport,
    ) -> Result<(), TrainError> {
        if self.is_alone() {
            return Ok(());
        }
        self.collective.announce(&format!("step {step}: losses"));
        let has = model.params().trainable().map(|(name, _)| gradients.get(name).is_some());
        let answers = self.collective.all_gather(&StepShare::of(report, has.collect()).to_bytes())?;
        let whole = StepShare::sum(&answers);
        whole.put_into(report);
        let parameters: Vec<_> = model.params().trainable().collect();
        let found = parameters.into_iter().zip(&whole.has_gradient).filter(|(_, has)| **has);
        buckets::sum_gradients(
            self.collective,
            step,
            &found.map(|(parameter, _)| parameter).collect::<Vec<_>>(),
            gradients,
        )
    }

    /// Texts of all ranks, by rank.
    pub(crate) fn gather(&mut self, work: &str, texts: Vec<String>) -> Result<Vec<String>, TrainError> {
        if self.is_alone() {
            return Ok(texts);
        }
        self.collective.announce(work);
        let answers = self.collective.all_gather(&to_json(&texts))?;
        Ok(answers.iter().flat_map(|bytes| from_json::<Vec<String>>(bytes)).collect())
    }

    /// Sums over all ranks, added up in their order.
    pub(crate) fn sum<const N: usize>(&mut self, work: &str, values: [f64; N]) -> Result<[f64; N], TrainError> {
        if self.is_alone() {
            return Ok(values);
        }
        self.collective.announce(work);
        let answers = self.collective.all_gather(bytemuck::cast_slice(&values))?;
        let mut sums = [0.0; N];
        for answer in &answers {
            let words = answer.chunks_exact(8).map(|word| f64::from_le_bytes(word.try_into().expect("eight bytes")));
            sums.iter_mut().zip(words).for_each(|(sum, value)| *sum += value);
        }
        Ok(sums)
    }

    /// Whether any rank says so.
    pub(crate) fn any(&mut self, work: &str, here: bool) -> Result<bool, TrainError> {
        let [count] = self.sum(work, [f64::from(u8::from(here))])?;
        Ok(count > 0.0)
    }

    /// Returns once all ranks have come here.
    pub(crate) fn meet(&mut self, work: &str) -> Result<(), TrainError> {
        self.collective.announce(work);
        self.collective.barrier()
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain fields always have a JSON form")
}

fn from_json<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).expect("all ranks run one program, which wrote these bytes")
}
