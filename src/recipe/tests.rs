use super::*;
use crate::model::init::InitConfig;
use crate::rl::{Advantage, Stop};
use proptest::prelude::*;

mod page;

const SMALL: &str = "name = \"x\"\n[model]\npath = \"m\"\n[data]\ntrain = [\"a.parquet\"]\n[optimizer]\neps = 1e-6\n";

fn error(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    format!("{:#}", Recipe::parse(text, "x.toml", &overrides).unwrap_err())
}

#[test]
fn every_shipped_recipe_is_whole_and_reads_back_equal() {
    for name in Recipe::shipped() {
        let recipe = Recipe::load(name, &[]).unwrap();
        assert_eq!(recipe.name, name);
        let again = Recipe::parse(&recipe.to_toml().unwrap(), "again", &[]).unwrap();
        assert_eq!(again, recipe);
        assert_eq!(recipe.bupo.steps > 0, name.ends_with("bupo"), "{name}");
    }
}

#[test]
fn the_papers_runs_have_the_papers_settings() {
    for (name, layer, steps) in
        [("qwen3-4b", 6, 30), ("qwen3-8b", 6, 20), ("octothinker-3b", 26, 20), ("octothinker-8b", 30, 20)]
    {
        let bupo = Recipe::load(&format!("{name}-bupo"), &[]).unwrap();
        let grpo = Recipe::load(&format!("{name}-grpo"), &[]).unwrap();
        assert_eq!((bupo.bupo.steps, bupo.rl.steps, bupo.rl.lr), (steps, 300, 1e-6));
        assert_eq!(bupo.bupo.layer, crate::rl::LayerChoice::Number(layer));
        assert_eq!((bupo.rollout.prompts_per_step, bupo.rollout.group_size, bupo.rl.mini_batch_prompts), (128, 8, 32));
        // Invariant: GRPO is BuPO with zero internal steps, and nothing else.
        let same = Recipe { name: bupo.name.clone(), run: bupo.run.clone(), bupo: bupo.bupo.clone(), ..grpo };
        assert_eq!(same, bupo);
    }
}

#[test]
fn the_papers_recipes_ask_as_the_named_templates_do() {
    for (name, prompt) in [
        ("qwen3-4b-bupo", PromptTemplate::Qwen3 {}),
        ("qwen3-8b-grpo", PromptTemplate::Qwen3 {}),
        ("octothinker-3b-bupo", PromptTemplate::OctoThinker {}),
    ] {
        let recipe = Recipe::load(name, &[]).unwrap();
        assert_eq!(recipe.prompt, prompt.spelled_out(), "{name}");
    }
}

