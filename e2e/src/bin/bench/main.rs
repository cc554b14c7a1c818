//! `bench`: what a pod costs, measured beside the reference plugins and beside the
//! kernel's own share. See docs/performance.md.

mod batch;
mod chain;
mod datapath;
mod leases;
mod machine;
mod maps;
mod peers;
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

parts (all of these, if none is named):
  adds       one pod after the other, 3 nodes
  dual       the same with IPv4 and IPv6
  pods       the same with 250 other pods there
  nodes      the same with 5,000 nodes in the map
  parallel   100 pods, 10 at once
  peers      syncs, and ADDs of weft, with 10 to 10,000 peers
and only if named:
  libc       as `adds`, weft linked with musl and with glibc
  datapath   traffic from pod to pod, beside flannel's layout
  variants   the tunnel's data path with one setting changed at a time
  leases     host-local alone, 20 to 60,000 leases

options:
  --count N          pods of each chain in `adds` (default 20); a quarter in the others
  --full             200 pods of each chain in `adds`, 40 in the others, and all chains
  --only A,B         these chains alone: bare, 'weft veth', weft, ptp, 'ptp masq',
                     'ptp masq port', flannel
  --pods N           pods that are there in `pods` (default 250)
  --nodes N          nodes in `nodes` (default 5000)
  --peers A,B        numbers of peers in `peers` (default 10,100,1000,5000,10000)
  --rounds N         rounds of `datapath` and `variants` (default 5)
  --reference DIR    where the reference plugins are (default /usr/lib/cni)
  --svg FILE         where to plot the run (default target/bench/performance.svg)
  --write FILE       rewrite what was run in FILE (docs/performance.md; for leases alone
                     docs/host-local.md), the plot beside
                     it: those of chains (adds to parallel, libc) together, each other
                     part by itself

The plugins are built and installed in target/bench. Needs root, or a machine that
allows user namespaces; everything happens in network namespaces that end with it.
";

/// Tables that are written to a place of their own in the file that `--write` names.
struct Section {
    name: &'static str,
    text: String,
}

impl Section {
    /// What stands before it in the file.
    fn begin(&self) -> String {
        format!("<!-- {}: written by `make bench`, see above -->\n", self.name)
    }

    /// What stands after it.
    fn end(&self) -> String {
        format!("<!-- the end of {} -->\n", self.name)
    }
}

/// The part that measures syncs.
const PEERS: &str = "peers";
/// The parts that are made on request alone.
const LIBC: &str = "libc";
const DATAPATH: &str = "datapath";
const VARIANTS: &str = "variants";
const LEASES: &str = "leases";
const BY_NAME: [&str; 4] = [LIBC, DATAPATH, VARIANTS, LEASES];

/// What was asked for.
struct Options {
    parts: Vec<String>,
    count: usize,
    full: bool,
    only: Option<Vec<String>>,
    pods: usize,
    nodes: usize,
    peers: Vec<usize>,
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
            peers: vec![10, 100, 1_000, 5_000, 10_000],
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
                "--peers" => {
                    let numbers = value()?.split(',').map(str::parse).collect::<Result<_, _>>();
                    options.peers = numbers.context("--peers")?;
                }
                "--reference" => options.reference = value()?.into(),
                "--svg" => options.svg = value()?.into(),
                "--write" => options.write = Some(value()?.into()),
                part if !part.starts_with('-') => options.parts.push(word),
                other => bail!("unknown option {other}; `bench help` lists them"),
            }
        }
        Ok(options)
    }

    /// The parts that run chains, as far as asked for.
    fn parts(&self) -> Result<Vec<Circumstances>> {
        let adds = Circumstances { part: "adds", dual: false, nodes: 3, present: 0, width: 1 };
        let all = [
            adds,
            Circumstances { part: "dual", dual: true, ..adds },
            Circumstances { part: "pods", present: self.pods, ..adds },
            Circumstances { part: "nodes", nodes: self.nodes, ..adds },
            Circumstances { part: "parallel", width: 10, ..adds },
            Circumstances { part: LIBC, ..adds },
        ];
        for part in &self.parts {
            let known = part == PEERS || BY_NAME.contains(&part.as_str());
            ensure!(known || all.iter().any(|at| at.part == part), "unknown part {part}");
        }
        Ok(all.into_iter().filter(|at| self.wants(at.part)).collect())
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.iter().any(|named| named == part)
            || self.parts.is_empty() && !BY_NAME.contains(&part)
    }

    /// The chains of a part. Slow ones of which nothing new is to be learned are left
    /// out where the run is not full.
    fn chains(&self, at: Circumstances) -> Vec<Chain> {
        let of_part = |chain: &Chain| match at.part {
            LIBC => ["bare", "weft", "weft glibc"].contains(&chain.name),
            _ if chain.name == "weft glibc" => false,
            "pods" | "nodes" if !self.full => {
                ["bare", "weft veth", "weft", "ptp"].contains(&chain.name)
            }
            _ => true,
        };
        let wanted = |chain: &Chain| {
            self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == chain.name))
                && of_part(chain)
        };
        chain::ALL.into_iter().filter(wanted).collect()
    }

    /// How many pods of each chain.
    fn count(&self, at: Circumstances) -> usize {
        match at.part {
            "parallel" => 100,
            "adds" | LIBC if self.full => 200,
            _ if self.full => 40,
            "adds" | LIBC => self.count,
            _ => (self.count / 4).max(1),
        }
    }
}

