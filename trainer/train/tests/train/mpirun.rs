//! Several processes under `mpirun`. Needs it, and a trainer with the feature `mpi`: this build's, or the one that
//! `VELA_MPI_TRAINER` names. `tests/ranks/run` makes both sure; without them these tests say that they are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vela_train::Resume;

use crate::fixture::{Stage, loss_bits};
use crate::ranks::{largest_difference, train_ranks, weights};

/// A trainer that joins ranks by MPI, if one can be had here.
#[expect(clippy::print_stderr, reason = "a test that skips says so")]
fn mpi_trainer(test: &str) -> Option<PathBuf> {
    let built = cfg!(feature = "mpi").then(|| PathBuf::from(env!("CARGO_BIN_EXE_trainer")));
    let trainer = std::env::var_os("VELA_MPI_TRAINER").map(PathBuf::from).or(built);
    let has_mpirun = Command::new("mpirun").arg("--version").output().is_ok_and(|output| output.status.success());
    if trainer.is_none() || !has_mpirun {
        let missing =
            if has_mpirun { "trainer with the feature `mpi` (tests/ranks/run builds one)" } else { "`mpirun`" };
        eprintln!("skipped: {test}, no {missing}");
    }
    trainer.filter(|_| has_mpirun)
}

/// `mpirun -n WORLD trainer train` on the stage's recipe, one thread per rank, into the folder `run`.
fn mpirun(trainer: &Path, stage: &Stage, world: usize, run: &str, sets: &[&str], rest: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["-n", &world.to_string(), "--oversubscribe", "--bind-to", "none", "--allow-run-as-root"]);
    command.arg(trainer).args(["train", "--recipe"]).arg(stage.path("recipe.toml"));
    command.arg("--set").arg(format!("run.output={}", stage.path(run).display()));
    sets.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    command.args(rest).env("RAYON_NUM_THREADS", "1").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn finish(mut command: Command) -> Output {
    let output = command.output().expect("mpirun runs");
    assert!(output.status.success(), "{}", told(&output));
    output
}

const SHARED: [&str; 6] = [
    "data.shuffle=true",
    "batch.global=8",
    "batch.micro=3",
    "run.max_steps=12",
    "checkpoint.every=4",
    "checkpoint.keep=9",
];

#[test]
fn processes_have_the_losses_of_one_and_the_bits_of_threads() {
    let Some(trainer) = mpi_trainer("processes_have_the_losses_of_one_and_the_bits_of_threads") else { return };
    let stage = Stage::new("full");
    train_ranks(&stage, 1, "one", &SHARED, &Resume::Fresh);
    for world in [2, 4] {
        let (run, again, threads) = (format!("of-{world}"), format!("again-{world}"), format!("threads-{world}"));
        finish(mpirun(&trainer, &stage, world, &run, &SHARED, &[]));
        finish(mpirun(&trainer, &stage, world, &again, &SHARED, &[]));
        train_ranks(&stage, world, &threads, &SHARED, &Resume::Fresh);
        let difference = largest_difference(&stage, &run, "one");
        assert!(difference < 1e-5, "{world} ranks: {difference}");
        for other in [&again, &threads] {
            assert_eq!(loss_bits(&stage.metrics(&run)), loss_bits(&stage.metrics(other)), "{other}");
            for file in ["model.safetensors", "optimizer.safetensors"] {
                assert!(weights(&stage, &run, 12, file) == weights(&stage, other, 12, file), "{other}: {file}");
            }
        }
    }
}

#[test]
fn a_checkpoint_of_two_processes_is_gone_on_from_by_four_and_by_one() {
    let Some(trainer) = mpi_trainer("a_checkpoint_of_two_processes_is_gone_on_from_by_four_and_by_one") else { return };
    let stage = Stage::new("freeze_vision");
    finish(mpirun(&trainer, &stage, 2, "two", &SHARED, &[]));
    let from = stage.path("two/checkpoints/step-4").display().to_string();
    let rest = stage.metrics("two").split_off(4);
    for world in [1, 4] {
        let run = format!("on-{world}");
        finish(mpirun(&trainer, &stage, world, &run, &SHARED, &["--resume", &from]));
        let lines = stage.metrics(&run);
        assert_eq!(lines.len(), 8);
        for (on, two) in lines.iter().zip(&rest) {
            assert!((on.loss - two.loss).abs() < 1e-5 * two.loss, "{world} ranks: {on:?} {two:?}");
        }
    }
}

const LONG: [&str; 5] =
    ["data.shuffle=true", "batch.global=8", "run.max_steps=300", "checkpoint.every=20", "ranks.deadline=60s"];

/// A run of two processes that has got on for so many steps.
struct Running {
    mpirun: Child,
    /// By rank.
    ranks: Vec<u32>,
}

impl Running {
    fn start(mut command: Command, metrics: &Path, steps: usize) -> Self {
        let mut mpirun = command.spawn().expect("mpirun starts");
        let deadline = Instant::now() + Duration::from_secs(120);
        while fs::read_to_string(metrics).map_or(0, |text| text.lines().count()) < steps {
            assert!(Instant::now() < deadline && mpirun.try_wait().expect("a child").is_none(), "no progress");
            std::thread::sleep(Duration::from_millis(2));
        }
        let ranks = ranks_of(mpirun.id());
        assert_eq!(ranks.len(), 2);
        Self { mpirun, ranks }
    }

