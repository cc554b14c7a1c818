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

/// What is there when the clock starts.
#[derive(Clone, Copy)]
struct Case {
    leases: u32,
    /// Each container has an IPv6 address as well.
    dual: bool,
    /// The next free address comes after all that are taken.
    near_full: bool,
    rounds: usize,
}

const fn case(leases: u32, rounds: usize) -> Case {
    Case { leases, dual: false, near_full: false, rounds }
}

/// All but 33 addresses of a /16.
const NEARLY_ALL: u32 = 65_500;

const CASES: [Case; 9] = [
    case(20, 200),
    case(2_000, 60),
    case(20_000, 20),
    case(60_000, 10),
    Case { dual: true, ..case(20, 100) },
    Case { dual: true, ..case(2_000, 30) },
    Case { dual: true, ..case(20_000, 10) },
    Case { dual: true, ..case(60_000, 5) },
    Case { near_full: true, ..case(NEARLY_ALL, 5) },
];

/// Name in the table, verb, and whether of the container that ADD was for.
const CALLS: [(&str, &str, bool); 4] = [
    ("ADD", "ADD", true),
    ("CHECK", "CHECK", true),
    ("DEL", "DEL", true),
    ("DEL, unknown", "DEL", false),
];

/// Addresses of the range that is exhausted, and rounds.
const EXHAUSTED: (&str, u32, usize) = ("10.1.0.0/21", 2045, 20);

/// Times of one row of the table, of ours and of the reference plugin, milliseconds.
struct Row {
    leases: u32,
    what: String,
    walls: [Vec<f64>; 2],
}

/// Leases that the growth of our cost is taken from, and rounds.
const GROWTH: ([u32; 2], usize) = ([20, 20_000], 200);

/// Times of one verb of ours with few and with many leases, milliseconds. They take turns
/// with each other alone: what the reference plugin reads between two calls of ours leaves
/// little of anybody's in the processor's caches, the more the more leases there are.
struct Growth {
    verb: &'static str,
    walls: [Vec<f64>; 2],
}

/// A plugin and its lease directory.
struct Side {
    program: PathBuf,
    data: PathBuf,
    config: String,
}

/// The tables of a run, in Markdown.
pub(crate) fn run(ours: &Path, reference: &Path) -> Result<String> {
    let root = std::env::temp_dir().join(format!("weft-bench-leases-{}", std::process::id()));
    let ours = ours.join("host-local");
    let rows = rows(&root, &ours, &reference.join("host-local"));
    let growth = growth(&root, &ours);
    let removed = fs::remove_dir_all(&root);
    let (rows, growth) = (rows?, growth?);
    removed.with_context(|| root.display().to_string())?;
    Ok(format!("{}{}", table(&rows), targets(&rows, &growth)))
}

fn rows(root: &Path, ours: &Path, reference: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (i, case) in CASES.into_iter().enumerate() {
        eprintln!("leases: {}, {} rounds", case.leases, case.rounds);
        let side = |name: &str, program: &Path| {
            Side::new(program, root.join(format!("{name}-{i}")), "10.1.0.0/16", case.dual)
        };
        let sides = [side("ours", ours), side("reference", reference)];
        for side in &sides {
            side.fill(case)?;
            // Ours indexes what it has not seen yet.
            side.call("DEL", "first")?;
        }
        for ((name, ..), walls) in CALLS.iter().zip(measure(&sides, case)?) {
            rows.push(Row { leases: case.leases, what: case.what(name), walls });
        }
        if !case.dual && !case.near_full {
            rows.push(after_the_reference(&sides, case)?);
        }
    }
    rows.push(exhausted(root, ours, reference)?);
    Ok(rows)
}