fn bench(options: Options) -> Result<()> {
    let machine = machine::describe();
    let parts = options.parts()?;
    let executables = build(&options)?;
    let mut sections = Vec::new();
    let mut add = |name, text| sections.push(Section { name, text });
    if !parts.is_empty() {
        add("chains", chains(&options, &parts, &executables, &machine)?);
    }
    if options.wants(PEERS) {
        let (table, targets) = peers::run(&options.peers, options.full, &executables)?;
        add(PEERS, format!("{machine}.\n{table}{}", report::held_to(&targets)));
    }
    for (name, variants) in [(DATAPATH, false), (VARIANTS, true)] {
        if options.wants(name) {
            add(name, format!("{machine}.\n\n{}", datapath::run(variants, options.rounds)?));
        }
    }
    if options.wants(LEASES) {
        let table = leases::run(&executables.ours, &executables.reference)?;
        let version = machine::reference_version();
        add(LEASES, format!("{machine}. Reference plugins: {version}.\n{table}"));
    }
    for section in &sections {
        println!("{}", section.text);
        if let Some(file) = &options.write {
            rewrite(file, section)?;
        }
    }
    Ok(())
}

/// The tables of the parts that run chains, and their plot.
fn chains(
    options: &Options,
    parts: &[Circumstances],
    executables: &Executables,
    machine: &str,
) -> Result<String> {
    let mut results = Results::default();
    for at in parts {
        let (chains, count) = (options.chains(*at), options.count(*at));
        eprintln!("{}: {count} pods of each chain", report::heading(*at));
        run::run(*at, &chains, count, executables, &mut results)?;
    }
    let svg = match &options.write {
        Some(file) => file.with_extension("svg"),
        None => options.svg.clone(),
    };
    std::fs::write(&svg, plot::svg(&results, parts, machine))
        .with_context(|| svg.display().to_string())?;
    eprintln!("plot: {}", svg.display());
    let name = svg.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!(
        "{machine}. Reference plugins: {} {}.\n\n{}{}\n![What a pod costs]({name})\n",
        options.reference.display(),
        machine::reference_version(),
        legend(&results),
        report::tables(&results, parts, report::disk_usage(&executables.ours)?),
    ))
}

fn legend(results: &Results) -> String {
    let measured = |chain: &Chain| results.samples.iter().any(|s| s.chain == chain.name);
    let line = |chain: Chain| format!("- {}: {}\n", chain.name, chain.about);
    chain::ALL.into_iter().filter(measured).map(line).collect()
}

/// Builds and installs what is measured, static as in a release.
fn build(options: &Options) -> Result<Executables> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let script = |words: &[&str], libc: &str| -> Result<String> {
        let mut command = Command::new(root.join(words[0]));
        command.args(&words[1..]).env("WEFT_LIBC", libc);
        let output = command.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{words:?} failed");
        Ok(String::from_utf8(output.stdout)?)
    };
    let install = |dir: &str, libc: &str| -> Result<PathBuf> {
        let dir = root.join("target/bench").join(dir);
        // Nothing that an earlier state left there is measured, or in the way.
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| dir.display().to_string());
            }
            _ => {}
        }
        script(&["hack/install.sh", &dir.to_string_lossy()], libc)?;
        Ok(dir)
    };
    // By name alone: it takes a build of its own.
    let glibc = options.parts.iter().any(|part| part == LIBC);
    Ok(Executables {
        ours: install("bin", "")?,
        ours_glibc: glibc.then(|| install("bin-glibc", "glibc")).transpose()?,
        reference: options.reference.clone(),
        bare: root.join(script(&["hack/build.sh", "e2e", "bare"], "")?.trim()),
    })
}

/// Replaces what stands between the marks of `section` in `file`.
fn rewrite(file: &Path, section: &Section) -> Result<()> {
    let old = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let (begin, end) = (section.begin(), section.end());
    let marks =
        old.split_once(&begin).and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
    let missing = || format!("{}: no marks of {}", file.display(), section.name);
    let (head, tail) = marks.with_context(missing)?;
    std::fs::write(file, format!("{head}{begin}{}{end}{tail}", section.text))?;
    Ok(())
}
