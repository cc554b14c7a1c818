//! `bench`: what a pod costs, measured beside the reference plugins and beside the
//! kernel's own share. See docs/performance.md.

mod chain;
mod datapath;
mod leases;
mod machine;
mod plot;
mod pod;
mod report;
mod run;
mod stats;
mod worker;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use chain::Chain;
use run::{Circumstances, Executables, Results};

const HELP: &str = "\
bench - what a pod costs: ADD, CHECK, DEL of plugin chains that take turns

usage: bench [OPTIONS] [PART...]

parts (all, if none is named):
  adds       one pod after the other, 3 nodes
  dual       the same with IPv4 and IPv6
  pods       the same with 250 other pods there
  nodes      the same with 5,000 nodes in the map
  parallel   100 pods, 10 at once
  leases     host-local alone, 20 to 60,000 leases; only if named, and alone
  datapath   traffic from pod to pod, beside flannel's layout; only if named, and alone
  variants   the tunnel's data path with one setting changed at a time; likewise

options:
  --count N          pods of each chain in `adds` (default 20); a quarter in the others
  --full             200 pods in every part, and all chains in every part
  --only A,B         these chains alone: bare, 'weft veth', weft, ptp, 'ptp masq',
                     'ptp masq port', flannel
  --pods N           pods that are there in `pods` (default 250)
  --nodes N          nodes in `nodes` (default 5000)
  --rounds N         rounds of `datapath` and `variants` (default 5)
  --reference DIR    where the reference plugins are (default /usr/lib/cni)
  --svg FILE         where to plot the run (default target/bench/performance.svg)
  --write FILE       rewrite the run in FILE (docs/performance.md, the plot beside it;
                     for `leases` docs/host-local.md)

The plugins are built and installed in target/bench. Needs root, or a machine that
allows user namespaces; everything happens in network namespaces that end with it.
";

/// What stands before and after the tables in the file that `--write` names.
type Marks = [&'static str; 2];
const PODS: Marks =
    ["<!-- the run: written by `make bench`, see above -->\n", "<!-- the end of the run -->\n"];
const LEASES: Marks =
    ["<!-- the run of `bench leases` -->\n", "<!-- the end of the run of `bench leases` -->\n"];

/// What was asked for.
struct Options {
    parts: Vec<String>,
    count: usize,
    full: bool,
    only: Option<Vec<String>>,
    pods: usize,
    nodes: usize,
    rounds: usize,
    reference: PathBuf,
    svg: PathBuf,
    write: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.first().map(String::as_str) {
        Some("worker") => worker::run(),
        Some("peer") => datapath::peer(&words[1..]),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        _ => Options::read(words).and_then(bench),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn read(words: Vec<String>) -> Result<Self> {
        let mut options = Self {
            parts: Vec::new(),
            count: 20,
            full: false,
            only: None,
            pods: 250,
            nodes: 5000,
            rounds: 5,
            reference: "/usr/lib/cni".into(),
            svg: "target/bench/performance.svg".into(),
            write: None,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--count" => options.count = value()?.parse().context("--count")?,
                "--full" => options.full = true,
                "--only" => {
                    options.only = Some(value()?.split(',').map(str::to_owned).collect());
                }
                "--pods" => options.pods = value()?.parse().context("--pods")?,
                "--nodes" => options.nodes = value()?.parse().context("--nodes")?,
                "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
                "--reference" => options.reference = value()?.into(),
                "--svg" => options.svg = value()?.into(),
                "--write" => options.write = Some(value()?.into()),
                part if !part.starts_with('-') => options.parts.push(word),
                other => bail!("unknown option {other}; `bench help` lists them"),
            }
        }
        Ok(options)
    }

    /// The parts asked for.
    fn parts(&self) -> Result<Vec<Circumstances>> {
        let adds = Circumstances { part: "adds", dual: false, nodes: 3, present: 0, width: 1 };
        let all = [
            adds,
            Circumstances { part: "dual", dual: true, ..adds },
            Circumstances { part: "pods", present: self.pods, ..adds },
            Circumstances { part: "nodes", nodes: self.nodes, ..adds },
            Circumstances { part: "parallel", width: 10, ..adds },
        ];
        for part in &self.parts {
            ensure!(all.iter().any(|at| at.part == part), "unknown part {part}");
        }
        let wanted = |at: &Circumstances| {
            self.parts.is_empty() || self.parts.iter().any(|part| part == at.part)
        };
        Ok(all.into_iter().filter(wanted).collect())
    }

    /// The chains of a part. Slow ones of which nothing new is to be learned are left
    /// out where the run is not full.
    fn chains(&self, at: Circumstances) -> Vec<Chain> {
        let wanted = |chain: &Chain| {
            self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == chain.name))
                && (self.full
                    || !matches!(at.part, "pods" | "nodes")
                    || ["bare", "weft veth", "weft", "ptp"].contains(&chain.name))
        };
        chain::ALL.into_iter().filter(wanted).collect()
    }

    /// How many pods of each chain.
    fn count(&self, at: Circumstances) -> usize {
        match at.part {
            "parallel" => 100,
            _ if self.full => 200,
            "adds" => self.count,
            _ => (self.count / 4).max(1),
        }
    }
}

