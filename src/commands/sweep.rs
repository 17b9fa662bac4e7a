//! `bupo sweep`: the runs of a sweep as processes of this program, some at a time, and a table of what came out.

use super::compare::{evaluation_folders, read_evaluation};
use super::evaluate::{PROBLEMS, write_json};
use crate::cli::SweepArgs;
use crate::evaluate::compare::Counted;
use crate::evaluate::result::shares;
use crate::evaluate::scores::Scores;
use crate::evaluate::table::Style;
use crate::recipe::Recipe;
use crate::run::atomic::{count_lines, last_lines, log_file, read, write_file_atomic};
use crate::run::checkpoint::Checkpoints;
use crate::run::interrupt;
use crate::run::jsonl::read_jsonl;
use crate::run::lock::FolderLock;
use crate::run::manifest::Manifest;
use crate::run::progress::{Progress, say};
use crate::sweep::result::{ReadRun, RunResult, RunStatus, SweepResult, summarize};
use crate::sweep::table::{csv, report};
use crate::sweep::{PlannedRun, Sweep, Variant};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The set of a recipe that has one without a name.
const UNNAMED: &str = "evaluation";
/// Lines of a failed run's log among which its error is looked for.
const TAIL: usize = 20;
/// Time between looks at what the runs are doing.
const LOOK: Duration = Duration::from_secs(2);

pub fn run(args: &SweepArgs, threads: Option<usize>) -> Result<()> {
    ensure!(args.jobs > 0, "--jobs 0: expected at least 1");
    ensure!(threads != Some(0), "--threads 0: expected at least 1");
    let text = String::from_utf8(read(&args.sweep)?);
    let text = text.with_context(|| format!("{} is no UTF-8 text", args.sweep.display()))?;
    let sweep = Sweep::parse(&text, &args.sweep.display().to_string(), &args.set)?;
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from("runs").join(&sweep.name));
    let runs = sweep.runs(&args.sweep, &dir)?;
    for run in &runs {
        check_folder(run)?;
    }
    let all = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let jobs = args.jobs.min(runs.len());
    let mut job = Jobs {
        base: sweep.base_recipe(&args.sweep),
        variants: sweep.variants(),
        threads: (all / jobs).max(1),
        errors: vec![None; runs.len()],
        sweep,
        runs,
        dir,
    };
    interrupt::install()?;
    let _lock = FolderLock::take(&job.dir)?;
    job.save()?;
    let interrupted = !job.work(jobs)?;
    let result = job.save()?;
    print!("{}", report(&result, Style::Terminal));
    println!("Written to {} (sweep.json, sweep.md, sweep.csv)", job.dir.display());
    if interrupted {
        interrupt::stop("interrupted: every run has saved where it stood. Go on with the same command");
        return Ok(());
    }
    let failed = result.count(RunStatus::Failed);
    ensure!(
        failed == 0,
        "{failed} of {} runs failed: what each said is above and in sweep.json; the same command tries them again",
        job.runs.len()
    );
    Ok(())
}

/// A folder that holds another recipe's run must not be taken for this one's.
fn check_folder(run: &PlannedRun) -> Result<()> {
    let found = run.dir.join("recipe.toml");
    if !found.is_file() || !has_begun(run) {
        return Ok(());
    }
    let recipe = Recipe::load(&found.to_string_lossy(), &[])?;
    let differing = run.differences(&recipe)?;
    ensure!(
        differing.is_empty(),
        "{} holds a run of another recipe ({}): choose another --dir, or move it away",
        run.dir.display(),
        differing.join("; ")
    );
    Ok(())
}

fn has_begun(run: &PlannedRun) -> bool {
    Checkpoints::new(&run.dir).latest().is_some()
}

