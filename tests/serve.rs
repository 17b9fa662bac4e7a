//! `bupo serve` as a client meets it that does not mean well, and `bupo report` on what it may be given.

mod common;

use common::pages::{Server, runs};
use common::{copy, json, ok, rows, text};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Status, head and body of a request as it is written, nothing tidied up on the way.
fn ask(server: &Server, path: &str, host: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_string())
}

fn get(server: &Server, path: &str) -> (u16, Value) {
    let (status, _, body) = ask(server, path, &format!("127.0.0.1:{}", server.port));
    let chunked = body.lines().map(str::trim).find(|l| l.starts_with('{') || l.starts_with('[')).unwrap_or("null");
    (status, serde_json::from_str(chunked).unwrap_or(Value::Null))
}

#[test]
fn what_lies_below_is_served_and_says_what_the_files_say() {
    let server = Server::of(runs());
    let run = runs().join("tiny");
    let (status, items) = get(&server, "/api/items");
    assert_eq!((status, &items["items"][0]["path"], &items["items"][0]["kind"]), (200, &json!("tiny"), &json!("run")));
    let (_, item) = get(&server, "/api/item?path=tiny");
    assert_eq!(item["metrics"]["rows"], json!(rows(&run.join("metrics.jsonl"))));
    assert_eq!(item["probe"]["rows"].as_array().unwrap().len(), rows(&run.join("probe.jsonl")).len());
    assert_eq!(item["evaluations"].as_array().unwrap().len(), 2);
    assert_eq!(item["analyses"][1]["analysis"], json(&run.join("analysis-after/analysis.json")));
    // Only what came since.
    let (_, grown) = get(&server, "/api/item?path=tiny&metrics=3&probe=100&grown=true");
    assert_eq!((grown["metrics"]["rows"].as_array().unwrap().len(), &grown["metrics"]["total"]), (1, &json!(4)));
    let (_, page) = get(&server, "/api/completions?path=tiny&status=correct&limit=3");
    let correct: Vec<Value> =
        rows(&run.join("completions.jsonl")).into_iter().filter(|r| r["status"] == "correct").collect();
    assert!(correct.len() > 3);
    for (row, saved) in page["rows"].as_array().unwrap().iter().zip(&correct) {
        assert_eq!((&row["response"], &row["advantage"]), (&saved["response"], &saved["advantage"]));
        assert_eq!(row["problem"], saved["problem"].to_string());
    }
    let (status, map) = get(&server, "/api/tokens?path=tiny%2Fanalysis-after&sample=2");
    assert_eq!((status, &map["sample"]), (200, &json!(2)));
    assert_eq!(get(&server, "/api/tokens?path=tiny%2Fanalysis-after&sample=3").0, 404);
    // An analysis by itself, named by a path of two parts.
    assert_eq!(get(&server, "/api/item?path=tiny%2Fanalysis-before").1["kind"], "analysis");
}

#[test]
fn nothing_outside_is_served() {
    let root = tempfile::tempdir().unwrap();
    let served = root.path().join("served");
    copy(&runs().join("tiny"), &served.join("tiny"));
    copy(&runs().join("tiny"), &root.path().join("outside"));
    fs::write(root.path().join("secret.json"), "{\"per_layer\": [], \"secret\": 1}").unwrap();
    let mut paths: Vec<String> = [
        "../outside",
        "..%2Foutside",
        "%2e%2e%2foutside",
        "tiny/../../outside",
        "tiny%2F..%2F..%2Foutside",
        "..%5coutside",
        "/etc",
        "%2Fetc%2Fpasswd",
        "tiny%00",
        ".",
        "./tiny",
        "..",
        "%c0%ae%c0%ae/outside",
        "nothing",
        "tiny/metrics.jsonl%00",
        "tiny/checkpoints/.tmp",
    ]
    .map(String::from)
    .into();
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(root.path().join("outside"), served.join("link")).unwrap();
        fs::create_dir(served.join("fake")).unwrap();
        symlink(root.path().join("secret.json"), served.join("fake/analysis.json")).unwrap();
        symlink(root.path().join("outside/completions.jsonl"), served.join("fake/completions.jsonl")).unwrap();
        paths.extend(["link".into(), "fake".into()]);
    }
    let server = Server::of(&served);
    for path in &paths {
        for call in ["item?", "completions?", "tokens?sample=1&"] {
            let (status, answer) = get(&server, &format!("/api/{call}path={path}"));
            let nothing = status == 404 || status == 400 || answer["rows"] == json!([]);
            assert!(nothing, "{call}path={path}: {status} {answer}");
        }
    }
    // Not in the list either.
    let (_, items) = get(&server, "/api/items");
    let names: Vec<&str> = items["items"].as_array().unwrap().iter().filter_map(|i| i["path"].as_str()).collect();
    assert_eq!(names, ["tiny"]);
    for path in
        ["/../secret.json", "/assets/../secret.json", "/assets/%2e%2e%2fsecret.json", "/tiny/metrics.jsonl", "/assets/"]
    {
        assert_eq!(ask(&server, path, &format!("localhost:{}", server.port)).0, 404, "{path}");
    }
    for query in
        ["/api/item", "/api/item?path=tiny&metrics=-1", "/api/tokens?path=tiny", "/api/completions?path=tiny&limit=x"]
    {
        assert_eq!(get(&server, query).0, 400, "{query}");
    }
}