fn bench(options: Options) -> Result<()> {
    let machine = machine::describe();
    if options.parts == ["leases"] {
        let executables = build(&options.reference)?;
        let table = leases::run(&executables.ours, &executables.reference)?;
        let text =
            format!("{machine}. Reference plugin: {}.\n{table}", machine::reference_version());
        println!("{text}");
        return options.write.map_or(Ok(()), |file| rewrite(&file, LEASES, &text));
    }
    if let [part @ ("datapath" | "variants")] =
        &options.parts.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        println!("{machine}.\n{}", datapath::run(*part == "variants", options.rounds)?);
        return Ok(());
    }
    let parts = options.parts()?;
    let executables = build(&options.reference)?;
    let mut results = Results::default();
    for at in &parts {
        let (chains, count) = (options.chains(*at), options.count(*at));
        eprintln!("{}: {count} pods of each chain", report::heading(*at));
        run::run(*at, &chains, count, &executables, &mut results)?;
    }
    let installed = report::disk_usage(&executables.ours)?;
    let head = format!(
        "{machine}. Reference plugins: {} {}.\n",
        options.reference.display(),
        machine::reference_version()
    );
    let text = format!("{head}\n{}{}", legend(), report::tables(&results, &parts, installed));
    println!("{text}");
    let svg = match &options.write {
        Some(file) => file.with_extension("svg"),
        None => options.svg.clone(),
    };
    std::fs::write(&svg, plot::svg(&results, &parts, &machine))
        .with_context(|| svg.display().to_string())?;
    eprintln!("plot: {}", svg.display());
    match &options.write {
        Some(file) => {
            rewrite(file, PODS, &format!("{text}\n![What a pod costs]({})\n", name_of(&svg)))
        }
        None => Ok(()),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn legend() -> String {
    let line = |chain: Chain| format!("- {}: {}\n", chain.name, chain.about);
    chain::ALL.into_iter().map(line).collect()
}

/// Builds and installs what is measured, static as in a release.
fn build(reference: &Path) -> Result<Executables> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let ours = root.join("target/bench/bin");
    let script = |words: &[&str]| -> Result<String> {
        let mut command = Command::new(root.join(words[0]));
        let output = command.args(&words[1..]).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{words:?} failed");
        Ok(String::from_utf8(output.stdout)?)
    };
    script(&["hack/install.sh", &ours.to_string_lossy()])?;
    let bare = root.join(script(&["hack/build.sh", "e2e", "bare"])?.trim());
    Ok(Executables { ours, reference: reference.to_owned(), bare })
}

/// Replaces what stands between the marks of `file`.
fn rewrite(file: &Path, [begin, end]: Marks, text: &str) -> Result<()> {
    let old = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let marks =
        old.split_once(begin).and_then(|(head, rest)| Some((head, rest.split_once(end)?.1)));
    let (head, tail) = marks.with_context(|| format!("{}: no marks", file.display()))?;
    std::fs::write(file, format!("{head}{begin}{text}{end}{tail}"))?;
    Ok(())
}
