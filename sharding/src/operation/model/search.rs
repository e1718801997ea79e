//! Breadth first through every state that a model can reach; and whether the end can be reached from each of them.

use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use super::{Model, Operator, Step, Violation, World};

/// 128 bits stand for a state: among a hundred million the chance that any two are alike is one in 10²².
type Fingerprint = u128;

fn fingerprint(world: &World) -> Fingerprint {
    let half = |seed: u64| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        world.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

/// What a complete search found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) states: usize,
    pub(super) steps: usize,
    pub(super) depth: usize,
    pub(super) ends: usize,
    /// How often `next` was asked: once for each pair of views.
    pub(super) decisions: usize,
    pub(super) took: Duration,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, depth, ends, decisions, took } = self;
        write!(f, "{states} states, {steps} steps between them, depth {depth}, {ends} ends, ")?;
        write!(f, "{decisions} decisions of next, {:.1} s", took.as_secs_f32())
    }
}

/// The shortest way to a state that must not be.
pub(super) struct Counterexample {
    pub(super) violation: Violation,
    way: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, after {} steps:", self.violation, self.way.len())?;
        self.way.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

/// Everything seen so far, by number in order of discovery.
struct Search<'a> {
    model: &'a Model,
    numbers: HashMap<Fingerprint, u32>,
    /// From where each state was first reached, and by which of its successors.
    parents: Vec<(u32, u8)>,
    /// Steps that happen by themselves: (from, to).
    certain: Vec<(u32, u32)>,
    ends: Vec<u32>,
    steps: usize,
}

/// Looks at every state.
///
/// # Errors
/// The shortest way to a state that violates what must hold, or from which no end can be reached.
pub(super) fn search(model: &Model) -> Result<Found, Counterexample> {
    let started = Instant::now();
    let (mut layer, mut depth) = (vec![model.start()], 0);
    let mut search = Search {
        model,
        numbers: [(fingerprint(&model.start()), 0)].into(),
        parents: vec![(0, 0)],
        certain: Vec::new(),
        ends: Vec::new(),
        steps: 0,
    };
    let mut first = 0;
    loop {
        let next = search.expand(&layer, first)?;
        if next.is_empty() {
            break;
        }
        first += u32::try_from(layer.len()).expect("fewer states than that");
        (layer, depth) = (next, depth + 1);
    }
    search.expect_ends()?;
    Ok(Found {
        states: search.numbers.len(),
        steps: search.steps,
        depth,
        ends: search.ends.len(),
        decisions: model.choices.borrow().len(),
        took: started.elapsed(),
    })
}

impl Search<'_> {
    /// The states that are first reached from those of a layer, which are numbered from `first`.
    fn expand(&mut self, layer: &[World], first: u32) -> Result<Vec<World>, Counterexample> {
        let mut next = Vec::new();
        for (from, world) in (first..).zip(layer) {
            if self.model.is_end(world) {
                self.ends.push(from);
            }
            for (which, (step, after)) in (0..).zip(self.model.successors(world)) {
                let after = after.map_err(|violation| self.explain(violation, from, Some(which)))?;
                let new = u32::try_from(self.parents.len()).expect("fewer states than that");
                let to = *self.numbers.entry(fingerprint(&after)).or_insert(new);
                if to == new {
                    self.parents.push((from, which));
                    next.push(after);
                }
                self.steps += 1;
                if step.is_certain() {
                    self.certain.push((from, to));
                }
            }
        }
        Ok(next)
    }

    /// Whether an end can be reached from every state without another fault or client: nothing is stuck, nothing goes
    /// round for ever.
    fn expect_ends(&self) -> Result<(), Counterexample> {
        let states = self.parents.len();
        let mut starts = vec![0_u32; states + 1];
        for (_, to) in &self.certain {
            starts[*to as usize + 1] += 1;
        }
        for at in 0..states {
            starts[at + 1] += starts[at];
        }
        let (mut into, mut filled) = (vec![0; self.certain.len()], starts.clone());
        for (from, to) in &self.certain {
            into[filled[*to as usize] as usize] = *from;
            filled[*to as usize] += 1;
        }
        let (mut leads, mut open) = (vec![false; states], self.ends.clone());
        while let Some(state) = open.pop() {
            if !std::mem::replace(&mut leads[state as usize], true) {
                let range = starts[state as usize] as usize..starts[state as usize + 1] as usize;
                open.extend(&into[range]);
            }
        }
        match (0..).zip(leads).find(|(_, leads)| !leads) {
            Some((stuck, _)) => Err(self.explain("no end can be reached any more", stuck, None)),
            None => Ok(()),
        }
    }

    /// Walks from the start to a state once more, and to one of its successors.
    fn explain(&self, violation: Violation, mut state: u32, last: Option<u8>) -> Counterexample {
        let mut choices: Vec<u8> = last.into_iter().collect();
        while state != 0 {
            let (from, which) = self.parents[state as usize];
            choices.push(which);
            state = from;
        }
        let (mut world, mut way) = (self.model.start(), Vec::new());
        for which in choices.into_iter().rev() {
            let (step, after) = self.model.successors(&world).swap_remove(usize::from(which));
            way.push(self.describe(step, &world));
            if let Ok(after) = after {
                world = after;
            }
        }
        way.push(format!(
            "{:?} {:?} {:?}",
            world.shards,
            world.pipes,
            world.journals.map(|j| self.model.course(j))
        ));
        Counterexample { violation, way }
    }

    fn describe(&self, step: Step, world: &World) -> String {
        let action = |index: u8| self.model.actions.borrow()[usize::from(index)].clone();
        let under_way = match (step, world.operator) {
            (Step::Act { .. } | Step::Crash | Step::Cut, Operator::Decided(index)) => Some(index),
            (step, _) => {
                if let Step::Ghost(ghost) = step {
                    Some(world.ghosts[ghost])
                } else {
                    None
                }
            }
        };
        under_way.map_or_else(|| format!("{step:?}"), |index| format!("{step:?}: {:?}", action(index)))
    }
}
