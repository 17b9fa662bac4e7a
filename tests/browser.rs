//! The pages in a real browser: headless Chromium, driven through chromedriver.
//!
//! Without the two installed these tests say so and pass; with `BUPO_BROWSER_TESTS=1`, as `.ci/run` sets it, they fail.

mod common;

use axum::http::Method;
use common::pages::{Server, runs};
use common::{copy, json, ok, rows, text};
use fantoccini::actions::{InputSource, MouseActions, PointerAction};
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program on the path.
fn program(names: &[&str]) -> Option<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    names.iter().flat_map(|n| folders.iter().map(move |f| f.join(n))).find(|p| p.is_file())
}

/// What chromedriver is asked for what the browser has logged.
#[derive(Debug)]
struct BrowserLog;

impl WebDriverCompatibleCommand for BrowserLog {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({"type": "browser"}).to_string()))
    }
}

struct Browser {
    driver: Child,
    client: Client,
    /// The browser's own files, and what it downloads.
    folder: tempfile::TempDir,
}

impl Browser {
    async fn start(driver: &Path, chromium: &Path) -> Browser {
        let folder = tempfile::tempdir().unwrap();
        let mut driver =
            Command::new(driver).arg("--port=0").stdout(Stdio::piped()).spawn().expect("chromedriver starts");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.by_ref().find_map(|line| {
            let line = line.ok()?;
            line.split("successfully on port ").nth(1)?.trim_end_matches('.').parse::<u16>().ok()
        });
        std::thread::spawn(move || lines.for_each(drop));
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--force-prefers-reduced-motion",
            "--window-size=1300,900",
        ];
        let capabilities = json!({
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {
                "binary": chromium,
                "args": flags.iter().copied().chain([profile.as_str()]).collect::<Vec<_>>(),
                "prefs": {"download.default_directory": folder.path().join("downloads")},
            },
        });
        let Value::Object(capabilities) = capabilities else { unreachable!("an object") };
        let url = format!("http://127.0.0.1:{}", port.expect("chromedriver names its port"));
        let client = ClientBuilder::new(HttpConnector::new()).capabilities(capabilities).connect(&url).await;
        Browser { driver, client: client.expect("a browser"), folder }
    }

    async fn js(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.unwrap_or_else(|e| panic!("{script}: {e}"))
    }

    /// Waits until a script says something that is true.
    async fn until(&self, script: &str) -> Value {
        let start = Instant::now();
        loop {
            let value = self.js(script).await;
            if !matches!(value, Value::Null | Value::Bool(false)) && value != json!("") {
                return value;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "waited in vain for: {script}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn mouse(&self, x: f64, y: f64, click: bool) {
        let to = |x, y| PointerAction::MoveTo { duration: Some(Duration::from_millis(50)), x, y };
        let mut actions = MouseActions::new("mouse".into()).then(to(x - 3.0, y - 3.0)).then(to(x, y));
        if click {
            let button = 0;
            actions = actions.then(PointerAction::Down { button }).then(PointerAction::Up { button });
        }
        self.client.perform_actions(actions).await.unwrap();
    }

    /// What a chart's CSV button gives, as rows of cells (none of which hold commas here).
    async fn download(&self, chart: &str) -> Vec<Vec<String>> {
        let file = self.folder.path().join("downloads").join(format!("{chart}.csv"));
        let button = format!("//*[@data-chart='{chart}']//button[text()='CSV']");
        self.client.find(Locator::XPath(&button)).await.unwrap().click().await.unwrap();
        let start = Instant::now();
        while !file.is_file() {
            assert!(start.elapsed() < Duration::from_secs(20), "{chart}.csv does not arrive");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let content = fs::read_to_string(file).unwrap();
        content.lines().map(|l| l.split(',').map(String::from).collect()).collect()
    }

    /// The page has said nothing: no error, no refused script, no missing file.
    async fn is_quiet(&self) {
        let log = self.client.issue_cmd(BrowserLog).await.unwrap();
        assert_eq!(log, json!([]), "the browser's console");
    }
}

fn with_browser(test: impl AsyncFnOnce(&Browser)) {
    let found = program(&["chromedriver"]).zip(program(&["chromium", "chromium-browser", "google-chrome"]));
    let Some((driver, chromium)) = found else {
        let why = "chromium and chromedriver are not installed";
        assert!(
            std::env::var_os("BUPO_BROWSER_TESTS").is_none(),
            "{why}, and BUPO_BROWSER_TESTS asks for the browser tests"
        );
        // Past the test harness, which keeps what passing tests print to itself.
        let note = format!("browser test NOT RUN: {why} (Debian: apt-get install chromium chromium-driver)\n");
        std::io::stderr().write_all(note.as_bytes()).unwrap();
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut browser = runtime.block_on(Browser::start(&driver, &chromium));
    // A test that fails must not leave a browser behind.
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(test(&browser))));
    drop(runtime.block_on(browser.client.clone().close()));
    drop(browser.driver.kill());
    drop(browser.driver.wait());
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

/// A copy of the run in which a model has said what a page must not believe.
fn hostile_run(root: &Path) -> PathBuf {
    let run = root.join("runs/tiny");
    copy(&runs().join("tiny"), &run);
    let file = run.join("completions.jsonl");
    let mut completions = rows(&file);
    completions[0]["response"] = json!(EVIL);
    completions[1]["prompt"] = json!(EVIL);
    let lines: String = completions.iter().map(|r| format!("{r}\n")).collect();
    fs::write(file, lines).unwrap();
    run
}

const EVIL: &str = "</script><script>window.hacked=1</script><img src=x onerror=\"window.hacked=1\"><!-- hacked";

/// A cell of the first token map: what the file says of the layer's policy at a position, and where it is on the screen.
async fn cell(browser: &Browser, layer: usize, at: usize) -> (f64, f64) {
    browser.until("return Boolean(document.querySelector('[data-chart^=token-map]').tokens.map)").await;
    browser
        .js("bupo.drawAll(); document.querySelector('[data-chart^=token-map]').scrollIntoView({block: 'center'})")
        .await;
    let place = browser
        .js(&format!(
            "const c = document.querySelector('[data-chart^=token-map]'), r = c.box.getBoundingClientRect(), \
             p = c.picture.convertToPixel({{seriesIndex: 0}}, [{at}, {}]); return [r.left + p[0], r.top + p[1]]",
            layer - 1
        ))
        .await;
    (place[0].as_f64().unwrap(), place[1].as_f64().unwrap())
}

/// As the page writes numbers of a token map, which come with five digits.
fn shown_of_map(x: f64) -> String {
    shown(format!("{x:.4e}").parse().unwrap())
}

/// As the page writes numbers.
fn shown(x: f64) -> String {
    let rounded: f64 = format!("{x:.3e}").parse().unwrap();
    if rounded != 0.0 && rounded.abs() < 1e-4 {
        let text = format!("{rounded:.3e}");
        return text;
    }
    format!("{rounded}")
}

/// Rows of a token table.
fn token_rows(path: &Path) -> Vec<Value> {
    use parquet::file::reader::SerializedFileReader;
    let reader = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
    reader.into_iter().map(|row| row.unwrap().to_json_value()).collect()
}

async fn token_map_answers(browser: &Browser, table: &Path) {
    let table = token_rows(table);
    let of = |state: &str| {
        table.iter().filter(|r| r["sample"] == 1 && r["state"] == state && r["layer"] == 2).nth(3).unwrap().clone()
    };
    let row = of("layer");
    let (x, y) = cell(browser, 2, 3).await;
    browser.mouse(x, y, false).await;
    let tip = browser
        .until(
            "return [...document.querySelectorAll('.tip')].map(t => t.textContent).find(t => t.includes('log-prob'))",
        )
        .await;
    let tip = tip.as_str().unwrap();
    for (key, unit) in [("entropy", " nats"), ("kl_to_final", " nats"), ("log_prob", ""), ("rank", "")] {
        let number = shown_of_map(row[key].as_f64().unwrap());
        assert!(tip.contains(&format!("{number}{unit}")), "{key} {number} is not in {tip}");
    }
    assert!(tip.contains("layer output 2") && tip.contains(&format!("position {}", row["position"])), "{tip}");
    let best = shown_of_map(row["top_probs"][0].as_f64().unwrap());
    assert!(tip.contains(&best), "{best} is not in {tip}");
    // A click pins the cell, and the pin stays when the pointer leaves.
    browser.mouse(x, y, true).await;
    browser.mouse(5.0, 5.0, false).await;
    let pinned = browser.until("return document.querySelector('[data-chart^=token-map] .pin').textContent").await;
    let pinned = pinned.as_str().unwrap();
    assert!(pinned.contains("layer output 2") && pinned.contains(&best) && pinned.contains("Final policy"), "{pinned}");
    // The keyboard moves it on.
    browser.js("document.querySelector('[data-chart^=token-map] .chart').focus()").await;
    let keys = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowDown', bubbles: true}))";
    browser.js(keys).await;
    let moved = browser.js("return document.querySelector('[data-chart^=token-map] .pin').textContent").await;
    assert!(moved.as_str().unwrap().contains("layer output 1"), "{moved}");
}

#[test]
fn a_report_shows_what_the_files_say() {
    with_browser(async |browser| {
        let root = tempfile::tempdir().unwrap();
        let (run, page) = (hostile_run(root.path()), root.path().join("page.html"));
        ok(&["report", text(&run), "--out", text(&page)]);
        browser.client.goto(&format!("file://{}", text(&page))).await.unwrap();
        browser.js("bupo.drawAll()").await;
        let (metrics, analysis) = (rows(&run.join("metrics.jsonl")), json(&run.join("analysis-after/analysis.json")));
        // Numbers on the page.
        assert_eq!(browser.js("return document.querySelector('[data-step]').textContent").await, "4");
        let facts = browser.js("return document.querySelector('#inside-the-model table').textContent").await;
        let entropy = shown(analysis["final_entropy"].as_f64().unwrap());
        assert!(facts.as_str().unwrap().contains(&entropy), "{entropy} is not in {facts}");
        // Numbers to take away: all their digits.
        let csv = browser.download("reward").await;
        assert_eq!(csv[0], ["step", "reward mean"]);
        for (line, m) in csv[1..].iter().zip(&metrics) {
            assert_eq!(line[0], m["step"].to_string());
            assert_eq!(line[1].parse::<f64>().unwrap(), m["reward_mean"].as_f64().unwrap());
        }
        let csv = browser.download("entropy-change-ffn").await;
        let after = csv[0].iter().position(|c| c == "analysis-after").unwrap();
        for (line, layer) in csv[1..].iter().zip(analysis["per_layer"].as_array().unwrap()) {
            assert_eq!(line[after].parse::<f64>().unwrap(), layer["entropy_change"]["ffn"].as_f64().unwrap());
            assert_eq!(
                line[after + 1].parse::<f64>().unwrap(),
                layer["spread"]["entropy_change"]["ffn"]["p10"].as_f64().unwrap()
            );
        }
        // Every chart is there as SVG.
        let bad = "return [...document.querySelectorAll('[data-chart]')].filter(c => !c.svg().startsWith('<svg')).map(c => c.dataset.chart)";
        assert_eq!(browser.js(bad).await, json!([]));
        assert!(browser.js("return document.querySelectorAll('[data-chart]').length").await.as_u64().unwrap() > 30);
        token_map_answers(browser, &run.join("analysis-after/tokens.parquet")).await;
        // What a model said is text, whatever it is.
        let search = browser.client.find(Locator::Css("[data-completions] input[name=search]")).await.unwrap();
        search.send_keys("onerror").await.unwrap();
        browser.until("return document.querySelectorAll('[data-completions] tbody tr').length === 2").await;
        let cell = browser.js("return document.querySelector('[data-completions] tbody .text').textContent").await;
        let prompt = browser
            .js("return document.querySelectorAll('[data-completions] tbody tr')[1].querySelector('.text').textContent")
            .await;
        assert!(prompt == EVIL || cell == EVIL, "{cell} {prompt}");
        assert_eq!(browser.js("return [window.hacked ?? 0, document.images.length]").await, json!([0, 0]));
        browser.is_quiet().await;
        // Nothing of the page is wider than a phone; the other colours are there.
        browser.client.set_window_size(500, 900).await.unwrap();
        browser.js("[...document.querySelectorAll('header.top button')][0].click()").await;
        assert_eq!(browser.js("return document.documentElement.dataset.theme").await, "dark");
        let width = browser.js("return [document.documentElement.scrollWidth, innerWidth]").await;
        assert!(width[0].as_f64().unwrap() <= width[1].as_f64().unwrap(), "{width}");
        browser.is_quiet().await;
    });
}

#[test]
fn what_each_module_is_worth_is_on_the_page() {
    with_browser(async |browser| {
        let root = tempfile::tempdir().unwrap();
        let (study, page) = (root.path().join("study"), root.path().join("page.html"));
        let (model, data) = (runs().join("tiny/checkpoints/step-000004"), runs().with_file_name("samples.jsonl"));
        ok(&["ablate", text(&model), "--data", text(&data), "--heads", "--out", text(&study)]);
        ok(&["report", text(&study), "--out", text(&page)]);
        browser.client.goto(&format!("file://{}", text(&page))).await.unwrap();
        browser.js("bupo.drawAll()").await;
        let found = json(&study.join("ablation.json"));
        let layers = found["per_layer"].as_array().unwrap();
        let agrees = async |chart: &str, module: &str, key: &str| {
            let csv = browser.download(chart).await;
            assert_eq!(csv.len(), 1 + layers.len());
            for (line, layer) in csv[1..].iter().zip(layers) {
                assert_eq!(line[1].parse::<f64>().unwrap(), layer[module][key].as_f64().unwrap(), "{chart}");
            }
        };
        agrees("without-attention-kl", "attn", "kl").await;
        agrees("without-ffn-kl", "ffn", "kl").await;
        agrees("without-attention-and-ffn-kl", "both", "kl").await;
        let heads = browser.download("without-one-head-kl").await;
        for (head, line) in heads[1..].iter().enumerate() {
            for (cell, layer) in line[1..].iter().zip(layers) {
                assert_eq!(cell.parse::<f64>().unwrap(), layer["heads"][head]["kl"].as_f64().unwrap());
            }
        }
        // Another number in all of the charts.
        let choose = "const s = document.querySelector('#what-each-module-is-worth select'); s.value = 'log_prob_change'; \
                      s.dispatchEvent(new Event('change')); bupo.drawAll()";
        browser.js(choose).await;
        agrees("without-ffn-log-prob", "ffn", "log_prob_change").await;
        let missed = browser.js("return document.querySelector('#what-each-module-is-worth tbody').textContent").await;
        let most = layers.iter().map(|l| l["ffn"]["kl"].as_f64().unwrap().max(l["attn"]["kl"].as_f64().unwrap()));
        let most = format!("{:.2e}", most.fold(0.0, f64::max)).parse::<f64>().unwrap();
        assert!(missed.as_str().unwrap().contains(&format!("({most})")), "{most} is not in {missed}");
        browser.is_quiet().await;
    });
}

#[test]
fn the_live_page_follows_a_run() {
    with_browser(async |browser| {
        let root = tempfile::tempdir().unwrap();
        let run = hostile_run(root.path());
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let lines: Vec<&str> = metrics.lines().collect();
        fs::write(run.join("metrics.jsonl"), format!("{}\n{}\n", lines[0], lines[1])).unwrap();
        let mut manifest = json(&run.join("manifest.json"));
        manifest["finished"] = Value::Null;
        fs::write(run.join("manifest.json"), manifest.to_string()).unwrap();
        // As the process that trains holds it.
        let lock = fs::File::create(run.join(".lock")).unwrap();
        lock.lock().unwrap();
        let server = Server::of(&root.path().join("runs"));
        browser.client.goto(&format!("http://127.0.0.1:{}/", server.port)).await.unwrap();
        browser.until("return document.querySelector('[data-step]')?.textContent === '2'").await;
        assert_eq!(browser.js("return document.querySelector('[data-state]').textContent").await, "running");
        // A line in the middle of being written is no step yet.
        let append = |text: &str| {
            let mut file = fs::OpenOptions::new().append(true).open(run.join("metrics.jsonl")).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append(&lines[2][..40]);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(browser.js("return document.querySelector('[data-step]').textContent").await, "2");
        append(&format!("{}\n", &lines[2][40..]));
        browser.until("return document.querySelector('[data-step]').textContent === '3'").await;
        let csv = browser.js("return document.querySelector('[data-chart=gradient-norm]').csv()").await;
        let third: Value = serde_json::from_str(lines[2]).unwrap();
        let last = csv.as_str().unwrap().lines().last().unwrap().split_once(',').unwrap();
        assert_eq!((last.0, last.1.parse::<f64>().unwrap()), ("3", third["grad_norm"].as_f64().unwrap()));
        // Filters and search, on the server.
        let all = rows(&run.join("completions.jsonl"));
        let wrong = all.iter().filter(|r| r["status"] == "wrong" && r["step"] == 2).count();
        assert!(wrong > 0 && wrong < 25, "a page's worth: {wrong}");
        browser.js("const c = document.querySelector('[data-completions]'), s = c.querySelector('select'), n = c.querySelector('input[name=step]'); s.value = 'wrong'; s.onchange?.(); s.dispatchEvent(new Event('change')); n.value = 2; n.dispatchEvent(new Event('input'))").await;
        browser.until(&format!("const b = [...document.querySelectorAll('[data-completions] tbody tr')]; return b.length === {wrong} && b.every(r => r.cells[0].textContent === '2' && r.querySelector('.badge').textContent === 'wrong')")).await;
        browser.js("const c = document.querySelector('[data-completions]'), s = c.querySelector('select'), n = c.querySelector('input[name=step]'); s.value = ''; s.dispatchEvent(new Event('change')); n.value = ''; n.dispatchEvent(new Event('input'))").await;
        let search = browser.client.find(Locator::Css("[data-completions] input[name=search]")).await.unwrap();
        search.send_keys("ONERROR").await.unwrap();
        browser.until("return document.querySelectorAll('[data-completions] tbody tr').length === 2").await;
        token_map_answers(browser, &run.join("analysis-after/tokens.parquet")).await;
        assert_eq!(browser.js("return [window.hacked ?? 0, document.images.length]").await, json!([0, 0]));
        // The run ends.
        append(&format!("{}\n", lines[3]));
        manifest["finished"] = json!("2026-01-01T00:00:00Z");
        fs::write(run.join("manifest.json"), manifest.to_string()).unwrap();
        browser.until("return document.querySelector('[data-state]').textContent === 'finished' && document.querySelector('[data-step]').textContent === '4'").await;
        browser.is_quiet().await;
    });
}

#[test]
fn a_sweep_has_its_table_and_a_line_for_each_variant() {
    with_browser(async |browser| {
        let root = tempfile::tempdir().unwrap();
        let (file, dir, page) = (root.path().join("s.toml"), root.path().join("sweep"), root.path().join("page.html"));
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny.toml");
        let variants = "[[variant]]\nname = \"bupo\"\n[[variant]]\nname = \"grpo\"\nset = [\"bupo.steps=0\"]\n";
        fs::write(&file, format!("name = \"first\"\nbase = {:?}\nseeds = [1, 2]\n{variants}", text(&base))).unwrap();
        ok(&["sweep", text(&file), "--dir", text(&dir)]);
        ok(&["report", text(&dir), "--out", text(&page)]);
        browser.client.goto(&format!("file://{}", text(&page))).await.unwrap();
        let table = browser.js("return document.querySelector('#sweep-first table').textContent").await;
        let result = json(&dir.join("sweep.json"));
        for variant in result["variants"].as_array().unwrap() {
            let after = variant["scores"][0]["after"]["mean"].as_f64().unwrap();
            let cell = format!("{:.1} ±", 100.0 * after);
            assert!(table.as_str().unwrap().contains(&cell), "{cell} is not in {table}");
        }
        let best = browser.js("return document.querySelectorAll('#sweep-first [data-best]').length").await;
        assert!(best.as_u64() > Some(0), "{best}");
        // A curve is the mean over the seeds of its variant.
        let csv = browser.download("first-over-the-steps").await;
        assert_eq!(csv[0], ["step", "bupo", "bupo low", "bupo high", "grpo", "grpo low", "grpo high"]);
        let reward = |seed: usize| {
            let metrics = rows(&dir.join(format!("grpo/seed-{seed}/metrics.jsonl")));
            metrics[2]["reward_mean"].as_f64().unwrap()
        };
        assert!((csv[3][4].parse::<f64>().unwrap() - (reward(1) + reward(2)) / 2.0).abs() < 1e-12);
        // One colour a variant in every chart of the runs.
        browser.js("bupo.drawAll()").await;
        let bad = "return [...document.querySelectorAll('[data-chart]')].filter(c => c.svg && !c.svg().startsWith('<svg')).map(c => c.dataset.chart)";
        assert_eq!(browser.js(bad).await, json!([]));
        browser.is_quiet().await;
    });
}
