//! The resident memory of a soak's processes, over its time. Owns the sampling and the comparison.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::task::JoinSet;

use crate::{bench::median, process::ProcessId, run_folder::RunFolder};

const PAUSE: Duration = Duration::from_secs(2);
/// What memory may grow from the second quarter to the last.
const GROWTH_PERCENT_MAX: f64 = 5.0;
/// In less time, processes are still warming up: the growth is shown and not judged.
const JUDGED_FROM: Duration = Duration::from_secs(20 * 60);
/// Roles by what the names of their processes begin with.
const ROLES: [(&str, Role); 2] = [("operator-", Role::Operator), ("order-", Role::OrderService)];

/// Whose memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    /// longshore-operator, whichever process it was at the time.
    Operator,
    /// order.
    OrderService,
    /// This process: shown, not judged.
    Harness,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Duration,
    role: Role,
    pid: u32,
    kib: u64,
}

/// Samples until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    started: Instant,
    samples: Arc<Mutex<Vec<Sample>>>,
    _sampling: JoinSet<()>,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Memory {
    /// What is compared with what.
    compared: &'static str,
    growth_percent_max: f64,
    /// Whether growth beyond that is a fault: only in a long enough soak.
    judged: bool,
    /// By role, the quarters of the soak.
    soak: BTreeMap<Role, Quarters>,
    /// The quarters of the life of each process that lived for at least a quarter of the soak.
    lives: Vec<Life>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Quarters {
    /// Median VmRSS; none where there is no sample.
    median_kib: [Option<f64>; 4],
    /// Of the last over the second.
    growth_percent: Option<f64>,
    peak_kib: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Life {
    role: Role,
    pid: u32,
    from_seconds: f64,
    to_seconds: f64,
    #[serde(flatten)]
    quarters: Quarters,
}

impl Watch {
    /// Begins to sample. Must be called inside a tokio runtime.
    pub(super) fn start() -> Self {
        let started = Instant::now();
        let samples = Arc::new(Mutex::new(Vec::new()));
        let mut sampling = JoinSet::new();
        let into = Arc::clone(&samples);
        sampling.spawn(async move {
            loop {
                let taken = sample(started.elapsed());
                into.lock().unwrap_or_else(PoisonError::into_inner).extend(taken);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { started, samples, _sampling: sampling }
    }

    /// What was seen so far.
    pub(super) fn report(&self) -> Memory {
        Memory::new(&self.samples.lock().unwrap_or_else(PoisonError::into_inner), self.started.elapsed())
    }
}

/// All that runs now.
fn sample(at: Duration) -> Vec<Sample> {
    let own = ProcessId::of(std::process::id()).map(|own| (Role::Harness, own));
    let children = RunFolder::current().and_then(RunFolder::processes).unwrap_or_default();
    let children = children.into_iter().filter_map(|(name, process)| {
        let (_, role) = ROLES.into_iter().find(|(start, _)| name.starts_with(start))?;
        Some((role, process))
    });
    let resident = |(role, process): (Role, ProcessId)| {
        Some(Sample { at, role, pid: process.pid(), kib: process.memory_kib("VmRSS")? })
    };
    children.chain(own).filter_map(resident).collect()
}

impl Memory {
    fn new(samples: &[Sample], whole: Duration) -> Self {
        let mut by_role: BTreeMap<Role, Vec<Sample>> = BTreeMap::new();
        let mut by_process: BTreeMap<(Role, u32), Vec<Sample>> = BTreeMap::new();
        for sample in samples {
            by_role.entry(sample.role).or_default().push(*sample);
            by_process.entry((sample.role, sample.pid)).or_default().push(*sample);
        }
        let quarters =
            |(role, samples): (Role, Vec<Sample>)| (role, Quarters::new(&samples, Duration::ZERO, whole));
        let mut lives: Vec<Life> = by_process.into_values().filter_map(|of| Life::new(&of, whole)).collect();
        lives.sort_by(|one, other| one.from_seconds.total_cmp(&other.from_seconds));
        Self {
            compared: "median VmRSS of the last quarter against that of the second: of the soak, and of each long life",
            growth_percent_max: GROWTH_PERCENT_MAX,
            judged: whole >= JUDGED_FROM,
            soak: by_role.into_iter().map(quarters).collect(),
            lives,
        }
    }

    /// What grew too much, in words.
    pub(super) fn faults(&self) -> Vec<String> {
        let soak = self.soak.iter().map(|(role, quarters)| (*role, "the soak".to_owned(), quarters));
        let lives =
            self.lives.iter().map(|life| (life.role, format!("process {}", life.pid), &life.quarters));
        let grown = soak.chain(lives).filter_map(|(role, of, quarters)| {
            let growth = quarters.growth_percent.filter(|growth| *growth > GROWTH_PERCENT_MAX)?;
            let judged = self.judged && role != Role::Harness;
            judged.then(|| format!("{role:?}: memory grew by {growth:.1} % in {of}"))
        });
        let mut faults: Vec<String> = grown.collect();
        for role in [Role::Operator, Role::OrderService] {
            let known = self.soak.get(&role).is_some_and(|quarters| quarters.growth_percent.is_some());
            if self.judged && !known {
                faults.push(format!("{role:?}: memory was not seen in both quarters"));
            }
        }
        faults
    }
}

impl Quarters {
    fn new(samples: &[Sample], from: Duration, to: Duration) -> Self {
        let length = (to.saturating_sub(from).as_secs_f64() / 4.0).max(f64::MIN_POSITIVE);
        let mut quarters: [Vec<f64>; 4] = Default::default();
        for sample in samples {
            let at = sample.at.saturating_sub(from).as_secs_f64();
            let quarter = (1..4).filter(|quarter| at >= length * f64::from(*quarter)).count();
            quarters[quarter].push(sample.kib as f64);
        }
        let median_kib = quarters.map(|each| (!each.is_empty()).then(|| median(&each)));
        let growth_percent =
            median_kib[1].zip(median_kib[3]).map(|(second, last)| 100.0 * (last / second - 1.0));
        let peak_kib = samples.iter().map(|sample| sample.kib).max().unwrap_or(0);
        Self { median_kib, growth_percent, peak_kib }
    }
}

impl Life {
    /// None for a short one.
    fn new(samples: &[Sample], whole: Duration) -> Option<Self> {
        let (first, last) = (samples.first()?, samples.last()?);
        let long = (last.at - first.at) * 4 >= whole;
        long.then(|| Self {
            role: first.role,
            pid: first.pid,
            from_seconds: first.at.as_secs_f64(),
            to_seconds: last.at.as_secs_f64(),
            quarters: Quarters::new(samples, first.at, last.at),
        })
    }
}

impl fmt::Display for Quarters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |kib: &Option<f64>| kib.map_or("-".to_owned(), |kib| format!("{:.1}", kib / 1024.0));
        let each: Vec<String> = self.median_kib.iter().map(mib).collect();
        let growth = self.growth_percent.map_or("-".to_owned(), |growth| format!("{growth:+.1} %"));
        write!(
            f,
            "{} MiB, last over second {growth}, peak {:.1}",
            each.join(" "),
            self.peak_kib as f64 / 1024.0
        )
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let judged = if self.judged { "judged" } else { "not judged: too short" };
        writeln!(f, "memory      {} ({judged})", self.compared)?;
        for (role, quarters) in &self.soak {
            writeln!(f, "  {:<42} {quarters}", format!("{role:?}"))?;
        }
        for Life { role, pid, from_seconds, to_seconds, quarters } in &self.lives {
            let life = format!("{role:?} {pid}, {from_seconds:.0} s to {to_seconds:.0} s");
            writeln!(f, "  {life:<42} {quarters}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Duration = Duration::from_secs(3_600);

    /// A sample a minute, of a process that has so many KiB at each minute of the soak.
    fn samples(role: Role, pid: u32, kib: impl Fn(u64) -> u64, minutes: std::ops::Range<u64>) -> Vec<Sample> {
        minutes.map(|at| Sample { at: Duration::from_secs(60 * at), role, pid, kib: kib(at) }).collect()
    }

    #[test]
    fn growth_within_bounds_is_no_fault() {
        let mut all = samples(Role::Operator, 1, |at| 10_000 + at, 0..60);
        all.extend(samples(Role::OrderService, 2, |_| 20_000, 0..60));
        all.extend(samples(Role::Harness, 3, |at| 1_000 * (at + 1), 0..60));
        assert_eq!(Memory::new(&all, WHOLE).faults(), Vec::<String>::new());
    }

    #[test]
    fn growth_of_the_soak_or_within_a_life_is_a_fault() {
        let steady = samples(Role::OrderService, 2, |_| 20_000, 0..60);
        let mut leak = samples(Role::Operator, 1, |at| 10_000 + 50 * at, 0..60);
        leak.extend(steady.clone());
        assert_eq!(Memory::new(&leak, WHOLE).faults().len(), 2, "in the soak, and in the one life");
        // Each starts small again: alike in the soak's quarters, but not in the life of the second.
        let mut reborn = samples(Role::Operator, 1, |at| 10_000 + 100 * at, 0..30);
        reborn.extend(samples(Role::Operator, 4, |at| 10_000 + 100 * (at - 30), 30..60));
        reborn.extend(steady.clone());
        let faults = Memory::new(&reborn, WHOLE).faults();
        assert!(faults.iter().any(|fault| fault.contains("process 4")), "{faults:?}");
        assert_eq!(Memory::new(&steady, WHOLE).faults(), ["Operator: memory was not seen in both quarters"]);
        assert!(Memory::new(&leak, Duration::from_secs(300)).faults().is_empty(), "too short to be judged");
    }
}
