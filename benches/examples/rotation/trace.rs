//! Traces of what a CI asks a build cache for.
//!
//! A code base of projects, each a run of targets. A target has an action result and some outputs; a change gives it new ones.
//! Changes come on branches off recent or older commits of the main line; a branch is built some times, then merged or left. Builds
//! ask for the targets of a few projects and for those of the base, on agents that keep nothing. Each night everything is built on
//! the main line; some projects are built at no other time. Release branches are built whole every third day. Scans (fuzzing,
//! coverage) store what nobody asks for again.
//!
//! Always true here: a trace follows from its parameters alone; no step names an object twice; what is asked for does not depend
//! on what was found.

use crate::sizes;
use blockstore_tests::blob::Random;
use std::{collections::VecDeque, ops::Range, rc::Rc};

/// What a trace is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameters {
    pub(crate) seed: u64,
    /// Days, each ending with a full build.
    pub(crate) days: u32,
    /// Targets of the code base; those of a project are [`PROJECT_TARGETS`].
    pub(crate) targets: u32,
    /// Branches opened a day.
    pub(crate) branches: u32,
    /// Bytes that a day's scans store, in percent of what the targets' outputs of one version take on average.
    pub(crate) scan_percent: u32,
}

/// Targets of a project.
pub(crate) const PROJECT_TARGETS: u32 = 60;
/// Agents that build at the same time.
const AGENTS: usize = 6;
/// Targets that a build asks for in one step.
const STEP_TARGETS: usize = 16;
/// The first projects are the base of all others: every build asks for them.
const BASE_PROJECTS: u32 = 2;
/// One project in so many is built at night only.
const NIGHTLY_ONE_IN: u32 = 8;
/// Outputs of a target, one to this many.
const OUTPUTS_MAX: u64 = 5;
/// Main-line commits that a branch can start from.
const HISTORY_COMMITS: usize = 600;
/// Days between release branches, days for which one is built, and days between its builds.
const RELEASE_DAYS: (u32, u32, u32) = (7, 21, 3);
/// Objects of a step of a scan.
const SCAN_STEP_OBJECTS: usize = 64;
const CONTENT_BYTES_MEAN: u64 = 16_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Content: an output.
    Output,
    /// A named key: an action result.
    Action,
    /// Content that is asked for once.
    Once,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) size_bytes: u64,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Index of the object.
    pub(crate) object: u32,
    /// If it is there, its bytes are read.
    pub(crate) read: bool,
}

/// Objects, and the steps in which they are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) objects: Vec<Object>,
    pub(crate) accesses: Vec<Access>,
    /// Accesses of one question each.
    pub(crate) steps: Vec<Range<usize>>,
    /// The first step of each day.
    pub(crate) days: Vec<usize>,
}

/// The objects of one version of a target: the action result, then the outputs.
type Version = Range<u32>;
/// The versions of all targets in one commit.
type Commit = Rc<Vec<Version>>;

struct Branch {
    versions: Vec<Version>,
    base: Commit,
    projects: Vec<u32>,
    changed: Vec<u32>,
    builds_left: u64,
    merges: bool,
}

enum Job {
    Build(VecDeque<Version>),
    Scan(u64),
}

struct World {
    parameters: Parameters,
    random: Random,
    trace: Trace,
    main: VecDeque<Commit>,
    branches: Vec<Branch>,
    releases: Vec<(u32, Commit)>,
    jobs: VecDeque<Job>,
}

impl Trace {
    /// The trace of these parameters.
    pub(crate) fn new(parameters: Parameters) -> Self {
        let mut world = World {
            parameters,
            random: Random::new(parameters.seed),
            trace: Self::default(),
            main: VecDeque::new(),
            branches: Vec::new(),
            releases: Vec::new(),
            jobs: VecDeque::new(),
        };
        let first = (0..parameters.targets).map(|_| world.version()).collect();
        world.main.push_back(Rc::new(first));
        for day in 0..parameters.days {
            world.trace.days.push(world.trace.steps.len());
            world.day(day);
        }
        world.trace
    }

    /// For each access, whether the object was asked for before.
    pub(crate) fn again(&self) -> Vec<bool> {
        let mut seen = vec![false; self.objects.len()];
        self.accesses.iter().map(|access| seen.get_mut(access.object as usize).is_some_and(|seen| std::mem::replace(seen, true))).collect()
    }
}

impl World {
    fn chance(&mut self, percent: u64) -> bool {
        self.random.below(100) < percent
    }
    /// At least 1; about `mean`, most often less.
    fn around(&mut self, mean: u64) -> u64 {
        let mut n = 1;
        while self.random.below(mean) > 0 {
            n += 1;
        }
        n
    }
    fn projects(&self) -> u32 {
        self.parameters.targets.div_ceil(PROJECT_TARGETS)
    }
    fn targets_of(&self, project: u32) -> Range<u32> {
        let start = project * PROJECT_TARGETS;
        start..(start + PROJECT_TARGETS).min(self.parameters.targets)
    }
    fn head(&self) -> Commit {
        self.main.back().cloned().unwrap_or_default()
    }
    /// A project that is built by day and is not of the base.
    fn some_project(&mut self) -> u32 {
        loop {
            // Some projects are busier than others.
            let (a, b) = (self.random.below(self.projects().into()), self.random.below(self.projects().into()));
            let project = u32::try_from(a.min(b)).unwrap_or(0);
            if project >= BASE_PROJECTS && project % NIGHTLY_ONE_IN != NIGHTLY_ONE_IN - 1 {
                return project;
            }
        }
    }

