//! Which of how many processes this one is, as the program that started them says.

use std::time::Duration;

use super::{Collective, Single};
use crate::error::TrainError;

/// A process's place among those that were started together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// From 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
}

/// The variables by which a launcher tells a process its place.
struct Launcher {
    rank: &'static str,
    /// The first that is set counts.
    world: &'static [&'static str],
    /// A variable without which the others say nothing about this process.
    marker: Option<&'static str>,
}

const OPEN_MPI: Launcher = Launcher { rank: "OMPI_COMM_WORLD_RANK", world: &["OMPI_COMM_WORLD_SIZE"], marker: None };
/// MPICH and Intel MPI; also `srun --mpi=pmi2`.
const PMI: Launcher = Launcher { rank: "PMI_RANK", world: &["PMI_SIZE"], marker: None };
/// A batch script has these too, for the job; only a step's tasks have the marker.
const SRUN: Launcher =
    Launcher { rank: "SLURM_PROCID", world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"], marker: Some("SLURM_STEP_ID") };
const TORCHRUN: Launcher = Launcher { rank: "RANK", world: &["WORLD_SIZE"], marker: None };

/// What one launcher said.
#[derive(Clone, Copy)]
struct Told {
    launch: Launch,
    rank_name: &'static str,
    world_name: &'static str,
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Launch {
    /// The only process.
    pub const ALONE: Self = Self { rank: 0, world: 1 };

    /// Reads the environment: `OMPI_COMM_WORLD_RANK` and `_SIZE` (mpirun of OpenMPI), `PMI_RANK` and `PMI_SIZE` (MPICH), `SLURM_PROCID` and
    /// `SLURM_STEP_NUM_TASKS` or `SLURM_NTASKS` (srun), `RANK` and `WORLD_SIZE` (torchrun). Without any of them there is one process.
    ///
    /// # Errors
    /// [`TrainError::Launch`] if a variable is not a number, one of a pair is missing, or two launchers contradict each other.
    /// Slurm's are passed over where mpirun's are there, because mpirun starts its daemons with srun.
    pub fn from_env() -> Result<Self, TrainError> {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: Lookup<'_>) -> Result<Self, TrainError> {
        let by_mpi = [&OPEN_MPI, &PMI].map(|launcher| launcher.read(lookup));
        let [open_mpi, pmi] = by_mpi;
        let (open_mpi, pmi) = (open_mpi?, pmi?);
        let srun = if open_mpi.is_none() { SRUN.read(lookup)? } else { None };
        let told: Vec<Told> = [open_mpi, pmi, srun, TORCHRUN.read(lookup)?].into_iter().flatten().collect();
        if let Some(pair) = told.windows(2).find(|pair| pair[0].launch != pair[1].launch) {
            return refuse(contradiction(pair[0], pair[1]));
        }
        let found = told.first().map(|told| told.launch);
        check_pmix(lookup, told.first())?;
        Ok(found.unwrap_or(Self::ALONE))
    }

    /// Joins the processes that were started together; each operation of theirs may take `deadline`.
    ///
    /// # Errors
    /// [`TrainError::NoBackend`] for more than one process in a build without a backend; [`TrainError::Collective`] if they do not find one another.
    pub fn join(self, deadline: Duration) -> Result<Box<dyn Collective>, TrainError> {
        match self.world {
            1 => Ok(Box::new(Single)),
            _ => self.join_others(deadline),
        }
    }

    #[cfg(feature = "mpi")]
    fn join_others(self, deadline: Duration) -> Result<Box<dyn Collective>, TrainError> {
        use super::mpi::Mpi;
        use super::{OnStall, Watched};
        Ok(Box::new(Watched::start(self, move || Mpi::start(self), deadline, OnStall::Leave)?))
    }

    #[cfg(not(feature = "mpi"))]
    fn join_others(self, _deadline: Duration) -> Result<Box<dyn Collective>, TrainError> {
        Err(TrainError::NoBackend { rank: self.rank, world: self.world })
    }
}

impl Launcher {
    fn read(&self, lookup: Lookup<'_>) -> Result<Option<Told>, TrainError> {
        if self.marker.is_some_and(|marker| lookup(marker).is_none()) {
            return Ok(None);
        }
        let world_name = self.world.iter().copied().find(|name| lookup(name).is_some()).unwrap_or(self.world[0]);
        match (number(self.rank, lookup)?, number(world_name, lookup)?) {
            (None, None) => Ok(None),
            (Some(rank), Some(world)) if rank < world => {
                Ok(Some(Told { launch: Launch { rank, world }, rank_name: self.rank, world_name }))
            }
            (Some(rank), Some(world)) => {
                refuse(format!("`{}` is `{rank}`, which has to be below `{world_name}` = `{world}`", self.rank))
            }
            (Some(rank), None) => refuse(format!("`{}` is `{rank}` and `{world_name}` is not set", self.rank)),
            (None, Some(world)) => refuse(format!("`{world_name}` is `{world}` and `{}` is not set", self.rank)),
        }
    }
}

fn number(name: &str, lookup: Lookup<'_>) -> Result<Option<usize>, TrainError> {
    let Some(text) = lookup(name) else { return Ok(None) };
    match text.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => refuse(format!("`{name}` is `{text}`, expected a number from 0 up")),
    }
}

fn contradiction(one: Told, other: Told) -> String {
    let say = |told: Told| {
        let Launch { rank, world } = told.launch;
        format!("`{}` = `{rank}` of `{}` = `{world}`", told.rank_name, told.world_name)
    };
    format!(
        "{} contradicts {}; unset the variables of the launcher that did not start this process",
        say(one),
        say(other)
    )
}

/// PMIx gives a rank alone: it must be the one that the launcher names.
fn check_pmix(lookup: Lookup<'_>, told: Option<&Told>) -> Result<(), TrainError> {
    match (number("PMIX_RANK", lookup)?, told) {
        (None, _) => Ok(()),
        (Some(rank), Some(told)) if rank == told.launch.rank => Ok(()),
        (Some(rank), Some(told)) => {
            refuse(format!("`PMIX_RANK` = `{rank}` contradicts `{}` = `{}`", told.rank_name, told.launch.rank))
        }
        (Some(rank), None) => refuse(format!(
            "`PMIX_RANK` is `{rank}` and nothing says of how many: neither `OMPI_COMM_WORLD_SIZE` nor `SLURM_STEP_NUM_TASKS` is set"
        )),
    }
}

fn refuse<T>(what: String) -> Result<T, TrainError> {
    Err(TrainError::Launch { what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Launch, TrainError> {
        Launch::from_lookup(&|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn refusal(vars: &[(&str, &str)]) -> String {
        let fault = read(vars).expect_err("refused");
        assert!(fault.is_usage(), "{fault}");
        fault.to_string()
    }

    #[test]
    fn each_launcher_is_understood() {
        let launchers: [&[(&str, &str)]; 6] = [
            &[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4"), ("PMIX_RANK", "2")],
            &[("PMI_RANK", "2"), ("PMI_SIZE", "4")],
            &[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4"), ("PMIX_RANK", "2")],
            &[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "2"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_NTASKS", "8")],
            &[("RANK", "2"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")],
            &[("RANK", "2"), ("WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")],
        ];
        for vars in launchers {
            assert_eq!(read(vars).expect("understood"), Launch { rank: 2, world: 4 }, "{vars:?}");
        }
        assert_eq!(read(&[]).expect("nothing"), Launch::ALONE);
    }

    #[test]
    fn a_batch_script_of_slurm_is_one_process() {
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).expect("no step"), Launch::ALONE);
    }

    #[test]
    fn mpirun_inside_a_slurm_job_counts_its_own() {
        let inside = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
        ];
        assert_eq!(read(&inside).expect("mpirun's"), Launch { rank: 3, world: 4 });
    }

    #[test]
    fn contradictions_are_refused_with_both_names_and_values() {
        let told = refusal(&[
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("RANK", "0"),
            ("WORLD_SIZE", "2"),
        ]);
        for part in [
            "`OMPI_COMM_WORLD_RANK` = `1`",
            "`OMPI_COMM_WORLD_SIZE` = `4`",
            "`RANK` = `0`",
            "`WORLD_SIZE` = `2`",
            "unset",
        ] {
            assert!(told.contains(part), "{told}");
        }
        let told = refusal(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4"), ("PMIX_RANK", "2")]);
        assert!(told.contains("`PMIX_RANK` = `2`") && told.contains("`OMPI_COMM_WORLD_RANK` = `1`"), "{told}");
    }

    #[test]
    fn half_a_pair_and_what_is_no_number_are_refused() {
        assert!(refusal(&[("RANK", "1")]).contains("`WORLD_SIZE` is not set"));
        assert!(refusal(&[("WORLD_SIZE", "2")]).contains("`RANK` is not set"));
        assert!(refusal(&[("RANK", "x"), ("WORLD_SIZE", "2")]).contains("`RANK` is `x`"));
        assert!(refusal(&[("RANK", "2"), ("WORLD_SIZE", "2")]).contains("below `WORLD_SIZE` = `2`"));
        assert!(refusal(&[("PMIX_RANK", "0")]).contains("nothing says of how many"));
    }

    #[cfg(not(feature = "mpi"))]
    #[test]
    fn several_ranks_are_refused_by_a_build_without_a_backend() {
        let Err(fault) = (Launch { rank: 1, world: 4 }).join(Duration::from_secs(1)) else { panic!("no backend") };
        let told = fault.to_string();
        assert!(fault.is_usage() && told.contains("rank 1 of 4") && told.contains("--features mpi"), "{told}");
    }
}
