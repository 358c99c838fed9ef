//! How long to wait before asking again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use vela_types::SeedStream;

/// Waits that double from one attempt to the next, spread so that requests which failed together do not return together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// Upper end of the first wait.
    pub(crate) first: Duration,
    /// No wait is longer.
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The wait after attempt `attempt` (from 1) of `key`: between half and all of `first * 2^(attempt - 1)`, and no less than
    /// the server `asked` for. `None` if that is longer than anybody waits here.
    pub(crate) fn wait(&self, attempt: u32, key: &str, asked: Option<Duration>) -> Option<Duration> {
        let doubled = self.first.saturating_mul(1 << (attempt - 1).min(20)).min(self.longest);
        let spread = SeedStream::named(u64::from(attempt), "retry", key).unit_f64();
        let own = doubled.mul_f64(0.5 + 0.5 * spread);
        match asked {
            Some(asked) if asked > self.longest => None,
            asked => Some(own.max(asked.unwrap_or_default())),
        }
    }
}

/// The wait that a `Retry-After` header asks for: whole seconds or an HTTP date (RFC 9110, section 10.2.3).
pub(crate) fn asked_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(http_date(text)?))?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that servers may send.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.split_once(", ")?;
    let mut parts = date.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok()?;
    let mut clock = parts.next()?.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let is_sound = (1970..=9999).contains(&year) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    (is_sound && parts.next() == Some("GMT"))
        .then(|| days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// Days of the Gregorian calendar; years are counted from March, so that a leap day is the last day of one.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719,468 days from 1 March of year 0 to 1970; five months from March on have 153 days.
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_differ_by_key() {
        let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(10) };
        for attempt in 1..40 {
            let whole = 2f64.powi(attempt as i32 - 1).min(10.0);
            let wait = backoff.wait(attempt, "a", None).expect("no server asked").as_secs_f64();
            assert!((whole / 2.0..=whole).contains(&wait), "attempt {attempt}: {wait}");
        }
        assert_ne!(backoff.wait(1, "a", None), backoff.wait(1, "b", None));
    }

    #[test]
    fn what_the_server_asks_for_is_a_lower_bound_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(10), longest: Duration::from_secs(10) };
        assert_eq!(backoff.wait(1, "a", Some(Duration::from_secs(3))), Some(Duration::from_secs(3)));
        assert_eq!(backoff.wait(1, "a", Some(Duration::from_secs(11))), None);
        assert!(backoff.wait(9, "a", Some(Duration::ZERO)) >= Some(Duration::from_secs(1)));
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let asked = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("a header"));
            asked_wait(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(asked("120"), Some(120));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(asked("Tue, 29 Feb 2028 00:00:00 GMT"), Some(1_835_395_200 - 784_111_777));
        assert_eq!(asked("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0), "long past");
        for text in ["", "soon", "-1", "1.5", "Sun, 06 Nov 1994 08:49:37", "Sun, 99 Foo 1994 08:49:37 GMT"] {
            assert_eq!(asked(text), None, "{text}");
        }
    }
}
