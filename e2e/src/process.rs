//! One child process: started, watched, stopped, frozen or killed by its pid, and ended with the harness.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::{
    awaiting::{What, await_condition, describe_log},
    run_folder::RunFolder,
};

const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A process on this machine. The start time tells it from a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    pid: u32,
    /// In clock ticks since boot, as /proc says.
    started: u64,
}

impl ProcessId {
    /// The process that has this pid now; none if there is none, or only what awaits its parent's notice.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = Stat::of(pid)?;
        (stat.state != "Z").then_some(Self { pid, started: stat.started })
    }

    /// Its pid.
    pub fn pid(self) -> u32 {
        self.pid
    }

    /// Whether it still runs.
    pub fn is_running(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal, unless the process is gone already.
    pub fn signal(self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid.cast_signed()).filter(|_| self.is_running()) else {
            return Ok(());
        };
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("failed to signal process {}", self.pid)),
        }
    }

    /// A size of its memory as /proc/PID/status has it, for example `VmRSS` or `VmHWM`.
    pub(crate) fn memory_kib(self, field: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    }

    /// What it and all that descend from it have used of processors so far, those included that have ended.
    pub(crate) fn family_cpu(self) -> Duration {
        let ticks: u64 =
            self.family().into_iter().filter_map(|member| Some(Stat::of(member.pid)?.ticks)).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// It and all that descend from it.
    pub(crate) fn family(self) -> Vec<Self> {
        let mut children: HashMap<u32, Vec<Self>> = HashMap::new();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            if let Some(stat) = Stat::of(pid) {
                children.entry(stat.parent).or_default().push(Self { pid, started: stat.started });
            }
        }
        let mut family = vec![self];
        let mut next = 0;
        while let Some(member) = family.get(next) {
            family.extend(children.remove(&member.pid).into_iter().flatten());
            next += 1;
        }
        family
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for ProcessId {
    type Err = anyhow::Error;

    fn from_str(record: &str) -> Result<Self> {
        let (pid, started) = record.trim().split_once(' ').context("a record is \"PID START\"")?;
        Ok(Self { pid: pid.parse()?, started: started.parse()? })
    }
}

/// What /proc tells of a process.
struct Stat {
    state: String,
    parent: u32,
    started: u64,
    /// Of processor time, its own and that of its children that have ended.
    ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name may hold blanks and parentheses: what follows its last one is regular.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let [state, parent] = [fields.first()?, fields.get(1)?];
        Some(Self {
            state: (*state).to_owned(),
            parent: parent.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
            ticks: fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum(),
        })
    }
}

/// A child process of the harness. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    id: ProcessId,
    log: PathBuf,
    record: PathBuf,
    child: Mutex<Child>,
}

