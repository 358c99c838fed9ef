//! Collectives on a thread of their own, under a deadline: a rank that waits for a lost one leaves.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use super::{Collective, Launch};
use crate::error::TrainError;

/// The exit code of a process that gave up waiting for the others: start all of them again (`EX_TEMPFAIL` of `sysexits.h`).
const STALLED: i32 = 75;
/// How long the handlers that run at exit may take, the communication library's among them.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What happens when the deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStall {
    /// The process says where it stands and ends with code 75 at once. Nothing is taken down in order: that would wait
    /// for the ranks that do not answer.
    Leave,
    /// The call returns [`TrainError::Stalled`].
    Tell,
}

type Job<C> = Box<dyn FnOnce(&mut C) + Send>;

/// Hands each operation to the one thread that has the [`Collective`] `C`, and waits for it no longer than the deadline.
///
/// MPI allows this at its thread level `funneled`: the thread that starts it is the only one that calls it. Dropped before
/// [`Collective::finish`], it leaves the thread and its `C` where they are.
pub struct Watched<C> {
    launch: Launch,
    jobs: Sender<Job<C>>,
    deadline: Duration,
    on_stall: OnStall,
    work: String,
}

impl<C: Collective + 'static> Watched<C> {
    /// Starts the thread, which opens the collective by `open`.
    pub fn start(
        launch: Launch,
        open: impl FnOnce() -> Result<C, TrainError> + Send + 'static,
        deadline: Duration,
        on_stall: OnStall,
    ) -> Result<Self, TrainError> {
        let (jobs, queue) = channel();
        let (opened, answer) = sync_channel(1);
        let body = move || match open() {
            Ok(collective) => {
                // Whoever asked may have given up; then there are no jobs either.
                let _ = opened.send(Ok(()));
                work_off(collective, queue);
            }
            Err(fault) => {
                let _ = opened.send(Err(fault));
            }
        };
        let named = thread::Builder::new().name("collective".into()).spawn(body);
        let work = "joining the others".to_owned();
        let this = Self { launch, jobs, deadline, on_stall, work };
        named.map_err(|fault| this.broken(&format!("no thread for it: {fault}")))?;
        this.wait(&answer)?;
        Ok(this)
    }

    fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut C) -> Result<R, TrainError> + Send + 'static,
    ) -> Result<R, TrainError> {
        let (reply, answer) = sync_channel(1);
        let job = move |collective: &mut C| {
            let _ = reply.send(job(collective));
        };
        self.jobs.send(Box::new(job)).map_err(|_| self.broken("its thread has ended"))?;
        self.wait(&answer)
    }

    fn wait<R>(&self, answer: &Receiver<Result<R, TrainError>>) -> Result<R, TrainError> {
        match answer.recv_timeout(self.deadline) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(self.broken("its thread has ended")),
            Err(RecvTimeoutError::Timeout) => Err(self.stalled()),
        }
    }

    fn broken(&self, fault: &str) -> TrainError {
        let Launch { rank, world } = self.launch;
        TrainError::Collective { rank, world, work: self.work.clone(), fault: fault.to_owned() }
    }

    fn stalled(&self) -> TrainError {
        let Launch { rank, world } = self.launch;
        let stall = TrainError::Stalled { rank, world, work: self.work.clone(), deadline: self.deadline };
        match self.on_stall {
            OnStall::Tell => stall,
            OnStall::Leave => leave(&stall),
        }
    }
}

/// Does the jobs in their order until there can be no more.
fn work_off<C: Collective>(mut collective: C, queue: Receiver<Job<C>>) {
    queue.into_iter().for_each(|job| job(&mut collective));
}

/// Ends the process without taking anything down.
fn leave(stall: &TrainError) -> ! {
    let _ = writeln!(std::io::stderr(), "error: {stall}");
    // A handler at exit that waits for the library that stands still must not keep the process.
    let _ = thread::Builder::new().spawn(|| {
        thread::sleep(LAST_WORDS);
        std::process::abort();
    });
    std::process::exit(STALLED)
}

impl<C: Collective + 'static> Collective for Watched<C> {
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
        let mut moved = std::mem::take(values);
        *values = self.call(move |collective| collective.all_reduce(&mut moved).map(|()| moved))?;
        Ok(())
    }

    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), TrainError> {
        let mut moved = std::mem::take(bytes);
        *bytes = self.call(move |collective| collective.broadcast(&mut moved).map(|()| moved))?;
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), TrainError> {
        self.call(C::barrier)
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        let bytes = bytes.to_vec();
        self.call(move |collective| collective.all_gather(&bytes))
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        self.call(C::finish)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Single;
    use super::*;

    /// Answers as a lone rank does, but only after so long.
    struct Late(Duration);

    impl Collective for Late {
        fn rank(&self) -> usize {
            0
        }

        fn world(&self) -> usize {
            1
        }

        fn all_reduce(&mut self, values: &mut Vec<f32>) -> Result<(), TrainError> {
            values.iter_mut().for_each(|value| *value *= 2.0);
            Ok(())
        }

        fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), TrainError> {
            bytes.push(7);
            Ok(())
        }

        fn barrier(&mut self) -> Result<(), TrainError> {
            thread::sleep(self.0);
            Ok(())
        }

        fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
            Ok(vec![bytes.to_vec(), vec![1, 2]])
        }

        fn finish(&mut self) -> Result<(), TrainError> {
            panic!("on purpose")
        }
    }

    const PLACE: Launch = Launch { rank: 3, world: 5 };

    fn watched(sleep: Duration, deadline: Duration) -> Watched<Late> {
        Watched::start(PLACE, move || Ok(Late(sleep)), deadline, OnStall::Tell).expect("started")
    }

    #[test]
    fn operations_are_those_of_the_thread_behind() {
        let mut watched = watched(Duration::ZERO, Duration::from_secs(60));
        assert_eq!((watched.rank(), watched.world()), (3, 5));
        let (mut values, mut bytes) = (vec![1.5, -2.0], vec![9]);
        watched.all_reduce(&mut values).expect("reduced");
        watched.broadcast(&mut bytes).expect("told");
        watched.barrier().expect("met");
        assert_eq!((values, bytes), (vec![3.0, -4.0], vec![9, 7]));
        assert_eq!(watched.all_gather(&[5]).expect("gathered"), [vec![5], vec![1, 2]]);
        watched.announce("the end");
        let told = watched.finish().expect_err("its thread panics").to_string();
        assert!(told.contains("rank 3 of 5") && told.contains("the end"), "{told}");
    }

    #[test]
    fn a_rank_that_waits_too_long_says_who_waits_for_what() {
        let mut watched = watched(Duration::from_secs(30), Duration::from_millis(50));
        watched.announce("step 7: gradients, bucket 2 of 3");
        let started = Instant::now();
        let told = watched.barrier().expect_err("too late").to_string();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        for part in ["rank 3 of 5", "step 7: gradients, bucket 2 of 3", "50ms", "ranks.deadline", "--resume auto"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn a_collective_that_cannot_be_opened_tells_why() {
        let fault = TrainError::Launch { what: "not today".into() };
        let open = move || Err::<Single, _>(fault);
        let told = Watched::start(PLACE, open, Duration::from_secs(60), OnStall::Tell).err().expect("no").to_string();
        assert!(told.contains("not today"), "{told}");
    }
}
