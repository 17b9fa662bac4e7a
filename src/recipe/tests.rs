use super::*;

const SMALL: &str = "name = \"x\"\n[model]\npath = \"m\"\n[data]\ntrain = [\"a.parquet\"]\n[optimizer]\nlr = 1e-6\n";

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
        assert_eq!((bupo.bupo.steps, bupo.rl.steps, bupo.optimizer.lr), (steps, 300, 1e-6));
        assert_eq!(bupo.bupo.layer, crate::rl::LayerChoice::Number(layer));
        assert_eq!((bupo.rollout.prompts_per_step, bupo.rollout.group_size, bupo.rl.mini_batch_prompts), (128, 8, 32));
        // Invariant: GRPO is BuPO with zero internal steps, and nothing else.
        let same = Recipe { name: bupo.name.clone(), run: bupo.run.clone(), bupo: bupo.bupo.clone(), ..grpo };
        assert_eq!(same, bupo);
    }
}

#[test]
fn typos_are_named_with_line_and_remedy() {
    let message = error(&SMALL.replace("lr =", "lrr ="), &[]);
    assert!(
        message.contains("optimizer.lrr")
            && message.contains("line 7")
            && message.contains("did you mean optimizer.lr?"),
        "{message}"
    );
    let message = error(&format!("{SMALL}[lss]\n"), &[]);
    assert!(message.contains("did you mean") && message.contains("loss"), "{message}");
    let message = error(&SMALL.replace("1e-6", "\"fast\""), &[]);
    assert!(message.contains("line 7") && message.contains("optimizer"), "{message}");
    let message = error("name = [", &[]);
    assert!(message.contains("x.toml"), "{message}");
}

#[test]
fn overrides_set_values_and_are_checked_too() {
    let recipe = Recipe::parse(
        SMALL,
        "x",
        &["optimizer.lr=1e-5".into(), "rl.advantage=rloo".into(), "bupo.layer=3".into(), "bupo.steps=2".into()],
    )
    .unwrap();
    assert_eq!((recipe.optimizer.lr, recipe.rl.advantage), (1e-5, Advantage::Rloo));
    assert_eq!((recipe.bupo.layer, recipe.bupo.steps), (crate::rl::LayerChoice::Number(3), 2));
    assert!(error(SMALL, &["rl.stepz=3"]).contains("did you mean rl.steps?"));
    assert!(error(SMALL, &["rl"]).contains("KEY=VALUE"));
    assert!(error(SMALL, &["name.x=1"]).contains("not a section"));
}

#[test]
fn nonsense_is_refused_before_anything_starts() {
    for (key, expected) in [
        ("rollout.group_size=0", "rollout.group_size = 0"),
        ("rollout.temperature=0.0", "temperature"),
        ("rollout.top_p=1.5", "top_p"),
        ("rl.gamma=2.0", "gamma"),
        ("loss.clip_low=-1.0", "[loss]"),
        ("optimizer.lr=-1.0", "[optimizer]"),
        ("evaluate.k=[64]", "evaluate.k"),
        ("model.init.layers=2", "not both"),
        ("name=a/b", "name"),
    ] {
        let message = error(SMALL, &[key]);
        assert!(message.contains(expected), "{key}: {message}");
    }
    assert!(format!("{:#}", Recipe::load("no-such-recipe", &[]).unwrap_err()).contains("arithmetic-bupo"));
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
