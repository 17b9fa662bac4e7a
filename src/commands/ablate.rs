//! `bupo ablate`: the model without each of its modules, beside the whole one: `ablation.json`, `modules.parquet` and a table. Saved now
//! and then, so that an interrupted study goes on. And `--ablate` of other verbs: a model that is run without some modules.

use super::analyze::source::{self, Contents, Source};
use super::analyze::{next_pack, replaced, samples};
use super::device::{self, Device, on_device};
use super::evaluate::write_json;
use super::run_folder::checkpoint;
use super::{open_model, optional_encoder};
use crate::analysis::ablation::{Averages, Effect, Findings, Replacement, Study, Sums, Watch, modules, summary, table};
use crate::cli::{AblateArgs, WithoutArgs};
use crate::compute::Backend;
use crate::evaluate::result::WeightsFingerprint;
use crate::model::ablation::{Means, Module};
use crate::model::{Compute, LayerIndex, Model, ModelConfig, Workspace};
use crate::run::atomic::ensure_writable;
use crate::run::interrupt;
use crate::run::manifest::peak_memory_mib;
use crate::run::parquet::{Column, write_parquet};
use crate::run::progress::{Progress, say};
use crate::run::unfinished::Unfinished;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// Files of a study's folder.
pub const RESULT: &str = "ablation.json";
const MODULES: &str = "modules.parquet";
/// While the study is not finished. An analysis in the same folder has its own.
const PROGRESS: &str = "ablation-progress.json";

/// Everything that the sums depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct About {
    bupo: String,
    /// Fingerprints.
    model: String,
    data: String,
    modules: Vec<String>,
    replace: Replacement,
    compute: Compute,
}

impl WithoutArgs {
    /// What a model is called in a result: by its name, and what it is without.
    pub fn called(&self, model: &Path) -> String {
        let model = model.display();
        if self.modules.is_empty() { model.to_string() } else { format!("{model} without {}", self.modules.join(", ")) }
    }

    /// These of a model, each once, bottom up. Errors: modules that it does not have.
    pub fn modules(&self, config: &ModelConfig) -> Result<Vec<Module>> {
        let mut named = Vec::new();
        for name in &self.modules {
            named.extend(Module::parse_some(name.trim(), config).with_context(|| format!("--ablate {name:?}"))?);
        }
        named.sort_by_key(|module| (module.layer(), module.to_string()));
        named.dedup();
        Ok(named)
    }

    /// Runs a model without these from here on; their names.
    pub fn apply<B: Backend>(&self, model: &mut Model<B>) -> Result<Vec<String>> {
        let modules = self.modules(&model.config)?;
        model.ablate(&modules, None)?;
        Ok(names(&modules))
    }
}

/// Modules as results have them.
pub fn names(modules: &[Module]) -> Vec<String> {
    modules.iter().map(Module::to_string).collect()
}

pub fn run(args: &AblateArgs) -> Result<()> {
    source::check_file(&args.data)?;
    on_device!(device::open(args.numbers.device, args.numbers.compute)?, backend => run_on(args, backend))
}