impl Process {
    /// Starts `command` in a process group of its own, so that the interrupt key of a terminal does not
    /// reach it; what it prints is appended to the log of that name in the run's folder.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        let run = RunFolder::current()?;
        let log = run.log(name);
        let output = File::options().create(true).append(true).open(&log)?;
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| {
                format!("failed to start {name} ({})", command.get_program().to_string_lossy())
            })?;
        let Some(id) = Stat::of(child.id()).map(|stat| ProcessId { pid: child.id(), started: stat.started })
        else {
            let _ = child.kill();
            bail!("failed to read when {name} started");
        };
        let record = run.record(name, id)?;
        Ok(Self { name: name.to_owned(), id, log, record, child: Mutex::new(child) })
    }

    /// Its name, as given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its pid and start time.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> io::Result<Option<ExitStatus>> {
        self.child().try_wait()
    }

    /// Fails, with the end of its log, unless it still runs.
    pub fn expect_running(&self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {status}{}", self.name, describe_log(&self.log)),
        }
    }

    /// kill -9, and waits until it is gone. Its own children are not touched: see [`Self::kill_family`].
    pub async fn kill9(&self) -> Result<()> {
        self.id.signal(Signal::KILL)?;
        self.await_end("to be gone after kill -9", KILL_DEADLINE).await?;
        Ok(())
    }

    /// kill -9 it and wait until it and the children it had are gone: they are expected to notice.
    pub async fn kill9_and_await_family(&self, deadline: Duration) -> Result<()> {
        let family = self.id.family();
        self.kill9().await?;
        let what =
            What::new(format!("the children of {} to notice that it is gone", self.name)).log(&self.log);
        await_condition(what, deadline, async || family.iter().all(|id| !id.is_running()).then_some(())).await
    }

    /// Asks it to end (SIGTERM) and waits; an error if it does not within the deadline.
    pub async fn terminate(&self, deadline: Duration) -> Result<ExitStatus> {
        self.signal_and_await_end(Signal::TERM, deadline).await
    }

    /// Sends a signal that ends it, and waits.
    pub async fn signal_and_await_end(&self, signal: Signal, deadline: Duration) -> Result<ExitStatus> {
        self.id.signal(signal)?;
        self.await_end("to end when asked", deadline).await
    }

    /// Freezes it (SIGSTOP) until [`Self::resume`].
    pub fn pause(&self) -> Result<()> {
        self.id.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) -> Result<()> {
        self.id.signal(Signal::CONT)
    }

    async fn await_end(&self, what: &str, deadline: Duration) -> Result<ExitStatus> {
        let what = What::new(format!("{} {what}", self.name)).log(&self.log);
        Ok(await_condition(what, deadline, async || self.ended().transpose()).await??)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its descendants too: a server's children would go on writing into a folder about to be removed.
        for member in self.id.family() {
            let _ = member.signal(Signal::KILL);
        }
        let _ = self.child().wait();
        let _ = fs::remove_file(&self.record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(name: &str) -> Process {
        Process::spawn(name, Command::new("sleep").arg("1000")).unwrap()
    }

    #[tokio::test]
    async fn a_killed_process_is_gone() {
        let process = sleeper("killed");
        process.expect_running().unwrap();
        process.kill9().await.unwrap();
        assert!(!process.id().is_running());
        assert!(process.expect_running().unwrap_err().to_string().contains("killed ended by itself"));
    }

    #[tokio::test]
    async fn a_process_that_ignores_being_asked_is_reported_and_killed_on_drop() {
        let process =
            Process::spawn("deaf", Command::new("sh").args(["-c", "trap '' TERM; echo deaf; sleep 1000; :"]))
                .unwrap();
        let heard = What::new("the trap").log(process.log());
        let said = async || fs::read_to_string(process.log()).ok().filter(|log| !log.is_empty());
        await_condition(heard, Duration::from_secs(5), said).await.unwrap();
        let error = process.terminate(Duration::from_millis(100)).await.unwrap_err();
        assert!(error.to_string().contains("waiting for deaf to end when asked"), "{error}");
        let family = process.id().family();
        assert!(family.len() == 2, "the shell and its child: {family:?}");
        drop(process);
        let gone = async || family.iter().all(|id| !id.is_running()).then_some(());
        await_condition("the family to be gone", Duration::from_secs(5), gone).await.unwrap();
    }

    #[tokio::test]
    async fn a_paused_process_goes_on_when_resumed() {
        let process = sleeper("paused");
        process.pause().unwrap();
        let state = |wanted: &'static str| {
            let pid = process.id().pid();
            await_condition(format!("state {wanted}"), Duration::from_secs(5), async move || {
                Stat::of(pid).filter(|stat| stat.state == wanted).map(|_| ())
            })
        };
        state("T").await.unwrap();
        process.resume().unwrap();
        state("S").await.unwrap();
        process.terminate(Duration::from_secs(5)).await.unwrap();
    }

    #[test]
    fn our_own_memory_and_processor_time_are_read() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert!(own.memory_kib("VmRSS").unwrap() > 0 && own.memory_kib("VmNothing").is_none());
        while own.family_cpu() == Duration::ZERO {} // until the first tick
    }

    #[test]
    fn a_record_reads_back() {
        let id = ProcessId { pid: 12, started: 345 };
        assert_eq!(id.to_string().parse::<ProcessId>().unwrap(), id);
    }
}
