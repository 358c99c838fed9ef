//! Several ranks take the steps that one process would. Threads stand in for processes here.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use vela_runtime::Shutdown;
use vela_train::{Collective, Launch, OnStall, Resume, TrainError, TrainReport, Watched, train_together};

use crate::fixture::{Stage, golden, golden_records, loss_bits, open_processor, write_shards};
use crate::loader::start_loader;

/// One place where threads meet and leave bytes for one another.
#[derive(Default)]
struct Table {
    round: Mutex<Round>,
    turned: Condvar,
}

#[derive(Default)]
struct Round {
    number: u64,
    laid: Vec<Option<Vec<u8>>>,
    last: Vec<Vec<u8>>,
    /// A rank went away: nobody will meet any more.
    is_broken: bool,
}

/// A rank that is a thread.
struct ThreadRank {
    launch: Launch,
    table: Arc<Table>,
    work: String,
    /// Is handed what is announced, and may change the values that a reduction gave.
    meddle: fn(usize, &str, &mut [f32]),
    is_done: bool,
}

impl ThreadRank {
    fn all(world: usize, meddle: fn(usize, &str, &mut [f32])) -> Vec<Self> {
        let round = Round { laid: vec![None; world], ..Round::default() };
        let table = Arc::new(Table { round: Mutex::new(round), turned: Condvar::new() });
        let rank = |rank| Self {
            launch: Launch { rank, world },
            table: table.clone(),
            work: String::new(),
            meddle,
            is_done: false,
        };
        (0..world).map(rank).collect()
    }

    fn exchange(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, TrainError> {
        let mut round = self.table.round.lock().expect("no thread panics here");
        let number = round.number;
        round.laid[self.launch.rank] = Some(bytes);
        if round.laid.iter().all(Option::is_some) {
            round.last = round.laid.iter_mut().map(|laid| laid.take().expect("all are there")).collect();
            round.number += 1;
            self.table.turned.notify_all();
        }
        let round = self.table.turned.wait_while(round, |round| round.number == number && !round.is_broken);
        let round = round.expect("no thread panics here");
        match round.number > number {
            true => Ok(round.last.clone()),
            false => {
                let Launch { rank, world } = self.launch;
                let fault = "another rank is gone".to_owned();
                Err(TrainError::Collective { rank, world, work: self.work.clone(), fault })
            }
        }
    }
}

impl Drop for ThreadRank {
    /// What a launcher does when a process ends before its time.
    fn drop(&mut self) {
        if !self.is_done {
            self.table.round.lock().expect("no thread panics here").is_broken = true;
            self.table.turned.notify_all();
        }
    }
}

impl Collective for ThreadRank {
    fn rank(&self) -> usize {
        self.launch.rank
    }

    fn world(&self) -> usize {
        self.launch.world
    }

    fn announce(&mut self, work: &str) {
        work.clone_into(&mut self.work);
    }

    fn all_reduce(&mut self, values: &mut Vec<f32>) -> Result<(), TrainError> {
        let words = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().expect("four"))).collect()
        };
        let all = self.exchange(values.iter().flat_map(|value| value.to_le_bytes()).collect())?;
        *values = words(&all[0]);
        for other in &all[1..] {
            values.iter_mut().zip(words(other)).for_each(|(sum, value)| *sum += value);
        }
        (self.meddle)(self.launch.rank, &self.work, values);
        Ok(())
    }

    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), TrainError> {
        *bytes = self.exchange(std::mem::take(bytes))?.swap_remove(0);
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), TrainError> {
        self.exchange(Vec::new()).map(drop)
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        self.exchange(bytes.to_vec())
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        self.is_done = true;
        self.barrier()
    }
}

fn honest(_: usize, _: &str, _: &mut [f32]) {}

/// Trains with as many threads as there are lists of overrides, rank `r` with the `r`-th.
fn train_each(
    stage: &Stage,
    sets: &[Vec<String>],
    resume: &Resume,
    meddle: fn(usize, &str, &mut [f32]),
) -> Vec<Result<TrainReport, TrainError>> {
    let stops = vec![Shutdown::new(); sets.len()];
    train_stopped(stage, sets, resume, meddle, &stops)
}