fn growth(root: &Path, ours: &Path) -> Result<Vec<Growth>> {
    let (leases, rounds) = GROWTH;
    eprintln!("leases: {leases:?}, ours alone, {rounds} rounds");
    let side =
        |leases| Side::new(ours, root.join(format!("growth-{leases}")), "10.1.0.0/16", false);
    let sides = leases.map(side);
    for (side, leases) in sides.iter().zip(leases) {
        side.fill(case(leases, rounds))?;
        side.call("DEL", "first")?;
    }
    let walls = measure(&sides, case(0, rounds))?;
    let verbs = CALLS.iter().zip(walls).filter(|((name, verb, _), _)| name == verb);
    Ok(verbs.map(|(&(_, verb, _), walls)| Growth { verb, walls }).collect())
}

impl Case {
    fn what(&self, call: &str) -> String {
        let families = if self.dual { ", IPv4 and IPv6" } else { "" };
        let place = if self.near_full { ", 33 addresses left" } else { "" };
        format!("{call}{families}{place}")
    }
}

/// For each of the calls, the times of each side.
fn measure(sides: &[Side; 2], case: Case) -> Result<[[Vec<f64>; 2]; CALLS.len()]> {
    let mut walls: [[Vec<f64>; 2]; CALLS.len()] = Default::default();
    for round in 0..case.rounds {
        if case.near_full {
            sides.iter().try_for_each(Side::start_over)?;
        }
        for ((_, verb, known), walls) in CALLS.iter().zip(&mut walls) {
            let id = if *known { format!("new{round}") } else { "nobody".to_owned() };
            for i in turns(round) {
                walls[i].push(sides[i].call(verb, &id)?);
            }
        }
    }
    Ok(walls)
}

/// Neither side always comes first.
fn turns(round: usize) -> [usize; 2] {
    [round % 2, (round + 1) % 2]
}

/// Our ADD where the reference plugin has just written: the index is made anew. Beside
/// it the reference plugin's, where ours has written.
fn after_the_reference(sides: &[Side; 2], case: Case) -> Result<Row> {
    let mut walls: [Vec<f64>; 2] = Default::default();
    let swapped = [0, 1].map(|i| Side {
        program: sides[1 - i].program.clone(),
        data: sides[i].data.clone(),
        config: sides[i].config.clone(),
    });
    for round in 0..case.rounds.min(20) {
        for i in turns(round) {
            swapped[i].call("ADD", "other")?;
            swapped[i].call("DEL", "other")?;
            walls[i].push(sides[i].call("ADD", "mine")?);
            sides[i].call("DEL", "mine")?;
        }
    }
    Ok(Row { leases: case.leases, what: "ADD after the other plugin".into(), walls })
}

/// ADD where every address is taken, by leases of this boot.
fn exhausted(root: &Path, ours: &Path, reference: &Path) -> Result<Row> {
    let (subnet, leases, rounds) = EXHAUSTED;
    eprintln!("leases: {leases} of {leases}, {rounds} rounds");
    let side = |name: &str, program: &Path| {
        Side::new(program, root.join(format!("{name}-full")), subnet, false)
    };
    let sides = [side("ours", ours), side("reference", reference)];
    for n in 0..leases {
        sides[0].call("ADD", &format!("present{n}"))?;
    }
    let copied = Command::new("cp").arg("-a").arg(&sides[0].data).arg(&sides[1].data).status()?;
    ensure!(copied.success(), "cp failed");
    let mut walls: [Vec<f64>; 2] = Default::default();
    for round in 0..rounds {
        for i in turns(round) {
            let (wall, answer) = sides[i].ask("ADD", "one-too-many")?;
            ensure!(answer.is_err(), "{leases} addresses, and one more");
            walls[i].push(wall);
        }
    }
    Ok(Row { leases, what: "ADD, no address left".into(), walls })
}

