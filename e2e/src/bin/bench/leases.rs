//! `bench leases`: what host-local costs with few and many leases, ours and the
//! reference plugin taking turns.

use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::stats::quantile;

/// Leases present, whether each container has an IPv6 address as well, and rounds.
const CASES: [(u32, bool, usize); 6] = [
    (20, false, 60),
    (2_000, false, 30),
    (20_000, false, 10),
    (60_000, false, 3),
    (20, true, 30),
    (20_000, true, 5),
];
/// Name in the table, verb, and whether of the container that ADD was for.
const CALLS: [(&str, &str, bool); 4] = [
    ("ADD", "ADD", true),
    ("CHECK", "CHECK", true),
    ("DEL", "DEL", true),
    ("DEL, unknown", "DEL", false),
];

/// A plugin and its lease directory.
struct Side {
    program: PathBuf,
    data: PathBuf,
    config: String,
}

/// The table of a run, in Markdown: medians, milliseconds.
pub(crate) fn run(ours: &Path, reference: &Path) -> Result<String> {
    let root = std::env::temp_dir().join(format!("weft-bench-leases-{}", std::process::id()));
    let table = cases(&root, ours, reference);
    let removed = fs::remove_dir_all(&root);
    let table = table?;
    removed.with_context(|| root.display().to_string())?;
    Ok(table)
}

fn cases(root: &Path, ours: &Path, reference: &Path) -> Result<String> {
    let mut text = String::from("\n**host-local by number of leases** (milliseconds)\n\n");
    text.push_str("| leases | families | verb | ours | reference | times |\n");
    text.push_str("|--:|--:|---|--:|--:|--:|\n");
    for (leases, dual, rounds) in CASES {
        eprintln!("leases: {leases}, {rounds} rounds");
        let side = |name: &str, dir: &Path| {
            Side::new(dir.join("host-local"), root.join(format!("{name}-{leases}-{dual}")), dual)
        };
        let sides = [side("ours", ours), side("reference", reference)];
        for side in &sides {
            side.fill(leases, dual)?;
            // Ours indexes what it has not seen yet.
            side.call("DEL", "first")?;
        }
        for ((name, ..), walls) in CALLS.iter().zip(measure(&sides, rounds)?) {
            let [ours, reference] = walls.map(|walls| quantile(&walls, 0.5).unwrap_or(f64::NAN));
            let families = if dual { 2 } else { 1 };
            let times = reference / ours;
            let _ = writeln!(
                text,
                "| {leases} | {families} | {name} | {ours:.2} | {reference:.2} | {times:.1} |"
            );
        }
    }
    Ok(text)
}

/// For each of the calls, the times of each side.
fn measure(sides: &[Side; 2], rounds: usize) -> Result<[[Vec<f64>; 2]; CALLS.len()]> {
    let mut walls: [[Vec<f64>; 2]; CALLS.len()] = Default::default();
    for round in 0..rounds {
        for ((_, verb, known), walls) in CALLS.iter().zip(&mut walls) {
            for turn in 0..2 {
                // Neither always comes first.
                let i = (round + turn) % 2;
                let id = if *known { format!("new{round}") } else { "nobody".to_owned() };
                walls[i].push(sides[i].call(verb, &id)?);
            }
        }
    }
    Ok(walls)
}

impl Side {
    fn new(program: PathBuf, data: PathBuf, dual: bool) -> Self {
        let mut ranges = vec![json!([{ "subnet": "10.1.0.0/16" }])];
        if dual {
            ranges.push(json!([{ "subnet": "fd00::/64" }]));
        }
        let config = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "ptp",
            "ipam": { "type": "host-local", "dataDir": data, "ranges": ranges },
        });
        Self { program, data, config: config.to_string() }
    }

    /// Writes leases as both plugins do.
    fn fill(&self, leases: u32, dual: bool) -> Result<()> {
        let dir = self.data.join("pods");
        fs::create_dir_all(&dir)?;
        for n in 2..leases + 2 {
            let content = format!("present{n}\r\neth0");
            fs::write(dir.join(format!("10.1.{}.{}", n >> 8, n & 255)), &content)?;
            if dual {
                fs::write(dir.join(format!("fd00::{n:x}")), &content)?;
            }
        }
        Ok(())
    }

    /// From the start of the process to its end, milliseconds.
    fn call(&self, verb: &str, id: &str) -> Result<f64> {
        let mut command = Command::new(&self.program);
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/none"),
            ("CNI_PATH", "/none"),
        ]);
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| self.program.display().to_string())?;
        child.stdin.take().context("no standard input")?.write_all(self.config.as_bytes())?;
        let output = child.wait_with_output()?;
        let wall = start.elapsed().as_secs_f64() * 1e3;
        let answer = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{verb} of {}: {answer}", self.program.display());
        Ok(wall)
    }
}