fn run_on<B: Device>(args: &AblateArgs, backend: B) -> Result<()> {
    let dir = checkpoint(&args.model)?;
    let model = open_model(&dir)?;
    // While they are on the host.
    let mut fingerprint = WeightsFingerprint::default();
    fingerprint.look(&model.params, 0..model.params.len());
    let weights = fingerprint.of(&model.config);
    let mut model = model.on(backend);
    let layers = args.layers.as_deref().unwrap_or("1-");
    let layers = LayerIndex::parse_some(layers, model.config.layers).with_context(|| format!("--layers {layers}"))?;
    let modules = modules(&model.config, &layers, args.heads);
    let prompts = optional_encoder(&dir, &args.prompt, model.config.max_position_embeddings)?;
    let source = Source { path: &args.data, limit: args.limit.unwrap_or(usize::MAX), prompts: prompts.as_ref() };
    let contents = source.scan(&model)?;
    ensure!(
        contents.unanswered == 0,
        "{} of {} rows of {} have no response: expected rows that have one. `bupo analyze` has the model answer, and its \
         responses.jsonl is data for this",
        contents.unanswered,
        contents.rows,
        args.data.display()
    );
    ensure_writable(&args.out.join(RESULT))?;
    interrupt::install()?;
    let about = About {
        bupo: env!("CARGO_PKG_VERSION").into(),
        model: weights,
        data: contents.fingerprint.clone(),
        modules: names(&modules),
        replace: args.replace,
        compute: model.backend.compute(),
    };
    let mut saved = Unfinished::new(args.out.join(PROGRESS), Duration::from_secs(args.save_every), || about.clone());
    let sums = saved.open()?;
    let mut ws = Workspace::new(&model);
    let means = match args.replace {
        Replacement::Zero => None,
        Replacement::Mean => match means(&source, &contents, &model, &mut ws)? {
            None => {
                interrupt::stop("stopped while means were counted, which begins anew: nothing was saved");
                return Ok(());
            }
            means => means,
        },
    };
    let mut study = match sums {
        None => Study::new(modules, means),
        Some(sums) => Study::go_on(modules, means, sums)
            .with_context(|| format!("{} is broken: {}", saved.path().display(), saved.remedy()))?,
    };
    let from = study.sums().samples();
    if study.sums().tokens() > 0 {
        say(&format!("{from} of {} samples were done before: going on", contents.rows));
    }
    // A sample without each module is one of so many parts of the work.
    let parts = about.modules.len() as u64;
    let mut progress = Progress::new("ablate", contents.rows as u64 * parts);
    progress.inc(from as u64 * parts);
    let (start, tokens_before) = (Instant::now(), study.sums().tokens());
    let mut rest = samples(&source, None, from)?.peekable();
    while rest.peek().is_some() {
        let pack = next_pack(&mut rest)?;
        let mut done = |sums: &Sums, parts: u64| {
            progress.inc(parts);
            saved.save(sums, false)
        };
        let mut watch = Watch { go_on: &|| !interrupt::requested(), done: &mut done };
        if !study.add(&mut model, &mut ws, &pack, &mut watch)? {
            saved.save(study.sums(), true)?;
            progress.finish();
            interrupt::stop(&format!(
                "stopped after {} of {} samples and some of the next, saved in {}. The same command goes on from here",
                study.sums().samples(),
                contents.rows,
                saved.path().display()
            ));
            return Ok(());
        }
    }
    progress.finish();
    ensure!(study.sums().samples() == contents.rows, "{} changed while it was read", args.data.display());
    let seconds = start.elapsed().as_secs_f64();
    let findings = study.finish(&model.config, &args.model.to_string_lossy())?;
    save(&args.out, &findings)?;
    saved.remove()?;
    if args.json {
        let tokens = findings.tokens - tokens_before;
        let line = serde_json::json!({ "tokens": tokens, "seconds": seconds, "peak_rss_mib": peak_memory_mib() });
        println!("{line}");
        return Ok(());
    }
    println!("{}\n{}", table(&findings), summary(&findings));
    println!("{seconds:.1} s. Written to {}", args.out.join(RESULT).display());
    Ok(())
}

/// What modules write on average over all of the data; none if that was interrupted.
fn means<B: Device>(
    source: &Source<'_>,
    contents: &Contents,
    model: &Model<B>,
    ws: &mut Workspace<B>,
) -> Result<Option<Means>> {
    let (mut averages, mut progress) = (Averages::new(&model.config), Progress::new("means", contents.rows as u64));
    let mut rest = samples(source, None, 0)?.peekable();
    while rest.peek().is_some() && !interrupt::requested() {
        averages.add(model, ws, &next_pack(&mut rest)?, &mut |n| progress.inc(n))?;
    }
    progress.finish();
    Ok(rest.peek().is_none().then(|| averages.finish()))
}

/// Writes a study into a folder: `ablation.json`, and its numbers by module as `modules.parquet`.
fn save(dir: &Path, findings: &Findings) -> Result<()> {
    let modules = findings.modules();
    let text = |of: &dyn Fn(&str) -> String| Column::Text(modules.iter().map(|(name, _)| of(name)).collect());
    // Of "head:6.3" the kind, the layer and the head; of others no head.
    let part = |name: &str, i: usize| name.split([':', '.']).nth(i).unwrap_or_default().to_string();
    let number =
        |i: usize| Column::U32(modules.iter().map(|(name, _)| part(name, i).parse().unwrap_or_default()).collect());
    let replace = serde_json::to_value(findings.replace).ok().and_then(|v| Some(v.as_str()?.to_string()));
    let replace = replace.unwrap_or_default();
    let numbers = |of: fn(&Effect) -> f64| Column::F64(modules.iter().map(|(_, effect)| of(effect)).collect());
    let columns = [
        ("model", text(&|_| findings.model.clone())),
        ("replace", text(&|_| replace.clone())),
        ("module", text(&|name| name.to_string())),
        ("kind", text(&|name| part(name, 0))),
        ("layer", number(1)),
        ("head", number(2)),
        ("kl", numbers(|effect| effect.kl)),
        ("kl_std", numbers(|effect| effect.kl_std)),
        ("log_prob_change", numbers(|effect| effect.log_prob_change)),
        ("entropy_change", numbers(|effect| effect.entropy_change)),
        ("top1_agreement", numbers(|effect| effect.top1_agreement)),
    ];
    write_parquet(&dir.join(MODULES), &columns)?;
    replaced(&dir.join(RESULT), (&findings.model, findings.tokens));
    write_json(&dir.join(RESULT), findings)
}
