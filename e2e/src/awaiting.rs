//! The one way to wait: for a condition, with a deadline. A failure says what was awaited and shows the logs.

use std::{
    fmt,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const POLL_PAUSE_MIN: Duration = Duration::from_millis(20);
/// What has been awaited for long is asked about less often: to ask is work, also for those who should get on.
const POLL_PAUSE_MAX: Duration = Duration::from_millis(250);
/// Of the time waited so far, what the next pause is.
const POLL_PAUSE_PART: u32 = 50;
const LOG_TAIL_LINES: usize = 25;
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// What is awaited, and the logs that would tell why it does not come.
#[derive(Clone, Debug)]
pub struct What {
    text: String,
    logs: Vec<PathBuf>,
}

impl What {
    /// Something awaited; `text` completes "gave up after 10 s waiting for …".
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), logs: Vec::new() }
    }

    /// Show the end of this log if the wait fails.
    pub fn log(mut self, log: impl Into<PathBuf>) -> Self {
        self.logs.push(log.into());
        self
    }
}

impl From<&str> for What {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for What {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Asks again and again until `condition` answers, at most for `deadline`.
pub async fn await_condition<T>(
    what: impl Into<What>,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let what = what.into();
    let started = Instant::now();
    let asking = async {
        loop {
            if let Some(answer) = condition().await {
                return answer;
            }
            let pause = started.elapsed() / POLL_PAUSE_PART;
            tokio::time::sleep(pause.clamp(POLL_PAUSE_MIN, POLL_PAUSE_MAX)).await;
        }
    };
    // A condition that itself hangs must not outlive the deadline, hence the timeout around the whole loop.
    match tokio::time::timeout(deadline, asking).await {
        Ok(answer) => Ok(answer),
        Err(_) => {
            let seconds = started.elapsed().as_secs_f32();
            let logs: String = what.logs.iter().map(|log| describe_log(log)).collect();
            bail!("gave up after {seconds:.1} s waiting for {what}{logs}")
        }
    }
}

/// The last lines of a log, headed by its path; for error messages.
pub fn describe_log(log: &Path) -> String {
    match tail(log) {
        Ok(tail) if tail.is_empty() => format!("\n--- {} is empty", log.display()),
        Ok(tail) => format!("\n--- end of {}:\n{tail}", log.display()),
        Err(error) => format!("\n--- {} cannot be read: {error}", log.display()),
    }
}

fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_as_soon_as_the_condition_does() {
        let mut asked = 0;
        let answer = await_condition("the third time", Duration::from_secs(5), async || {
            asked += 1;
            (asked == 3).then_some(asked)
        });
        assert_eq!(answer.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_failure_says_what_was_awaited_and_shows_the_log() {
        let log = std::env::temp_dir().join(format!("longshore-awaiting-{}.log", std::process::id()));
        std::fs::write(&log, "one\nthe reason\n").unwrap();
        let what = What::new("a server that never comes").log(&log);
        let error = await_condition(what, Duration::from_millis(30), async || None::<()>).await.unwrap_err();
        std::fs::remove_file(&log).unwrap();
        let message = error.to_string();
        assert!(message.contains("waiting for a server that never comes"), "{message}");
        assert!(message.contains("the reason"), "{message}");
    }

    #[tokio::test]
    async fn a_condition_that_hangs_does_not_outlive_the_deadline() {
        let hangs = async || std::future::pending::<Option<()>>().await;
        assert!(await_condition("nothing", Duration::from_millis(30), hangs).await.is_err());
    }
}