    fn object(&mut self, size_bytes: u64, kind: Kind) -> u32 {
        self.trace.objects.push(Object { size_bytes, kind });
        u32::try_from(self.trace.objects.len() - 1).expect("fewer than 2^32 objects")
    }
    /// New content for a target.
    fn version(&mut self) -> Version {
        let size_bytes = sizes::action_bytes(&mut self.random);
        let first = self.object(size_bytes, Kind::Action);
        let outputs = 1 + self.random.below(OUTPUTS_MAX);
        for _ in 0..outputs {
            let size_bytes = sizes::content_bytes(&mut self.random);
            self.object(size_bytes, Kind::Output);
        }
        first..first + 1 + u32::try_from(outputs).unwrap_or(0)
    }

    /// Changes a few targets of one of the projects, and others that depend on them. Gives those that have new versions.
    fn change(&mut self, versions: &mut [Version], projects: &[u32]) -> Vec<u32> {
        let mut changed = Vec::new();
        if self.chance(2) {
            // The base: a tenth of everything follows.
            for target in 0..self.parameters.targets {
                if self.chance(10) {
                    changed.push(target);
                }
            }
        } else {
            let roots = self.around(2);
            for _ in 0..roots {
                let project = projects[self.random.below(projects.len() as u64) as usize];
                let targets = self.targets_of(project);
                let root = targets.start + self.random.below(u64::from(targets.end - targets.start)) as u32;
                changed.push(root);
                // What depends on it stands behind it.
                let (mut target, reach) = (root + 1, self.around(3) as u32);
                while target < targets.end && target < root + 3 * reach {
                    if self.chance(33) {
                        changed.push(target);
                    }
                    target += 1;
                }
            }
        }
        changed.sort_unstable();
        changed.dedup();
        for target in &changed {
            versions[*target as usize] = self.version();
        }
        changed
    }

    fn commit(&mut self, versions: Vec<Version>) {
        self.main.push_back(Rc::new(versions));
        if self.main.len() > HISTORY_COMMITS {
            self.main.pop_front();
        }
    }
    /// Asks for the targets of the projects and of the base, on the next agent that is free.
    fn build(&mut self, versions: &[Version], projects: &[u32]) {
        let mut projects: Vec<u32> = (0..BASE_PROJECTS).chain(projects.iter().copied()).collect();
        projects.sort_unstable();
        projects.dedup();
        let targets = projects.into_iter().flat_map(|project| self.targets_of(project));
        self.jobs.push_back(Job::Build(targets.map(|target| versions[target as usize].clone()).collect()));
    }

    fn open_branch(&mut self) {
        let back = match self.random.below(100) {
            0..55 => 0,
            55..80 => self.random.below(60),
            _ => self.random.below(HISTORY_COMMITS as u64),
        };
        let at = (self.main.len() - 1).saturating_sub(back as usize);
        let base = self.main[at].clone();
        let projects = (0..self.around(2)).map(|_| self.some_project()).collect();
        let builds_left = self.around(4);
        let merges = self.chance(65);
        self.branches.push(Branch { versions: base.to_vec(), base, projects, changed: Vec::new(), builds_left, merges });
    }

    /// Builds a branch once more, or ends it.
    fn step_branch(&mut self, index: usize) {
        let mut branch = self.branches.swap_remove(index);
        if branch.builds_left > 0 {
            // One build in five is the last one again.
            if branch.changed.is_empty() || !self.chance(20) {
                let changed = self.change(&mut branch.versions, &branch.projects);
                branch.changed.extend(changed);
            }
            branch.builds_left -= 1;
            self.build(&branch.versions, &branch.projects);
            self.branches.push(branch);
        } else if branch.merges {
            let mut versions = self.head().to_vec();
            branch.changed.sort_unstable();
            branch.changed.dedup();
            for target in branch.changed {
                let target = target as usize;
                // What others changed in the meantime makes something new of both changes.
                versions[target] = if versions[target] == branch.base[target] { branch.versions[target].clone() } else { self.version() };
            }
            self.build(&versions, &branch.projects);
            self.commit(versions);
        }
    }

