//! How long something takes, said while it takes: a bar with an ETA on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal as _,
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const PLAIN_PAUSE: Duration = Duration::from_secs(15);
const REDRAW: Duration = Duration::from_millis(250);

/// One piece of work under way.
#[derive(Debug)]
pub struct Progress {
    what: String,
    started: Instant,
    expected: Option<Duration>,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines { last: Mutex<Instant> },
}

impl Progress {
    /// Work that takes about `expected`.
    pub fn of_time(what: impl Into<String>, expected: Duration) -> Self {
        Self::start(what.into(), Some(expected))
    }

    /// Work that says itself how far it is, by [`Self::say`].
    pub fn of_words(what: impl Into<String>) -> Self {
        Self::start(what.into(), None)
    }

    fn start(what: String, expected: Option<Duration>) -> Self {
        let started = Instant::now();
        let shown = if std::io::stderr().is_terminal() {
            Shown::Bar(bar(&what, expected))
        } else {
            let about =
                expected.map_or_else(String::new, |expected| format!(" (about {} s)", expected.as_secs()));
            eprintln!("{what}{about} …");
            Shown::Lines { last: Mutex::new(started) }
        };
        Self { what, started, expected, shown }
    }

    /// To be called often: says how far the work is, where only lines can be printed now and then.
    pub fn tick(&self) {
        let elapsed = self.started.elapsed();
        let left = self.expected.map(|expected| expected.saturating_sub(elapsed));
        match &self.shown {
            Shown::Bar(bar) => bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)),
            Shown::Lines { last } => say_now_and_then(last, || match left {
                Some(left) if !left.is_zero() => {
                    format!("{}: {} s, about {} s left", self.what, elapsed.as_secs(), left.as_secs())
                }
                Some(_) | None => format!("{}: {} s", self.what, elapsed.as_secs()),
            }),
        }
    }

    /// Says how far the work is, in words; on a terminal at once, else now and then.
    pub fn say(&self, words: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.set_message(words.to_owned()),
            Shown::Lines { last } => say_now_and_then(last, || format!("{}: {words}", self.what)),
        }
    }

    /// The work is done; how long it took.
    pub fn done(self) -> Duration {
        let elapsed = self.started.elapsed();
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
        eprintln!("{}: done in {:.1} s", self.what, elapsed.as_secs_f32());
        elapsed
    }
}

fn bar(what: &str, expected: Option<Duration>) -> ProgressBar {
    let length = expected.and_then(|expected| u64::try_from(expected.as_millis()).ok());
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
    let template = if length.is_some() {
        "{spinner} {prefix} [{bar:30}] {elapsed}, ETA {eta}"
    } else {
        "{spinner} {prefix} {elapsed}: {msg}"
    };
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(REDRAW);
    bar
}

fn say_now_and_then(last: &Mutex<Instant>, words: impl FnOnce() -> String) {
    if let Ok(mut last) = last.lock()
        && last.elapsed() >= PLAIN_PAUSE
    {
        *last = Instant::now();
        eprintln!("{}", words());
    }
}
