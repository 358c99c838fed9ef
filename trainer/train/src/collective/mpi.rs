//! Collectives by the MPI library that the program was linked with.

use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use mpi::{Count, Threading};

use super::{Collective, Launch};
use crate::error::TrainError;

/// The ranks that MPI started. Lives on the thread that made it. Errors of the library itself end the process: so it is set up.
pub(super) struct Mpi {
    world: SimpleCommunicator,
    /// Gone after [`Collective::finish`].
    universe: Option<Universe>,
    /// What the other ranks sent, reused.
    received: Vec<f32>,
    launch: Launch,
}

impl Mpi {
    /// Starts MPI at thread level `funneled`; refuses a world that is not the one of the environment.
    pub(super) fn start(launch: Launch) -> Result<Self, TrainError> {
        let refuse = |what: String| Err(TrainError::Launch { what });
        let Some((universe, provided)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return refuse("MPI was started in this process before".to_owned());
        };
        let world = universe.world();
        let found = Launch { rank: world.rank() as usize, world: world.size() as usize };
        // From here on the library must not be shut down unless all ranks do so.
        let this = Self { world, universe: Some(universe), received: Vec::new(), launch };
        match () {
            () if provided < Threading::Funneled => refuse(
                "this MPI library allows no thread but the main one; use one that has `MPI_THREAD_FUNNELED`".to_owned(),
            ),
            () if found != launch => refuse(format!(
                "the environment says rank {} of {}, MPI says rank {} of {}: start the processes with `mpirun`, or with `srun --mpi=pmix`",
                launch.rank, launch.world, found.rank, found.world
            )),
            () => Ok(this),
        }
    }

    /// A length as MPI counts.
    fn count(&self, length: usize) -> Result<Count, TrainError> {
        Count::try_from(length).map_err(|_| {
            let Launch { rank, world } = self.launch;
            let (work, fault) = ("counting".to_owned(), format!("{length} values at once are too many for MPI"));
            TrainError::Collective { rank, world, work, fault }
        })
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.launch.rank
    }

    fn world(&self) -> usize {
        self.launch.world
    }

    /// Each rank gets one part of all ranks' values, adds it up in the order of the ranks, and hands it to all: as many
    /// bytes as a ring sends, in an order that no choice of the library changes.
    fn all_reduce(&mut self, values: &mut Vec<f32>) -> Result<(), TrainError> {
        let (length, world) = (values.len(), self.launch.world);
        let part = length.div_ceil(world);
        if part == 0 {
            return Ok(());
        }
        self.count(part * world)?;
        values.resize(part * world, 0.0);
        self.received.resize(part * world, 0.0);
        self.world.all_to_all_into(&values[..], &mut self.received[..]);
        let (sum, others) = self.received.split_at_mut(part);
        for other in others.chunks_exact(part) {
            sum.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        }
        self.world.all_gather_into(&*sum, &mut values[..]);
        values.truncate(length);
        Ok(())
    }

    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), TrainError> {
        let root = self.world.process_at_rank(0);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        self.count(length as usize)?;
        bytes.resize(length as usize, 0);
        root.broadcast_into(&mut bytes[..]);
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), TrainError> {
        self.world.barrier();
        Ok(())
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        let mut counts = vec![0; self.launch.world];
        self.world.all_gather_into(&self.count(bytes.len())?, &mut counts[..]);
        let starts = counts.iter().scan(0usize, |end, &count| Some(std::mem::replace(end, *end + count as usize)));
        let starts: Vec<usize> = starts.collect();
        let total: usize = counts.iter().map(|&count| count as usize).sum();
        self.count(total)?;
        let displacements: Vec<Count> = starts.iter().map(|&start| start as Count).collect();
        let mut gathered = vec![0u8; total];
        let mut partition = PartitionMut::new(&mut gathered[..], &counts[..], &displacements[..]);
        self.world.all_gather_varcount_into(bytes, &mut partition);
        let parts = starts.iter().zip(&counts).map(|(&start, &count)| gathered[start..start + count as usize].to_vec());
        Ok(parts.collect())
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        drop(self.universe.take());
        Ok(())
    }
}

impl Drop for Mpi {
    /// Shutting MPI down waits for all ranks: a rank that leaves alone must not.
    fn drop(&mut self) {
        std::mem::forget(self.universe.take());
    }
}