    fn day(&mut self, day: u32) {
        for _ in 0..self.parameters.branches {
            self.open_branch();
            // As many turns as a branch needs to be built and to end keep their number steady.
            for _ in 0..5 {
                if !self.branches.is_empty() {
                    let index = self.random.below(self.branches.len() as u64) as usize;
                    self.step_branch(index);
                }
            }
        }
        let (every, lives, pause) = RELEASE_DAYS;
        if day % every == every - 1 {
            self.releases.push((day, self.head()));
        }
        self.releases.retain(|(from, _)| day - from < lives);
        for index in 0..self.releases.len() {
            if (day - self.releases[index].0).is_multiple_of(pause) {
                let mut versions = self.releases[index].1.to_vec();
                let project = self.some_project();
                self.change(&mut versions, &[project]);
                let all: Vec<u32> = (0..self.projects()).collect();
                self.build(&versions, &all);
                self.releases[index].1 = Rc::new(versions);
            }
        }
        let scan_bytes =
            u64::from(self.parameters.targets) * (1 + OUTPUTS_MAX) / 2 * CONTENT_BYTES_MEAN * u64::from(self.parameters.scan_percent) / 100;
        let at = self.random.below(self.jobs.len() as u64 + 1) as usize;
        self.jobs.insert(at, Job::Scan(scan_bytes));
        self.run_jobs();
        let mut versions = self.head().to_vec();
        let nightly: Vec<u32> = (NIGHTLY_ONE_IN - 1..self.projects()).step_by(NIGHTLY_ONE_IN as usize).collect();
        if !nightly.is_empty() {
            self.change(&mut versions, &nightly);
            self.commit(versions.clone());
        }
        let all: Vec<u32> = (0..self.projects()).collect();
        self.build(&versions, &all);
        self.run_jobs();
    }

    /// Lets the agents do what there is to do, a step at a time of one or the other.
    fn run_jobs(&mut self) {
        let mut agents: Vec<Job> = Vec::new();
        loop {
            while agents.len() < AGENTS
                && let Some(job) = self.jobs.pop_front()
            {
                agents.push(job);
            }
            if agents.is_empty() {
                return;
            }
            let index = self.random.below(agents.len() as u64) as usize;
            let start = self.trace.accesses.len();
            let done = match &mut agents[index] {
                Job::Build(targets) => {
                    for version in targets.drain(..targets.len().min(STEP_TARGETS)) {
                        for object in version.clone() {
                            let read = object == version.start || self.random.below(100) < 20;
                            self.trace.accesses.push(Access { object, read });
                        }
                    }
                    targets.is_empty()
                }
                Job::Scan(bytes_left) => {
                    let mut left = *bytes_left;
                    for _ in 0..SCAN_STEP_OBJECTS {
                        let size_bytes = sizes::content_bytes(&mut self.random);
                        self.trace.objects.push(Object { size_bytes, kind: Kind::Once });
                        let object = u32::try_from(self.trace.objects.len() - 1).expect("fewer than 2^32 objects");
                        self.trace.accesses.push(Access { object, read: false });
                        left = left.saturating_sub(size_bytes);
                    }
                    *bytes_left = left;
                    left == 0
                }
            };
            if self.trace.accesses.len() > start {
                self.trace.steps.push(start..self.trace.accesses.len());
            }
            if done {
                agents.swap_remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn small(seed: u64) -> Trace {
        Trace::new(Parameters { seed, days: 10, targets: 600, branches: 8, scan_percent: 5 })
    }

    #[test]
    fn a_trace_follows_from_its_seed() {
        assert_eq!(small(1), small(1));
        assert_ne!(small(1).accesses, small(2).accesses);
    }

    #[test]
    fn steps_cover_the_accesses_and_name_no_object_twice() {
        let trace = small(3);
        let mut end = 0;
        for step in &trace.steps {
            assert!(step.start == end && step.end > end);
            end = step.end;
            let objects: HashSet<u32> = trace.accesses[step.clone()].iter().map(|access| access.object).collect();
            assert_eq!(objects.len(), step.len());
        }
        assert_eq!(end, trace.accesses.len());
        assert_eq!(trace.days.len(), 10);
    }

    #[test]
    fn scans_are_asked_for_once_and_nights_for_everything() {
        let trace = small(4);
        let mut asked = vec![0u32; trace.objects.len()];
        trace.accesses.iter().for_each(|access| asked[access.object as usize] += 1);
        let scanned: Vec<_> = trace.objects.iter().zip(&asked).filter(|(object, _)| object.kind == Kind::Once).collect();
        assert!(scanned.len() > 500 && scanned.iter().all(|(_, asked)| **asked == 1), "{} scanned", scanned.len());
        // The night: a run of steps at the end of each day that asks for an action result of every target.
        for day in trace.days.iter().skip(1) {
            let end = trace.steps[*day].start;
            let night: HashSet<u32> = (end - 600 * 3..end).map(|at| trace.accesses[at].object).collect();
            let actions = night.iter().filter(|object| trace.objects[**object as usize].kind == Kind::Action).count();
            assert!((400..=600).contains(&actions), "{actions} targets");
        }
    }

    #[test]
    fn the_main_line_changes_little_and_most_is_asked_for_again() {
        let trace = small(5);
        let again = trace.again().iter().filter(|again| **again).count();
        let share = again as f64 / trace.accesses.len() as f64;
        assert!((0.8..0.99).contains(&share), "{share}");
        let reads = trace.accesses.iter().filter(|access| access.read).count() as f64 / trace.accesses.len() as f64;
        assert!((0.3..0.5).contains(&reads), "{reads}");
    }
}