fn train_stopped(
    stage: &Stage,
    sets: &[Vec<String>],
    resume: &Resume,
    meddle: fn(usize, &str, &mut [f32]),
    stops: &[Shutdown],
) -> Vec<Result<TrainReport, TrainError>> {
    let ranks = ThreadRank::all(sets.len(), meddle);
    thread::scope(|scope| {
        let places = ranks.into_iter().zip(sets).zip(stops);
        let threads: Vec<_> = places
            .map(|((mut rank, sets), stop)| {
                scope.spawn(move || {
                    let report = train_together(&stage.recipe(sets)?, resume, stop, &mut rank)?;
                    rank.finish().map(|()| report)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Trains with `world` ranks into the folder `run`; the report of rank 0.
pub(crate) fn train_ranks(stage: &Stage, world: usize, run: &str, sets: &[&str], resume: &Resume) -> TrainReport {
    let mut all = vec![format!("run.output={}", stage.path(run).display())];
    all.extend(sets.iter().map(|set| (*set).to_owned()));
    let mut reports = train_each(stage, &vec![all; world], resume, honest);
    reports.iter().for_each(|report| assert!(report.is_ok(), "{report:?}"));
    reports.swap_remove(0).expect("looked at")
}

pub(crate) fn weights(stage: &Stage, run: &str, step: u64, file: &str) -> Vec<u8> {
    fs::read(stage.path(run).join(format!("checkpoints/step-{step}")).join(file)).expect("a checkpoint")
}

/// Largest difference of losses and gradient norms, relative.
pub(crate) fn largest_difference(stage: &Stage, run: &str, other: &str) -> f64 {
    let (ours, theirs) = (stage.metrics(run), stage.metrics(other));
    assert_eq!(ours.len(), theirs.len());
    let relative = |a: f64, b: f64| (a - b).abs() / b.abs().max(1e-9);
    let pairs = ours.iter().zip(&theirs);
    pairs.map(|(a, b)| relative(a.loss, b.loss).max(relative(a.grad_norm, b.grad_norm))).fold(0.0, f64::max)
}

const SHARED: [&str; 5] =
    ["data.shuffle=true", "batch.global=8", "run.max_steps=12", "checkpoint.every=4", "checkpoint.keep=9"];

#[test]
fn two_and_four_ranks_have_the_losses_of_one() {
    for train_type in ["freeze_vision_and_llm", "full", "lora"] {
        let stage = Stage::new(train_type);
        for world in [1, 2, 4] {
            train_ranks(
                &stage,
                world,
                &format!("of-{world}"),
                &[&SHARED[..], &["batch.micro=3"]].concat(),
                &Resume::Fresh,
            );
        }
        let ones = stage.metrics("of-1");
        for run in ["of-2", "of-4"] {
            let difference = largest_difference(&stage, run, "of-1");
            assert!(difference < 1e-5, "{train_type} {run}: {difference}");
            let counts =
                |lines: &[vela_train::StepMetrics]| lines.iter().map(|line| line.epoch.to_bits()).collect::<Vec<_>>();
            assert_eq!(counts(&stage.metrics(run)), counts(&ones));
        }
    }
}

#[test]
fn one_micro_batch_per_rank_gives_the_bits_of_one_process_with_as_many() {
    let stage = Stage::new("full");
    let sets = [&SHARED[..], &["batch.micro=2", "batch.packing.max_images=3", "batch.packing.window=12"]].concat();
    train_ranks(&stage, 1, "one", &sets, &Resume::Fresh);
    train_ranks(&stage, 4, "four", &sets, &Resume::Fresh);
    assert_eq!(loss_bits(&stage.metrics("four")), loss_bits(&stage.metrics("one")));
    assert_eq!(weights(&stage, "four", 12, "model.safetensors"), weights(&stage, "one", 12, "model.safetensors"));
}

#[test]
fn the_same_world_twice_has_the_same_bits_also_when_the_batch_does_not_divide() {
    let stage = Stage::new("freeze_vision");
    let sets = ["data.shuffle=true", "batch.global=7", "batch.micro=2", "run.max_steps=9"];
    for run in ["a", "b"] {
        train_ranks(&stage, 3, run, &sets, &Resume::Fresh);
    }
    train_ranks(&stage, 1, "one", &sets, &Resume::Fresh);
    assert_eq!(loss_bits(&stage.metrics("a")), loss_bits(&stage.metrics("b")));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert_eq!(weights(&stage, "a", 9, file), weights(&stage, "b", 9, file), "{file}");
    }
    let difference = largest_difference(&stage, "a", "one");
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn a_checkpoint_of_two_ranks_is_gone_on_from_by_four_and_by_one() {
    let stage = Stage::new("full");
    let sets = [&SHARED[..], &["batch.micro=2"]].concat();
    train_ranks(&stage, 2, "two", &sets, &Resume::Fresh);
    let from = Resume::From(stage.path("two/checkpoints/step-4"));
    let rest = stage.metrics("two").split_off(4);
    for world in [1, 2, 4] {
        let run = format!("on-{world}");
        let report = train_ranks(&stage, world, &run, &sets, &from);
        let lines = stage.metrics(&run);
        assert_eq!((report.steps, lines.len()), (12, 8));
        match world {
            2 => assert_eq!(loss_bits(&lines), loss_bits(&rest)),
            _ => lines.iter().zip(&rest).for_each(|(on, two)| {
                assert!((on.loss - two.loss).abs() < 1e-5 * two.loss, "{world} ranks: {on:?} {two:?}");
            }),
        }
    }
}

#[test]
fn counts_rates_and_validation_are_those_of_all_ranks() {
    let stage = Stage::new("freeze_vision_and_llm");
    let processor = open_processor(&golden().join("processor"));
    write_shards(&stage.path("held-out"), &golden_records(&processor)[..5], &processor);
    let held_out = format!("data.validation={}", stage.path("held-out").display());
    let sets = [&SHARED[..], &["batch.micro=2", &held_out]].concat();
    let reports = [1, 4].map(|world| train_ranks(&stage, world, &format!("of-{world}"), &sets, &Resume::Fresh));
    let measured = ["of-1", "of-4"].map(|run| {
        stage.metrics(run).iter().filter_map(|line| Some((line.step, line.validation_loss?))).collect::<Vec<_>>()
    });
    assert_eq!(measured[0].len(), 3);
    for (one, four) in measured[0].iter().zip(&measured[1]) {
        assert!(one.0 == four.0 && (one.1 - four.1).abs() < 1e-5 * one.1, "{one:?} {four:?}");
    }
    // Samples per token is a matter of the data, not of who counted: each rank alone saw a quarter.
    let ratio = |report: &TrainReport| report.samples_per_second / report.tokens_per_second;
    assert!((ratio(&reports[0]) / ratio(&reports[1]) - 1.0).abs() < 1e-9, "{reports:?}");
    for line in stage.metrics("of-4") {
        let per_step = line.label_tokens_per_second / line.samples_per_second;
        let alone = stage.metrics("of-1")[line.step as usize - 1].clone();
        assert!((per_step / (alone.label_tokens_per_second / alone.samples_per_second) - 1.0).abs() < 1e-9, "{line:?}");
    }
    let card = fs::read_to_string(stage.path("of-4/run.json")).expect("written");
    assert!(card.contains("\"ranks\": 4"), "{card}");
}

#[test]
fn ranks_over_the_loader_have_the_losses_of_ranks_in_process() {
    let stage = Stage::new("freeze_vision");
    let sets = [&SHARED[..], &["batch.micro=2"]].concat();
    train_ranks(&stage, 2, "here", &sets, &Resume::Fresh);
    let shutdown = Shutdown::new();
    let (loader, address) = start_loader(&stage, &shutdown);
    stage.use_loader(&address);
    train_ranks(&stage, 2, "remote", &sets, &Resume::Fresh);
    assert_eq!(loss_bits(&stage.metrics("remote")), loss_bits(&stage.metrics("here")));
    shutdown.request();
    loader.join().expect("the loader ended");
}

#[test]
fn a_stop_asked_of_one_rank_stops_all_with_a_checkpoint() {
    let stage = Stage::new("freeze_vision_and_llm");
    let stops = [Shutdown::new(), Shutdown::new()];
    let sets: Vec<String> = ["run.max_steps=100000", "batch.global=8"].map(str::to_owned).to_vec();
    let reports = thread::scope(|scope| {
        scope.spawn(|| {
            while stage.metrics("run").len() < 3 {
                thread::sleep(Duration::from_millis(5));
            }
            stops[1].request();
        });
        train_stopped(&stage, &[sets.clone(), sets], &Resume::Fresh, honest, &stops)
    });
    let reports: Vec<TrainReport> = reports.into_iter().map(|report| report.expect("in order")).collect();
    assert!(reports.iter().all(|report| report.interrupted && report.steps == reports[0].steps), "{reports:?}");
    assert!(reports[0].checkpoint.as_ref().expect("one").ends_with(format!("step-{}", reports[0].steps)));
    assert_eq!(reports[1].checkpoint, None, "rank 0 alone writes");
}

/// The errors of all ranks, all of which must have failed.
fn faults(reports: Vec<Result<TrainReport, TrainError>>) -> Vec<String> {
    reports.into_iter().map(|report| report.expect_err("refused").to_string()).collect()
}

#[test]
fn a_loss_that_is_not_finite_stops_all_ranks_and_names_the_samples_of_all() {
    let stage = Stage::new("freeze_vision_and_llm");
    let sets: Vec<String> =
        ["groups.projector.lr=1e30", "schedule.warmup_steps=0", "batch.global=8"].map(str::to_owned).to_vec();
    let reports = train_each(&stage, &vec![sets.clone(); 2], &Resume::Fresh, honest);
    let alone = stage.train(
        &["groups.projector.lr=1e30", "schedule.warmup_steps=0", "batch.global=8", &other(&stage)],
        &Resume::Fresh,
    );
    let samples = |fault: TrainError| match fault {
        TrainError::NonFinite { step, samples, .. } => (step, samples),
        other => panic!("{other}"),
    };
    let alone = samples(alone.expect_err("not finite"));
    assert_eq!(alone.1.len(), 8);
    for report in reports {
        assert_eq!(samples(report.expect_err("not finite")), alone);
    }
}

fn other(stage: &Stage) -> String {
    format!("run.output={}", stage.path("other").display())
}

#[test]
fn a_step_that_one_rank_cannot_take_is_left_out_by_all() {
    let stage = Stage::new("freeze_vision_and_llm");
    let sets: Vec<String> = ["guard.non_finite=skip", "batch.global=8", "run.max_steps=6"].map(str::to_owned).to_vec();
    let meddle = |_: usize, work: &str, values: &mut [f32]| {
        if work.starts_with("step 3: gradients") {
            values[0] = f32::NAN;
        }
    };
    for report in train_each(&stage, &vec![sets; 2], &Resume::Fresh, meddle) {
        assert_eq!(report.expect("one step is left out").steps, 6);
    }
    let skipped = fs::read_to_string(stage.path("run/skipped.jsonl")).expect("written");
    let line: serde_json::Value = serde_json::from_str(skipped.lines().next().expect("a line")).expect("JSON");
    assert_eq!((line["step"].as_u64(), skipped.lines().count()), (Some(3), 1));
    assert_eq!(line["samples"].as_array().expect("a list").len(), 8, "{line}");
}

#[test]
fn ranks_with_another_recipe_are_refused_by_the_key_that_differs() {
    let stage = Stage::new("freeze_vision_and_llm");
    let base: Vec<String> = ["batch.global=8", "run.max_steps=5"].map(str::to_owned).to_vec();
    let refused = |more: &str, resume: &Resume| {
        let other = [base.clone(), vec![more.to_owned()]].concat();
        faults(train_each(&stage, &[base.clone(), other], resume, honest))
    };
    for told in refused("optimizer.eps=0.5", &Resume::Fresh) {
        assert!(told.contains("differ in optimizer.eps") && told.contains("rank 1 has `0.5`"), "{told}");
    }
    // What one rank cannot open, all hear of; none of this takes the run folder.
    let missing = [base.clone(), vec!["data.shards=/nowhere".to_owned()]].concat();
    let told = faults(train_each(&stage, &[base.clone(), missing], &Resume::Fresh, honest));
    assert!(told[0].contains("rank 1 failed") && told[0].contains("/nowhere"), "{}", told[0]);
    assert!(!told[1].contains("rank 1 failed") && told[1].contains("/nowhere"), "{}", told[1]);
    assert!(!stage.path("run").exists());
}

#[test]
fn a_run_folder_that_is_taken_is_refused_by_all_ranks() {
    let stage = Stage::new("freeze_vision_and_llm");
    let sets: Vec<String> = ["batch.global=8", "run.max_steps=4"].map(str::to_owned).to_vec();
    for report in train_each(&stage, &vec![sets.clone(); 2], &Resume::Fresh, honest) {
        report.expect("a run");
    }
    let told = faults(train_each(&stage, &vec![sets; 2], &Resume::Fresh, honest));
    assert!(told[0].contains("--resume auto") && told[1].contains("rank 0 failed"), "{told:?}");
}

#[test]
pub(crate) fn weights_that_drift_apart_stop_the_run_before_they_are_saved() {
    let stage = Stage::new("freeze_vision_and_llm");
    let sets: Vec<String> = ["batch.global=8", "run.max_steps=9", "checkpoint.every=3"].map(str::to_owned).to_vec();
    let meddle = |rank: usize, work: &str, values: &mut [f32]| {
        if rank == 1 && work.starts_with("step 5: gradients") {
            values[0] += 1.0;
        }
    };
    for told in faults(train_each(&stage, &vec![sets; 2], &Resume::Fresh, meddle)) {
        assert!(told.contains("after step 6") && told.contains("rank 1"), "{told}");
    }
    assert!(
        stage.path("run/checkpoints/step-3").is_dir() && !Path::new(&stage.path("run/checkpoints/step-6")).exists()
    );
}

#[test]
fn a_rank_whose_mate_hangs_leaves_after_the_deadline() {
    let stage = Stage::new("freeze_vision_and_llm");
    let sets: Vec<String> = ["batch.global=8", "run.max_steps=4"].map(str::to_owned).to_vec();
    let mut ranks = ThreadRank::all(2, honest).into_iter();
    let (mine, absent) = (ranks.next().expect("rank 0"), ranks.next().expect("rank 1"));
    let launch = Launch { rank: 0, world: 2 };
    let mut watched =
        Watched::start(launch, move || Ok(mine), Duration::from_millis(300), OnStall::Tell).expect("started");
    let recipe = stage.recipe(&sets).expect("right");
    let fault = train_together(&recipe, &Resume::Fresh, &Shutdown::new(), &mut watched).expect_err("alone");
    assert!(matches!(fault, TrainError::Stalled { rank: 0, world: 2, .. }), "{fault}");
    drop(absent);
}

#[test]
fn a_rank_that_fails_in_a_step_ends_the_others() {
    let stage = Stage::new("freeze_vision_and_llm");
    let sets: Vec<String> = ["batch.global=8", "run.max_steps=6"].map(str::to_owned).to_vec();
    let meddle = |rank: usize, work: &str, _: &mut [f32]| {
        // As if the process had been killed: its `ThreadRank` is dropped while the others go on.
        assert!(!(rank == 1 && work.starts_with("step 4: gradients")), "killed on purpose");
    };
    let ranks = ThreadRank::all(2, meddle);
    let ends: Vec<_> = thread::scope(|scope| {
        let run = |mut rank: ThreadRank| {
            let (stage, sets) = (&stage, &sets);
            scope.spawn(move || train_together(&stage.recipe(sets)?, &Resume::Fresh, &Shutdown::new(), &mut rank))
        };
        let threads: Vec<_> = ranks.into_iter().map(run).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    assert!(ends[1].is_err(), "it panicked");
    let fault = ends[0].as_ref().expect("no panic").as_ref().expect_err("its mate is gone");
    assert!(matches!(fault, TrainError::Collective { .. }), "{fault}");
    // All again, from the newest checkpoint.
    for report in train_each(&stage, &vec![sets; 2], &Resume::Auto, honest) {
        assert_eq!(report.expect("started again").steps, 6);
    }
}
