//! How far a long command is: a bar on a terminal, a plain line now and then otherwise. Always on stderr.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Plain lines come no closer together than this.
const LINE_PERIOD: Duration = Duration::from_secs(5);

/// A counter shown to whoever runs the command. Clones share it; counting is cheap from any thread.
#[derive(Clone)]
pub struct Progress {
    inner: Arc<Inner>,
}

struct Inner {
    label: String,
    total: AtomicU64,
    count: AtomicU64,
    /// Counted by an earlier process; no part of the rate.
    before: AtomicU64,
    /// Said at the end of the line.
    message: Mutex<String>,
    /// When the counting began; the time before the total was known is no part of the rate.
    started: Mutex<Instant>,
    face: Face,
}

enum Face {
    Bar(ProgressBar),
    /// When the last line was written.
    Lines(Mutex<Instant>),
    Hidden,
}

/// The screen's bars, shared by the process so that log lines can step aside.
pub(crate) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

impl Progress {
    /// Starts counting `label`, up to `total` where it is known.
    pub fn new(label: &str, total: Option<u64>) -> Self {
        let face = match std::io::stderr().is_terminal() {
            true => Face::Bar(bars().add(new_bar(label, total))),
            false => Face::Lines(Mutex::new(Instant::now())),
        };
        Self::with_face(label, total, face)
    }

    /// Counts and shows nothing: for tests and for a caller that has its own progress.
    pub fn hidden() -> Self {
        Self::with_face("", None, Face::Hidden)
    }

    fn with_face(label: &str, total: Option<u64>, face: Face) -> Self {
        let (total, count, before) = (AtomicU64::new(total.unwrap_or(0)), AtomicU64::new(0), AtomicU64::new(0));
        let (label, message, started) = (label.to_owned(), Mutex::default(), Mutex::new(Instant::now()));
        Self { inner: Arc::new(Inner { label, total, count, before, message, started, face }) }
    }

