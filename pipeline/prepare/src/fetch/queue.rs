//! Who is asked next: as many hosts at a time as possible, none by more requests than it is allowed.

use std::collections::{HashMap, VecDeque};

/// Waiting items by host, and how many of each host are running.
pub(super) struct HostQueue<T> {
    per_host: usize,
    hosts: HashMap<String, Host<T>>,
    /// Hosts that have something waiting and may be asked, in turn.
    ready: VecDeque<String>,
    waiting: usize,
}

struct Host<T> {
    waiting: VecDeque<T>,
    running: usize,
    is_ready: bool,
}

impl<T> HostQueue<T> {
    pub(super) fn new(per_host: usize) -> Self {
        Self { per_host, hosts: HashMap::new(), ready: VecDeque::new(), waiting: 0 }
    }

    /// Items waiting.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    pub(super) fn push(&mut self, host: &str, item: T) {
        let new = || Host { waiting: VecDeque::new(), running: 0, is_ready: false };
        self.hosts.entry(host.to_owned()).or_insert_with(new).waiting.push_back(item);
        self.waiting += 1;
        self.line_up(host);
    }

    /// The next item of the host that waited longest for its turn, from now on running.
    pub(super) fn next(&mut self) -> Option<T> {
        let name = self.ready.pop_front()?;
        let host = self.hosts.get_mut(&name).expect("a host in line is known");
        host.is_ready = false;
        host.running += 1;
        let item = host.waiting.pop_front();
        self.waiting -= 1;
        self.line_up(&name);
        item
    }

    /// One item of `host` is no longer running.
    pub(super) fn release(&mut self, host: &str) {
        let Some(found) = self.hosts.get_mut(host) else { return };
        found.running -= 1;
        match found.running == 0 && found.waiting.is_empty() {
            true => _ = self.hosts.remove(host),
            false => self.line_up(host),
        }
    }

    fn line_up(&mut self, name: &str) {
        let Some(host) = self.hosts.get_mut(name) else { return };
        if !host.is_ready && !host.waiting.is_empty() && host.running < self.per_host {
            host.is_ready = true;
            self.ready.push_back(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_take_turns_and_a_full_one_is_passed_over() {
        let mut queue = HostQueue::new(2);
        for (host, item) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("a", 5)] {
            queue.push(host, item);
        }
        let started: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(started, [1, 4, 2], "two of a, one of b");
        assert_eq!((queue.len(), queue.next()), (2, None));
        queue.release("b");
        assert_eq!(queue.next(), None);
        queue.release("a");
        assert_eq!((queue.next(), queue.next()), (Some(3), None));
    }

    proptest! {
        #[test]
        fn everything_runs_once_and_never_above_the_limit(items in proptest::collection::vec(0u8..4, 0..40), per_host in 1usize..4, released in any::<u64>()) {
            let mut queue = HostQueue::new(per_host);
            let mut draws = vela_types::SeedStream::new(released);
            let (mut running, mut done): (Vec<(u8, usize)>, Vec<usize>) = (Vec::new(), Vec::new());
            items.iter().enumerate().for_each(|(index, host)| queue.push(&host.to_string(), (*host, index)));
            loop {
                while let Some(item) = queue.next() {
                    running.push(item);
                    let same = running.iter().filter(|(host, _)| *host == item.0).count();
                    prop_assert!(same <= per_host);
                }
                if running.is_empty() {
                    break;
                }
                let (host, index) = running.swap_remove(draws.below(running.len() as u64) as usize);
                queue.release(&host.to_string());
                done.push(index);
            }
            done.sort_unstable();
            prop_assert_eq!(done, (0..items.len()).collect::<Vec<_>>());
            prop_assert!(queue.hosts.is_empty() && queue.len() == 0);
        }
    }
}