#[test]
fn every_answer_is_guarded_and_foreign_names_get_none() {
    let server = Server::of(runs());
    let own = format!("127.0.0.1:{}", server.port);
    for path in ["/", "/assets/echarts.min.js", "/api/items", "/nothing"] {
        let (_, head, _) = ask(&server, path, &own);
        for part in
            ["content-security-policy: default-src 'none'; script-src 'self';", "nosniff", "no-referrer", "no-store"]
        {
            assert!(head.contains(part), "{path}: {part} is not in {head}");
        }
        assert!(!head.contains("access-control-allow"), "{head}");
    }
    for host in [
        "evil.example",
        &format!("evil.example:{}", server.port),
        "127.0.0.1:1",
        &format!("localhost.evil.example:{}", server.port),
    ] {
        let (status, _, body) = ask(&server, "/api/items", host);
        assert_eq!((status, body.contains("tiny")), (403, false), "{host}");
    }
    // The page has no script of its own but those that it names.
    let (status, _, page) = ask(&server, "/", &own);
    assert!(status == 200 && !page.contains("<script>") && page.contains("<script src=\"/assets/start.js\">"));
}

#[test]
fn a_run_in_the_middle_of_a_write_is_shown_up_to_its_last_whole_line() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("runs/now");
    copy(&runs().join("tiny"), &run);
    for file in ["metrics.jsonl", "completions.jsonl", "probe.jsonl"] {
        let whole = fs::read(run.join(file)).unwrap();
        fs::write(run.join(file), &whole[..whole.len() - 9]).unwrap();
    }
    fs::write(run.join("analysis-after/analysis.json"), "{\"per_layer\"").unwrap();
    fs::write(run.join("manifest.json"), "").unwrap();
    let server = Server::of(&root.path().join("runs"));
    let (status, item) = get(&server, "/api/item?path=now");
    assert_eq!((status, item["metrics"]["rows"].as_array().unwrap().len()), (200, 3));
    assert_eq!((&item["manifest"], &item["analyses"][0]["error"]), (&Value::Null, &Value::Null));
    assert!(item["analyses"][1]["error"].as_str().unwrap().contains("analysis.json"));
    let (_, page) = get(&server, "/api/completions?path=now&limit=200");
    assert_eq!(page["rows"].as_array().unwrap().len(), 4 * 6 * 4 - 1);
    assert_eq!((&page["more"], &page["bad"]), (&json!(false), &json!(0)));
}

#[test]
fn a_report_takes_a_mix_and_says_what_it_does_not_know() {
    let root = tempfile::tempdir().unwrap();
    let (run, out) = (runs().join("tiny"), root.path().join("page.html"));
    let comparison = root.path().join("comparison");
    ok(&[
        "compare",
        text(&run.join("evaluation-before")),
        text(&run.join("evaluation-after")),
        "--out",
        text(&comparison),
    ]);
    let analysis = run.join("analysis-before/analysis.json");
    let samples = runs().parent().unwrap().join("samples.jsonl");
    let paths = [&run, &analysis, &run.join("evaluation-after"), &comparison, &samples];
    let args = [&["report"][..], &paths.map(|p| text(p)), &["--out", text(&out)]].concat();
    ok(&args);
    let page = fs::read_to_string(&out).unwrap();
    let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: Value = serde_json::from_str(data).unwrap();
    let kinds: Vec<&str> = data["items"].as_array().unwrap().iter().filter_map(|i| i["kind"].as_str()).collect();
    assert_eq!(kinds, ["run", "analysis", "evaluation", "comparison", "samples"]);
    // A folder of runs stands for them, and an analysis of the first version, which had fewer numbers, is taken.
    let mut old = json(&analysis);
    for layer in old["per_layer"].as_array_mut().unwrap() {
        layer.as_object_mut().unwrap().retain(|key, _| !["spread", "final", "chosen"].contains(&key.as_str()));
    }
    let new = ["version", "model", "lens", "similarity", "decision", "final_spread"];
    old.as_object_mut().unwrap().retain(|key, _| !new.contains(&key.as_str()));
    fs::write(root.path().join("old.json"), old.to_string()).unwrap();
    ok(&["report", text(runs()), text(&root.path().join("old.json")), "--out", text(&out)]);
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    fs::write(root.path().join("odd.json"), "{}").unwrap();
    fs::write(root.path().join("odd.jsonl"), "{\"a\": 1}\n").unwrap();
    for (path, expected) in [
        ("empty", "nothing to show"),
        ("odd.json", "none of what bupo writes"),
        ("odd.jsonl", "no samples"),
        ("no", "not there"),
    ] {
        let path = root.path().join(path);
        let out = root.path().join("none.html");
        let failed = common::binary().args(["report", text(&path), "--out", text(&out)]).output().unwrap();
        let error = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(failed.status.code() == Some(1) && error.contains(expected) && !out.exists(), "{error}");
    }
}