    /// Sets the total once it is known. The time of the rate begins here, if nothing has been counted yet.
    pub fn set_total(&self, total: u64) {
        self.inner.total.store(total, Ordering::Relaxed);
        let is_first = self.count() == 0;
        if is_first {
            *self.inner.started.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        if let Face::Bar(bar) = &self.inner.face {
            bar.set_length(total);
            if is_first {
                bar.reset_elapsed();
            }
        }
    }

    /// Takes `num` as counted before this process: the rate begins with what comes now.
    pub fn resume_at(&self, num: u64) {
        self.inner.before.store(num, Ordering::Relaxed);
        self.inner.count.store(num, Ordering::Relaxed);
        *self.inner.started.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if let Face::Bar(bar) = &self.inner.face {
            bar.set_position(num);
            bar.reset_eta();
        }
    }

    /// Sets what the line ends with from now on.
    pub fn set_message(&self, text: &str) {
        text.clone_into(&mut self.inner.message.lock().unwrap_or_else(PoisonError::into_inner));
        if let Face::Bar(bar) = &self.inner.face {
            bar.set_message(text.to_owned());
        }
    }

    /// Counts `num` more.
    pub fn inc(&self, num: u64) {
        self.inner.count.fetch_add(num, Ordering::Relaxed);
        match &self.inner.face {
            Face::Bar(bar) => bar.inc(num),
            Face::Lines(last) => self.write_line_if_due(last),
            Face::Hidden => {}
        }
    }

    /// What has been counted so far.
    pub fn count(&self) -> u64 {
        self.inner.count.load(Ordering::Relaxed)
    }

    /// Writes one line beside the bar, at once.
    pub fn note(&self, text: &str) {
        match &self.inner.face {
            Face::Bar(bar) => bar.suspend(|| write_line(text)),
            Face::Lines(_) => write_line(text),
            Face::Hidden => {}
        }
    }

    /// Shows the last state and lets go of the screen.
    pub fn finish(&self) {
        match &self.inner.face {
            Face::Bar(bar) => bar.finish(),
            Face::Lines(_) => write_line(&self.line()),
            Face::Hidden => {}
        }
    }

    fn write_line_if_due(&self, last: &Mutex<Instant>) {
        // Whoever holds the lock is writing the line already.
        let Ok(mut last) = last.try_lock() else { return };
        if last.elapsed() >= LINE_PERIOD {
            *last = Instant::now();
            write_line(&self.line());
        }
    }

    fn elapsed(&self) -> Duration {
        self.inner.started.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn line(&self) -> String {
        let Inner { label, total, before, message, .. } = &*self.inner;
        let (count, total, seconds) = (self.count(), total.load(Ordering::Relaxed), self.elapsed().as_secs_f64());
        let rate = count.saturating_sub(before.load(Ordering::Relaxed)) as f64 / seconds.max(1e-9);
        let message = message.lock().unwrap_or_else(PoisonError::into_inner);
        let space = if message.is_empty() { "" } else { " " };
        match total {
            0 => format!("{label}: {count} in {seconds:.0} s ({rate:.1}/s){space}{message}"),
            total if rate > 0.0 && count < total => {
                let left = (total - count) as f64 / rate;
                format!("{label}: {count}/{total} in {seconds:.0} s ({rate:.1}/s, {left:.0} s left){space}{message}")
            }
            total => format!("{label}: {count}/{total} in {seconds:.0} s ({rate:.1}/s){space}{message}"),
        }
    }
}

fn new_bar(label: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => {
            (ProgressBar::new(total), "{prefix} [{bar:30}] {human_pos}/{human_len} {per_sec} eta {eta} {msg}")
        }
        None => (ProgressBar::new_spinner(), "{prefix} {spinner} {human_pos} {per_sec} {elapsed}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> ")).with_prefix(label.to_owned())
}

/// A closed stderr must not end a long run, so the failure is let go.
fn write_line(text: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_count_together_from_many_threads() {
        let progress = Progress::hidden();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let progress = progress.clone();
                scope.spawn(move || (0..1000).for_each(|_| progress.inc(2)));
            }
        });
        assert_eq!(progress.count(), 8000);
    }

    #[test]
    fn the_time_before_the_total_is_known_is_no_part_of_the_rate() {
        let progress = Progress::hidden();
        std::thread::sleep(Duration::from_millis(30));
        progress.set_total(10);
        assert!(progress.elapsed() < Duration::from_millis(20), "{:?}", progress.elapsed());
        progress.inc(1);
        std::thread::sleep(Duration::from_millis(30));
        progress.set_total(20);
        assert!(progress.elapsed() >= Duration::from_millis(30), "{:?}", progress.elapsed());
    }

    #[test]
    fn the_plain_line_names_label_count_and_total() {
        let progress = Progress::with_face("images", Some(10), Face::Lines(Mutex::new(Instant::now())));
        progress.inc(4);
        assert!(progress.line().starts_with("images: 4/10 in 0 s"), "{}", progress.line());
        progress.set_total(20);
        assert!(progress.line().starts_with("images: 4/20 in"));
    }

    #[test]
    fn what_an_earlier_process_counted_is_no_part_of_the_rate_or_the_time_left() {
        let progress = Progress::with_face("step", Some(1010), Face::Lines(Mutex::new(Instant::now())));
        progress.resume_at(1000);
        std::thread::sleep(Duration::from_millis(50));
        progress.inc(1);
        progress.set_message("loss 2.5");
        let line = progress.line();
        assert!(line.starts_with("step: 1001/1010 in 0 s (") && line.ends_with(" s left) loss 2.5"), "{line}");
        let rate: f64 = line.split(['(', '/']).nth(2).and_then(|rate| rate.parse().ok()).expect("a rate");
        assert!(rate > 0.0 && rate <= 20.0, "{line}");
    }
}