/// The whole message, to the letter: it is what a person sees.
#[test]
fn typos_are_named_with_key_line_and_remedy() {
    let with = |more: &str| format!("{SMALL}{more}");
    for (text, expected) in [
        (SMALL.replace("eps =", "epps ="), "unknown key optimizer.epps: did you mean optimizer.eps? (x.toml, line 7)"),
        (with("[lss]\n"), "unknown key lss: did you mean loss? (x.toml, line 8)"),
        (
            with("[loss]\n\nclip_hihg = 1.0"),
            "unknown key loss.clip_hihg: did you mean loss.clip_high? (x.toml, line 10)",
        ),
        (with("lr = 1e-5"), "unknown key optimizer.lr: did you mean critic.lr or rl.lr or warmup.lr? (x.toml, line 8)"),
        (with("[rl]\nclip_low = 0.1"), "unknown key rl.clip_low: did you mean loss.clip_low? (x.toml, line 9)"),
        (with("[rl]\nbupo.steps = 1"), "unknown key rl.bupo: expected one of steps, lr, advantage, gamma"),
        (with("[model.inti]\n"), "unknown key model.inti: did you mean model.init? (x.toml, line 8)"),
        (
            with("[model.init]\nlayer = 3"),
            "unknown key model.init.layer: did you mean model.init.layers? (x.toml, line 9)",
        ),
        // A line that looks like a header, and a table whose kind a key decides.
        (
            with("[prompt]\ntemplate = \"plain\"\ntxt = \"\"\"\n[INST] {problem}\"\"\""),
            "unknown key prompt.txt: did you mean prompt.text? (x.toml, line 10)",
        ),
        (with("reward.rul = 1"), "unknown key optimizer.reward: expected one of beta1"),
        (SMALL.replace("name = \"x\"\n", ""), "the key name is missing (x.toml, line 1)"),
        (with("[bupo]\nlayer = 2"), "the key bupo.steps is missing (x.toml, line 8)"),
    ] {
        let message = error(&text, &[]);
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
}

#[test]
fn wrong_values_are_named_with_key_and_line() {
    let with = |more: &str| format!("{SMALL}{more}");
    for (text, expected) in [
        (
            SMALL.replace("1e-6", "\"fast\""),
            "optimizer.eps: invalid type: string \"fast\", expected f64 (x.toml, line 7)",
        ),
        (with("[rl]\nsteps = -1"), "rl.steps: invalid value: integer `-1`, expected usize (x.toml, line 9)"),
        (with("[rollout]\n\nslots = 1.5"), "rollout.slots: invalid type: floating point `1.5`, expected usize"),
        (
            with("[rl]\nadvantage = \"gpro\""),
            "rl.advantage = \"gpro\": did you mean \"grpo\"? expected \"grpo\", \"dr-grpo\"",
        ),
        (
            with("[reward]\nrule = \"zzzzzz\""),
            "reward.rule = \"zzzzzz\": expected \"boxed\", \"exact\", \"math\", \"numeric\", \"choice\", \"countdown\", \"list\" (x.toml, line 9)",
        ),
        (
            with("[bupo]\nlayer = 0\nsteps = 1"),
            "bupo.layer: invalid value: integer `0`, expected a layer counted from 1",
        ),
        (with("rl = 3"), "optimizer.rl"),
        (with("[evaluate]\nk = [1, \"2\"]"), "evaluate.k: invalid type: string \"2\", expected usize (x.toml, line 9)"),
        ("\n\nname = [".to_string(), "(x.toml, line 3)"),
        (with("[optimizer]\n"), "(x.toml, line 8)"),
    ] {
        let message = error(&text, &[]);
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
}

#[test]
fn overrides_set_values_and_are_checked_too() {
    let recipe = Recipe::parse(
        SMALL,
        "x",
        &["rl.lr=1e-5".into(), "rl.advantage=rloo".into(), "bupo.layer=3".into(), "bupo.steps=2".into()],
    )
    .unwrap();
    assert_eq!((recipe.rl.lr, recipe.rl.advantage), (1e-5, Advantage::Rloo));
    assert_eq!((recipe.bupo.layer, recipe.bupo.steps), (crate::rl::LayerChoice::Number(3), 2));
    let list =
        Recipe::parse(SMALL, "x", &["phase=[{ policy = \"layer:6\" }]".into(), "rollout.top_k=5".into()]).unwrap();
    assert_eq!((list.phase[0].policy.as_str(), list.rollout.top_k), ("layer:6", 5));
    assert!(error(SMALL, &["rl.stepz=3"]).contains("did you mean rl.steps?"));
    assert!(error(SMALL, &["rl"]).contains("KEY=VALUE"));
    assert!(error(SMALL, &["name.x=1"]).contains("not a section"));
    assert!(error(SMALL, &["rl..steps=1"]).contains("dotted key"));
    assert!(error(SMALL, &["optimizer.lr=1e-5"]).contains("or rl.lr or"));
    assert!(error(SMALL, &["rl.steps=many"]).contains("rl.steps: invalid type: string \"many\""));
    // One assignment sets one key, whatever its text.
    assert!(error(SMALL, &["rl.steps=1\nseed = 9"]).contains("invalid type: string"));
    // A mistake of the file's own keeps its line beside overrides; one that an override mends is none.
    let wrong = SMALL.replace("1e-6", "\"fast\"");
    assert!(error(&wrong, &["seed=2"]).contains("(x.toml, line 7)"));
    assert_eq!(Recipe::parse(&wrong, "x", &["optimizer.eps=1e-5".into()]).unwrap().optimizer.eps, 1e-5);
}

#[test]
fn nonsense_is_refused_before_anything_starts() {
    for (key, expected) in [
        ("rollout.group_size=0", "rollout.group_size = 0"),
        ("rollout.temperature=0.0", "temperature"),
        ("rollout.top_p=1.5", "top_p"),
        ("rl.gamma=2.0", "gamma"),
        ("loss.clip_low=-1.0", "[loss]"),
        ("loss.kind=dapo", "did you mean \"gspo\"? expected \"ppo-clip\", \"gspo\", \"cispo\""),
        ("loss.top_entropy_quantile=0.0", "top_entropy_quantile = 0"),
        ("loss.rollout_correction.cap=0.5", "rollout_correction.cap = 0.5"),
        ("loss.rollout_correction.mode=\"token\"", "rollout_correction.mode = \"token\""),
        ("rl.epochs=0", "rl.epochs = 0"),
        ("rollout.dynamic_sampling.max_batches=1", "[rollout.dynamic_sampling]"),
        ("rollout.dynamic_sampling.max_batch=4", "did you mean rollout.dynamic_sampling.max_batches?"),
        ("rollout={ group_size = 1, dynamic_sampling = {} }", "at least 2"),
        ("optimizer.eps=-1.0", "[optimizer]"),
        ("evaluate.k=[64]", "evaluate.k"),
        ("model.init.layers=2", "not both"),
        ("name=a/b", "name"),
        ("name=..", "name"),
        ("name=\"\"", "name"),
        ("run.dir=\"\"", "run.dir"),
        ("threads=0", "threads = 0"),
        ("rl.lr=nan", "rl.lr"),
        ("rollout.temperature=inf", "rollout.temperature"),
        ("rollout.temperature=1e-40", "rollout.temperature = 1e-40: expected a finite number"),
        ("evaluate.temperature=1e-40", "evaluate.temperature = 1e-40: expected 0 (greedy) or"),
        ("analysis.threshold=-1.0", "analysis.threshold"),
        ("loss.dual_clip=1.0", "dual_clip"),
        ("rl.advantage=gae", "add a section [critic]"),
        ("critic={}", "drop the section"),
        ("critic.lamda=0.9", "did you mean critic.lambda?"),
        ("warmup.max_steps=0", "warmup.max_steps"),
        ("warmup.batch=8", "data.arithmetic"),
        ("evaluate.n=16", "[evaluate] needs data"),
        ("data.modular.level=1", "and not both: it has data.modular"),
        ("bupo={ steps = 400 }", "rl.steps = 300"),
        ("bupo={ steps = 30, stop = \"guard\" }", "bupo.stop = \"guard\" needs looks inside, but probe.every = 0"),
        ("bupo={ steps = 30, guard = { threshold = 0.0 } }", "[bupo.guard]: threshold = 0"),
        ("probe.responses=0", "probe.responses = 0"),
        ("probe.every=often", "probe.every: invalid type"),
        ("probe.evry=1", "did you mean probe.every?"),
    ] {
        let message = error(SMALL, &[key]);
        assert!(message.contains(expected), "{key}: {message}");
    }
    let critic = |more: &[&str]| error(SMALL, &[&["rl.advantage=gae"], more].concat());
    assert!(critic(&["critic.lambda=2.0"]).contains("[critic]: lambda = 2"));
    assert!(critic(&["critic.warmup_steps=400"]).contains("critic.warmup_steps = 400, but the run has rl.steps = 300"));
    let late = critic(&["critic.warmup_steps=290", "bupo={ layer = 1, steps = 20 }"]);
    assert!(late.contains("bupo.steps = 20") && late.contains("290 of them the critic's warm-up"), "{late}");
    assert!(format!("{:#}", Recipe::load("no-such-recipe", &[]).unwrap_err()).contains("arithmetic-bupo"));
}

#[test]
fn a_guard_must_have_something_to_judge_and_time_for_it() {
    let with = |bupo: &str, every: usize| {
        let overrides = [format!("bupo={{ {bupo}, stop = \"guard\" }}"), format!("probe.every={every}")];
        Recipe::parse(SMALL, "x.toml", &overrides).map_err(|e| format!("{e:#}"))
    };
    assert_eq!(with("steps = 30", 10).unwrap().bupo.stop, Stop::Guard);
    let message = with("steps = 30", 30).unwrap_err();
    assert!(message.contains("bupo.steps = 30, and probe.every = 30"), "{message}");
    // GRPO made of a guarded recipe has nothing to guard.
    with("steps = 0", 30).unwrap();
    let message = error(SMALL, &["bupo={ steps = 1, stop = \"seconds\" }"]);
    assert!(message.contains("bupo.stop = \"seconds\": expected \"steps\", \"guard\""), "{message}");
}

#[test]
fn only_a_shipped_recipes_own_name_stands_for_it() {
    for name in
        ["arithmetic-grpo", "arithmetic-grpo.toml", "recipes/arithmetic-grpo.toml", "./recipes/arithmetic-grpo.toml"]
    {
        assert_eq!(Recipe::load(name, &[]).unwrap().name, "arithmetic-grpo");
    }
    // A mistyped path to a changed copy must not train the one that ships.
    for name in ["experiments/arithmetic-grpo.toml", "/nowhere/arithmetic-grpo.toml", "arithmetic", ""] {
        assert!(Recipe::load(name, &[]).is_err(), "{name}");
    }
}

#[test]
fn inputs_that_are_not_there_are_named_before_anything_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (file, model) = (dir.path().join("a.jsonl"), dir.path().join("model"));
    let overrides =
        [format!("data.train=[{file:?}]"), format!("model.path={model:?}"), "bupo={layer = 40, steps = 2}".into()];
    let recipe = Recipe::parse(SMALL, "x", &overrides).unwrap();
    let error = |resume: bool| format!("{:#}", recipe.check_inputs(resume).unwrap_err());
    assert!(error(false).contains("data.train names") && error(false).contains("a.jsonl"), "{}", error(false));
    std::fs::write(&file, "").unwrap();
    assert!(error(false).contains("model.path names"), "{}", error(false));
    recipe.check_inputs(true).unwrap();
    std::fs::create_dir(&model).unwrap();
    let config = InitConfig { layers: 36, max_position_embeddings: 40_960, ..InitConfig::default() };
    let config = config.model_config(1000).unwrap().to_json();
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    assert_eq!(error(false), "bupo.layer = 40, but this model has layers 1..=36 (recipe x)");
}

#[test]
fn a_layer_outside_of_the_model_is_refused_with_its_range() {
    let recipe = Recipe::load("qwen3-4b-bupo", &["bupo.layer=40".into()]).unwrap();
    let config =
        InitConfig { layers: 36, max_position_embeddings: 40_960, ..InitConfig::default() }.model_config(1000).unwrap();
    let message = format!("{:#}", recipe.check_against(&config).unwrap_err());
    assert!(message.contains("40") && message.contains("1..=36"), "{message}");
    let recipe = Recipe::load("qwen3-4b-bupo", &["rollout.max_new_tokens=50000".into()]).unwrap();
    assert!(format!("{:#}", recipe.check_against(&config).unwrap_err()).contains("40960 tokens"));
}

#[test]
fn phases_and_groups_are_checked_before_anything_starts() {
    let one = "[[phase]]\npolicy = \"layer:2\"\nsteps = 3\n";
    let last = "[[phase]]\npolicy = \"final\"\n";
    let with = |more: &str| format!("{SMALL}{more}");
    for (text, expected) in [
        (with(&format!("{one}{last}[bupo]\nlayer = 2\nsteps = 3\n")), "[bupo] and [[phase]]"),
        (with(one), "leave steps out of the last phase"),
        (with(&format!("{last}{one}")), "phase 1 (final) has no steps"),
        (with(&format!("{one}[rl]\nsteps = 3\n{last}")), "phase 2 (final) would begin with step 4"),
        (with("[[phase]]\npolcy = \"final\"\n"), "polcy"),
        (with(&format!("{one}stop = \"guard\"\n{last}")), "probe.every = 0"),
        (with("[[phase]]\npolicy = \"layer:2\"\nstop = \"guard\"\n"), "needs steps"),
        (with(&format!("{last}stop = \"guard\"\n")), "ends an internal phase"),
        (with(&format!("{one}guard = {{}}\n{last}")), "set stop = \"guard\""),
        (with("[[optimizer.group]]\nlayers = \"1-2\"\nlr_scale = -1.0\n"), "group.lr_scale = -1"),
        (with("[[optimizer.group]]\nlayers = \"1-2\"\n"), "lr_scale"),
    ] {
        let message = error(&text, &[]);
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    // What needs the model's shape: 36 layers.
    let config = InitConfig { layers: 36, max_position_embeddings: 40_960, ..InitConfig::default() };
    let config = config.model_config(1000).unwrap();
    let group = |layers: &str| format!("[[optimizer.group]]\nlayers = \"{layers}\"\nlr_scale = 0.0\n");
    for (text, expected) in [
        (with("[[phase]]\npolicy = \"layer:40\"\n"), "1..=36"),
        (with(&group("1-40")), "a layer from 1 to 36"),
        (
            with(&format!("{}{}[[phase]]\npolicy = \"layer:2\"\n", group("1-6"), group("embedding"))),
            "freezes everything",
        ),
    ] {
        let message = format!("{:#}", Recipe::parse(&text, "x", &[]).unwrap().check_against(&config).unwrap_err());
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    let text = with(&format!("{one}{last}{}", group("1-6")));
    let recipe = Recipe::parse(&text, "x", &[]).unwrap();
    recipe.check_against(&config).unwrap();
    assert_eq!(Recipe::parse(&recipe.to_toml().unwrap(), "again", &[]).unwrap(), recipe);
    assert_eq!(recipe.phases().len(), 2);
}

proptest! {
    /// What the run's folder keeps is the run's recipe, to the last bit of every number.
    #[test]
    fn a_resolved_recipe_reads_back_equal(
        (seed, steps, lr, beta2) in (0..=i64::MAX as u64, 0usize..1 << 40, 1e-12f64..1.0, 0.0f64..1.0),
        (temperature, top_p, text) in (1e-3f32..10.0, 1e-3f32..=1.0, ".*"),
        (layer, threshold, dir) in (1usize..100, proptest::option::of(0.0f64..9.0), proptest::option::of(r#"[a-z./\\" é]+"#)),
    ) {
        let mut recipe = Recipe::load("arithmetic-bupo", &[]).unwrap();
        (recipe.seed, recipe.rl.steps, recipe.bupo.steps) = (seed, steps, 0);
        (recipe.rl.lr, recipe.optimizer.beta2) = (lr, beta2);
        (recipe.rollout.temperature, recipe.rollout.top_p) = (temperature, top_p);
        recipe.bupo.layer = crate::rl::LayerChoice::Number(layer);
        recipe.analysis.threshold = threshold;
        recipe.run.dir = dir.map(PathBuf::from);
        recipe.prompt = PromptTemplate::Plain { text: format!("{}{{problem}}", text.replace("{problem}", "")) };
        let again = Recipe::parse(&recipe.to_toml().unwrap(), "again", &[]);
        prop_assert_eq!(again.unwrap(), recipe);
    }

    /// A hostile file or override is refused with a message, never with a panic.
    #[test]
    fn no_text_panics(text in r"\PC*", key in r#"[a-z.\[\]"']{0,12}"#, value in r"\PC{0,12}") {
        drop(Recipe::parse(&text, "x", &[]));
        drop(Recipe::parse(&format!("{SMALL}{text}"), "x", &[]));
        drop(Recipe::parse(SMALL, "x", &[format!("{key}={value}")]));
    }
}

#[test]
fn one_generated_task_and_a_reward_that_can_judge_it() {
    let small = SMALL.replace("train = [\"a.parquet\"]\n", "");
    for (more, expected) in [
        ("[data.modular]\nlevel = 9", "[data.modular]: level = 9: expected 1 to 4, the levels of modular"),
        ("[data.modular]\nmodulus = 2", "[data.modular]: modulus = 2: expected 3 to 1000"),
        ("[data.modular]\n[data.lists]", "and not both: it has data.lists and data.modular"),
        (
            "[data.lists]\n[reward]\nrule = \"exact\"",
            "reward.rule = \"exact\" cannot judge [data.lists]: expected \"list\"",
        ),
        ("[data.countdown]", "reward.rule = \"boxed\" cannot judge [data.countdown]: expected \"countdown\""),
        ("[data.brackets]\noperations = [1, 3]", "operations = [1, 3]: expected the fewest and the most, from 2 to 16"),
        ("[data.chains]", "unknown key data.chains"),
        (
            "[data.lists]\n[reward]\nrule = \"list\"\n[warmup.task.lists]\nlevel = 9",
            "[warmup.task.lists]: level = 9: expected 1 to 4",
        ),
        (
            "[data.lists]\n[reward]\nrule = \"list\"\n[warmup.task.brackets]",
            "reward.rule = \"list\" cannot judge [warmup.task.brackets]: expected \"exact\"",
        ),
    ] {
        let message = error(&format!("{small}{more}"), &[]);
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
}

#[test]
fn named_sets_are_checked_and_take_what_they_do_not_say_from_the_section() {
    let two = "evaluate.set=[{ name = \"held-out\" }, { name = \"longer\", problems = 7, task = { brackets = {} } }]";
    let recipe = Recipe::load("brackets-grpo", &[two.into()]).unwrap();
    let (e, task) = (recipe.evaluate.as_ref().unwrap(), recipe.data.task().unwrap());
    let sets = e.sets(&recipe.data).unwrap();
    assert_eq!((sets[0].name.as_str(), sets[0].problems, sets[0].n), ("held-out", e.problems, e.n));
    assert_eq!(sets[0].source, SetSource::Task(Some(task.clone())));
    assert_eq!((sets[1].problems, &sets[1].k), (7, &e.k));
    assert_ne!(sets[1].source, sets[0].source);
    for (set, expected) in [
        ("{ name = \"a/b\" }", "name = \"a/b\""),
        ("{ name = \"a\", level = 7 }", "\"a\": level = 7: expected 1 to 4"),
        ("{ name = \"a\", level = 1, data = [\"x\"] }", "data beside a level"),
        ("{ name = \"a\", n = 0 }", "at least 1"),
        ("{ name = \"a\" }, { name = \"a\" }", "there twice"),
        ("{ name = \"a\", task = { lists = { steps = [9, 1] } } }", "[evaluate.set.task.lists]: steps = [9, 1]"),
        ("{ name = \"a\", task = { poker = {} } }", "poker"),
    ] {
        let set = format!("evaluate.set=[{set}]");
        let message = format!("{:#}", Recipe::load("brackets-grpo", &[set]).unwrap_err());
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    let both = Recipe::load("brackets-grpo", &["evaluate.data=[\"x.jsonl\"]".into()]).unwrap_err();
    assert!(format!("{both:#}").contains("[[evaluate.set]] are both there"), "{both:#}");
    let files = error(SMALL, &["evaluate.set=[{ name = \"a\", level = 2 }]"]);
    assert!(files.contains("only a generated task"), "{files}");
}