    fn signal(&self, rank: usize, signal: &str) {
        let pid = self.ranks[rank].to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
    }

    /// What it said and how it ended, within so long.
    fn end(mut self, within: Duration) -> Output {
        let deadline = Instant::now() + within;
        while self.mpirun.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "still there after {within:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let alive: Vec<&u32> = self.ranks.iter().filter(|pid| is_running(**pid)).collect();
        assert!(alive.is_empty(), "{alive:?}");
        self.mpirun.wait_with_output().expect("ended")
    }
}

/// The processes that `mpirun` started, by rank.
fn ranks_of(mpirun: u32) -> Vec<u32> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let rank_of = |pid: u32| -> Option<(u32, u32)> {
        let variables = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mut texts = variables.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let rank = texts.find_map(|text| text.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse().ok())?;
        Some((rank, pid))
    };
    let pids = fs::read_dir("/proc").expect("Linux").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<(u32, u32)> = pids.filter(|pid| parent_of(*pid) == Some(mpirun)).filter_map(rank_of).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, pid)| pid).collect()
}

fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_killed_process_ends_all_and_the_gang_goes_on_as_if_nothing_had_happened() {
    let test = "a_killed_process_ends_all_and_the_gang_goes_on_as_if_nothing_had_happened";
    let Some(trainer) = mpi_trainer(test) else { return };
    let stage = Stage::new("full");
    finish(mpirun(&trainer, &stage, 2, "whole", &LONG, &[]));
    let metrics = stage.path("killed").join("metrics.jsonl");
    for (rank, steps) in [(1, 50), (0, 130)] {
        let command = mpirun(&trainer, &stage, 2, "killed", &LONG, &["--resume", "auto"]);
        let running = Running::start(command, &metrics, steps);
        running.signal(rank, "-KILL");
        let output = running.end(Duration::from_secs(20));
        assert!(!output.status.success(), "{}", told(&output));
    }
    finish(mpirun(&trainer, &stage, 2, "killed", &LONG, &["--resume", "auto"]));
    assert_eq!(loss_bits(&stage.metrics("killed")), loss_bits(&stage.metrics("whole")));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert!(weights(&stage, "killed", 300, file) == weights(&stage, "whole", 300, file), "{file}");
    }
}

#[test]
fn a_process_whose_mate_hangs_leaves_with_75() {
    let Some(trainer) = mpi_trainer("a_process_whose_mate_hangs_leaves_with_75") else { return };
    let stage = Stage::new("freeze_vision_and_llm");
    let sets = [&LONG[..2], &["run.max_steps=100000", "checkpoint.every=20", "ranks.deadline=2s"]].concat();
    for hanging in [1, 0] {
        let run = format!("run-{hanging}");
        let command = mpirun(&trainer, &stage, 2, &run, &sets, &[]);
        let running = Running::start(command, &stage.path(&run).join("metrics.jsonl"), 5);
        running.signal(hanging, "-STOP");
        let output = running.end(Duration::from_secs(20));
        let told = told(&output);
        assert_eq!(output.status.code(), Some(75), "{told}");
        let waiting = format!("rank {} of 2: step ", 1 - hanging);
        let place = format!("rank {} of 2: asking whether to stop", 1 - hanging);
        assert!(told.contains(&waiting) || told.contains(&place), "{told}");
        assert!(told.contains("ranks.deadline"), "{told}");
    }
}

#[test]
fn a_termination_of_any_process_leaves_one_checkpoint_and_one_account() {
    let Some(trainer) = mpi_trainer("a_termination_of_any_process_leaves_one_checkpoint_and_one_account") else {
        return;
    };
    let stage = Stage::new("freeze_vision");
    let sets = [&LONG[..2], &["run.max_steps=100000", "checkpoint.every=100000"]].concat();
    for rank in [1, 0] {
        let run = format!("run-{rank}");
        let command = mpirun(&trainer, &stage, 2, &run, &sets, &["--json"]);
        let running = Running::start(command, &stage.path(&run).join("metrics.jsonl"), 5);
        running.signal(rank, "-TERM");
        let output = running.end(Duration::from_secs(20));
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = stdout.lines().filter(|line| line.starts_with('{')).collect();
        assert_eq!(lines.len(), 1, "{stdout}");
        let json: serde_json::Value = serde_json::from_str(lines[0]).expect("JSON");
        assert!(json["interrupted"] == true && Path::new(json["checkpoint"].as_str().expect("one")).is_dir(), "{json}");
    }
}

#[test]
fn ranks_that_mpi_did_not_start_are_refused() {
    let Some(trainer) = mpi_trainer("ranks_that_mpi_did_not_start_are_refused") else { return };
    let stage = Stage::new("freeze_vision_and_llm");
    let mut command = Command::new(trainer);
    command.args(["train", "--recipe"]).arg(stage.path("recipe.toml")).env("RANK", "1").env("WORLD_SIZE", "2");
    let output = command.output().expect("runs");
    let told = told(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("says rank 1 of 2, MPI says rank 0 of 1") && told.contains("mpirun"), "{told}");
}
