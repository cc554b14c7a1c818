//! Runs harmed at one of their system calls, by strace(1).

use std::collections::BTreeMap;

/// One system call of a run.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Its number among the run's calls of the name, from 1.
    pub number: usize,
    /// The trace's line.
    pub line: String,
}

impl Step {
    /// The system calls that strace wrote down, from the first one for which `begins`:
    /// what comes before is the loader's.
    pub fn of(trace: &str, begins: impl Fn(&str) -> bool) -> Vec<Step> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut steps = Vec::new();
        for line in trace.lines() {
            let Some((name, _)) = line.split_once('(') else { continue };
            let number = counts.entry(name).or_default();
            *number += 1;
            if !steps.is_empty() || begins(line) {
                let (name, line) = (name.to_string(), line.to_string());
                steps.push(Step { name, number: *number, line });
            }
        }
        steps
    }

    /// The words to put before a command so that `what` (`signal=KILL`, `error=EIO`)
    /// happens to it at this step; the trace goes to `file`.
    pub fn harmed(&self, what: &str, file: &str) -> Vec<String> {
        let Step { name, number, .. } = self;
        let (trace, how) = (format!("trace={name}"), format!("inject={name}:{what}:when={number}"));
        ["strace", "-o", file, "-e", &trace, "-e", &how].map(str::to_string).to_vec()
    }
}