fn manifest(run: &PlannedRun) -> Option<Manifest> {
    let bytes = read(&run.dir.join("manifest.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn is_finished(run: &PlannedRun) -> bool {
    has_begun(run) && manifest(run).is_some_and(|m| m.finished.is_some())
}

struct Jobs {
    sweep: Sweep,
    base: String,
    variants: Vec<Variant>,
    runs: Vec<PlannedRun>,
    /// Why a run failed in this process.
    errors: Vec<Option<String>>,
    dir: PathBuf,
    /// Of each run.
    threads: usize,
}

impl Jobs {
    /// Works off what is not finished, `jobs` at a time. False if it was interrupted.
    fn work(&mut self, jobs: usize) -> Result<bool> {
        let mut waiting: Vec<usize> = (0..self.runs.len()).filter(|i| !is_finished(&self.runs[*i])).rev().collect();
        let mut progress = Progress::new("sweep", self.runs.len() as u64);
        progress.inc((self.runs.len() - waiting.len()) as u64);
        let mut live: Vec<(usize, Child)> = Vec::new();
        let (mut told, mut looked) = (false, Instant::now());
        while !live.is_empty() || (!waiting.is_empty() && !interrupt::requested()) {
            while live.len() < jobs && !interrupt::requested() {
                let Some(i) = waiting.pop() else { break };
                // A sweep that was killed leaves runs that are still saving.
                let saving = || say(&format!("{}: still saving for a sweep that was killed", self.name(i)));
                if FolderLock::wait(&self.runs[i].dir, saving)?.is_none() {
                    waiting.push(i);
                    break;
                }
                match self.start(i) {
                    Ok(child) => live.push((i, child)),
                    Err(error) => self.errors[i] = Some(format!("{error:#}")),
                }
            }
            if interrupt::requested() && !told {
                told = true;
                // They are in process groups of their own, so that they hear of a Ctrl-C once: a second would end them at once.
                for (_, child) in &live {
                    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).ok();
                }
            }
            let mut i = 0;
            while i < live.len() {
                let (run, child) = &mut live[i];
                let Some(status) = child.try_wait().context("a run's process cannot be waited for")? else {
                    i += 1;
                    continue;
                };
                let run = *run;
                drop(live.swap_remove(i));
                let done = status.success() && is_finished(&self.runs[run]);
                let saved = told && status.code() == Some(130);
                if !done && !saved {
                    self.errors[run] = Some(self.reason(run, status));
                }
                progress.inc(1);
                let how = if done { "finished" } else { "did not finish" };
                say(&format!("{}: {how}", self.name(run)));
                self.save()?;
            }
            if looked.elapsed() > LOOK {
                looked = Instant::now();
                progress.message(live.iter().map(|(run, _)| self.stands(*run)).collect::<Vec<_>>().join(", "));
                progress.inc(0);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        progress.finish();
        Ok(!told)
    }

    fn name(&self, run: usize) -> String {
        let run = &self.runs[run];
        format!("{} seed {}", self.variants[run.variant].name, run.seed)
    }

    /// Its name, and the steps that it has done.
    fn stands(&self, run: usize) -> String {
        let PlannedRun { dir, recipe, .. } = &self.runs[run];
        let done = count_lines(&dir.join("metrics.jsonl"));
        format!("{} {done}/{}", self.name(run), recipe.rl.steps)
    }

    fn log(&self, run: usize) -> PathBuf {
        let run = &self.runs[run];
        run.dir.with_file_name(format!("seed-{}.log", run.seed))
    }

    fn start(&self, i: usize) -> Result<Child> {
        let run = &self.runs[i];
        let program = std::env::current_exe().context("this program's own file cannot be found")?;
        let mut command = Command::new(program);
        let resumes = has_begun(run);
        command.arg("train");
        if resumes {
            command.arg(&run.dir).arg("--resume");
        } else {
            command.arg(&self.base).arg("--dir").arg(&run.dir);
            for set in &run.set {
                command.args(["--set", set]);
            }
        }
        // A run's bytes depend on its threads: one that had begun keeps those that it began with.
        let threads = manifest(run).filter(|_| resumes).map_or(self.threads, |m| m.machine.threads);
        // Its standard input ends with this process, however that ends, and the run saves and stops.
        command.args(["--while-stdin", "--threads", &threads.to_string()]).stdin(Stdio::piped());
        let log = log_file(&self.log(i))?;
        let errors = log.try_clone().context("a run's log cannot be opened twice")?;
        command.stdout(log).stderr(errors).process_group(0);
        say(&format!("{}: {}", self.name(i), if resumes { "goes on" } else { "begins" }));
        command.spawn().context("a run's process cannot be started")
    }

    /// The run's own words, else how it ended.
    fn reason(&self, run: usize, status: std::process::ExitStatus) -> String {
        let lines = last_lines(&self.log(run), TAIL);
        let at = lines.iter().rposition(|line| line.starts_with("error:"));
        let said: Vec<&str> = lines.iter().skip(at.unwrap_or(lines.len())).map(|line| line.trim()).collect();
        if said.is_empty() { format!("{status}, see {}", self.log(run).display()) } else { said.join(" ") }
    }

    /// Reads every run and writes `sweep.json`, `sweep.md` and `sweep.csv`.
    fn save(&self) -> Result<SweepResult> {
        let mut by_variant: Vec<Vec<ReadRun>> = vec![Vec::new(); self.variants.len()];
        for (run, error) in self.runs.iter().zip(&self.errors) {
            let read = read_run(run, error.clone(), &self.dir);
            by_variant[run.variant].push(read.with_context(|| run.dir.display().to_string())?);
        }
        let result = summarize(&self.sweep, &self.variants, self.threads, by_variant)?;
        write_json(&self.dir.join("sweep.json"), &result)?;
        write_file_atomic(&self.dir.join("sweep.md"), report(&result, Style::Markdown).as_bytes())?;
        write_file_atomic(&self.dir.join("sweep.csv"), csv(&result).as_bytes())?;
        Ok(result)
    }
}

fn read_run(run: &PlannedRun, error: Option<String>, sweep_dir: &Path) -> Result<ReadRun> {
    let finished = is_finished(run);
    let status = match (finished, &error) {
        (true, _) => RunStatus::Finished,
        (false, Some(_)) => RunStatus::Failed,
        (false, None) => RunStatus::Pending,
    };
    let (mut before, mut after, mut counted) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    if finished && run.recipe.evaluate.is_some() {
        before = sets(&run.dir.join("evaluation-before"), &mut BTreeMap::new())?;
        after = sets(&run.dir.join("evaluation-after"), &mut counted)?;
    }
    let dir = run.dir.strip_prefix(sweep_dir).unwrap_or(&run.dir).display().to_string();
    let error = if finished { None } else { error };
    Ok(ReadRun { result: RunResult { seed: run.seed, dir, status, error, before, after }, counted })
}

/// Scores of every set that was evaluated into a folder, and the correct responses of every problem.
fn sets(dir: &Path, counted: &mut BTreeMap<String, Counted>) -> Result<BTreeMap<String, Scores>> {
    let mut all = BTreeMap::new();
    for (name, folder) in evaluation_folders(dir)? {
        let name = if folder == dir { UNNAMED.to_string() } else { name };
        let evaluation = read_evaluation(&folder)?;
        let correct = shares(&evaluation, &read_jsonl(&folder.join(PROBLEMS))?)?.into_iter().collect();
        counted.insert(name.clone(), Counted { n: evaluation.scores.responses_per_problem, correct });
        all.insert(name, evaluation.scores);
    }
    Ok(all)
}