impl Side {
    fn new(program: &Path, data: PathBuf, subnet: &str, dual: bool) -> Self {
        let mut ranges = vec![json!([{ "subnet": subnet }])];
        if dual {
            ranges.push(json!([{ "subnet": "fd00::/64" }]));
        }
        let config = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "ptp",
            "ipam": { "type": "host-local", "dataDir": data, "ranges": ranges },
        });
        Self { program: program.to_owned(), data, config: config.to_string() }
    }

    /// Writes leases as both plugins do.
    fn fill(&self, case: Case) -> Result<()> {
        let dir = self.data.join("pods");
        fs::create_dir_all(&dir)?;
        for n in 2..case.leases + 2 {
            let content = format!("present{n}\r\neth0");
            fs::write(dir.join(format!("10.1.{}.{}", n >> 8, n & 255)), &content)?;
            if case.dual {
                fs::write(dir.join(format!("fd00::{n:x}")), &content)?;
            }
        }
        Ok(())
    }

    /// Lets the next ADD try from the first address on.
    fn start_over(&self) -> Result<()> {
        Ok(fs::write(self.data.join("pods/last_reserved_ip.0"), "10.1.0.1")?)
    }

    /// The time of a call that succeeds, milliseconds.
    fn call(&self, verb: &str, id: &str) -> Result<f64> {
        let (wall, answer) = self.ask(verb, id)?;
        let answer = answer.err().unwrap_or_default();
        ensure!(answer.is_empty(), "{verb} of {}: {answer}", self.program.display());
        Ok(wall)
    }

    /// From the start of the process to its end, milliseconds; and what it answered if it failed.
    fn ask(&self, verb: &str, id: &str) -> Result<(f64, Result<(), String>)> {
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
        Ok((wall, if output.status.success() { Ok(()) } else { Err(answer.into_owned()) }))
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from("\n**host-local by number of leases** (milliseconds)\n\n");
    text.push_str(
        "| leases | call | runs | ours median | p95 | reference median | p95 | times |\n",
    );
    text.push_str("|--:|---|--:|--:|--:|--:|--:|--:|\n");
    for row in rows {
        let Row { leases, what, walls } = row;
        let [ours, reference] = [0, 1].map(|i| row.quantile(i, 0.5));
        let [ours_p95, reference_p95] = [0, 1].map(|i| row.quantile(i, 0.95));
        let runs = walls[0].len();
        let times = reference / ours;
        let _ = writeln!(
            text,
            "| {leases} | {what} | {runs} | {ours:.2} | {ours_p95:.2} | {reference:.2} | {reference_p95:.2} | {times:.1} |"
        );
    }
    text
}

impl Row {
    fn quantile(&self, side: usize, share: f64) -> f64 {
        quantile(&self.walls[side], share).unwrap_or(f64::NAN)
    }
}

/// The ratios that the project holds itself to.
fn targets(rows: &[Row], growths: &[Growth]) -> String {
    let mut text = String::from("\n**Held to**\n\n| | measured | limit | |\n|---|--:|--:|---|\n");
    let mut line = |what: String, value: f64, limit: String, holds: bool| {
        let held = if holds { "holds" } else { "does not hold" };
        let _ = writeln!(text, "| {what} | {value:.2} | {limit} | {held} |");
    };
    for verb in ["ADD", "DEL"] {
        let row = |leases| rows.iter().find(|row| row.leases == leases && row.what == verb);
        let (Some(few), Some(many)) = (row(20), row(20_000)) else { continue };
        for (row, least) in [(few, 5.0), (many, 50.0)] {
            let times = row.quantile(1, 0.5) / row.quantile(0, 0.5);
            let what = format!("{verb} with {} leases, reference / ours", row.leases);
            line(what, times, format!("at least {least}"), times >= least);
        }
        let growth = many.quantile(0, 0.5) / few.quantile(0, 0.5);
        let what = format!("{verb} of ours, 20,000 leases / 20, between calls of the reference");
        line(what, growth, "at most 1.3".into(), growth <= 1.3);
    }
    for Growth { verb, walls } in growths {
        let [few, many] = [0, 1].map(|i| quantile(&walls[i], 0.5).unwrap_or(f64::NAN));
        let what = format!("{verb} of ours, 20,000 leases / 20 ({many:.2} / {few:.2} ms)");
        line(what, many / few, "at most 1.3".into(), many / few <= 1.3);
    }
    text
}
