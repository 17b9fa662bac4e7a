//! Models and data by name, against a local server that plays the hub: whole, cut half-way, refused, missing, corrupt,
//! silent.

use bupo::hub::{Hub, RepoName};
use hf_hub::Cache;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with a file.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The first answer ends half-way.
    CutOnce,
    /// Another byte is in it, the first time or every time.
    CorruptOnce,
    Corrupt,
    /// No answer ever comes.
    Silent,
    Status(u16),
}

/// Repositories by their page (`o/n`, `datasets/o/n`), files by their names.
#[derive(Default)]
struct Shelf {
    repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    faults: BTreeMap<String, Fault>,
    /// A token without which nothing is given out.
    token: Option<String>,
    /// `file range` of every request for a whole file.
    asked: Vec<String>,
}

struct Server {
    endpoint: String,
    shelf: Arc<Mutex<Shelf>>,
}

impl Server {
    fn start(shelf: Shelf) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shelf = Arc::new(Mutex::new(shelf));
        let shared = Arc::clone(&shelf);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        Server { endpoint, shelf }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shelf.lock().unwrap().asked)
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: self.endpoint.clone(),
            cache: Cache::new(cache.to_path_buf()),
            token: None,
            offline: false,
            patience: Duration::from_secs(20),
        }
    }
}

/// One request of one connection.
fn answer(mut stream: TcpStream, shelf: &Mutex<Shelf>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_string())))
        .collect();
    let path = request.split(' ').nth(1).unwrap_or("").trim_start_matches('/').to_string();
    let mut shelf = shelf.lock().unwrap();
    let allowed = shelf.token.as_ref().is_none_or(|t| headers.get("authorization") == Some(&format!("Bearer {t}")));
    let mut reply = |status: &str, extra: &str, body: &[u8], send: usize| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n", body.len());
        drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..send])));
    };
    if !allowed {
        return reply("401 Unauthorized", "", b"", 0);
    }
    if let Some(rest) = path.strip_prefix("api/") {
        let (repo, _) = rest.split_once("/revision/").unwrap();
        let Some(files) = shelf.repos.get(repo.strip_prefix("models/").unwrap_or(repo)) else {
            return reply("404 Not Found", "", b"", 0);
        };
        let list: Vec<_> = files.keys().map(|file| json!({ "rfilename": file })).collect();
        let body = json!({"sha": COMMIT, "siblings": list}).to_string();
        return reply("200 OK", "Content-Type: application/json\r\n", body.as_bytes(), body.len());
    }
    let found = path.split_once("/resolve/").and_then(|(repo, rest)| {
        let file = rest.split_once('/')?.1;
        Some((file.to_string(), shelf.repos.get(repo)?.get(file)?.clone()))
    });
    let Some((file, mut bytes)) = found else { return reply("404 Not Found", "", b"", 0) };
    let etag: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let range = headers.get("range").cloned().unwrap_or_default();
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
    let from: usize = from.parse().unwrap_or(0);
    let headers_only = to == "0";
    let mut send_half = false;
    if !headers_only {
        shelf.asked.push(format!("{file} {range}"));
        match shelf.faults.get(&file).copied() {
            Some(Fault::CutOnce) => {
                shelf.faults.remove(&file);
                send_half = true;
            }
            Some(fault @ (Fault::Corrupt | Fault::CorruptOnce)) => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                if fault == Fault::CorruptOnce {
                    shelf.faults.remove(&file);
                }
            }
            Some(Fault::Silent) => {
                drop(shelf);
                std::thread::sleep(Duration::from_secs(30));
                return;
            }
            Some(Fault::Status(code)) => return reply(&format!("{code} No"), "", b"", 0),
            None => {}
        }
    }
    let end = if headers_only { 1 } else { bytes.len() };
    let extra = format!(
        "Content-Range: bytes {from}-{}/{}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
        end.saturating_sub(1),
        bytes.len()
    );
    let body = bytes.get(from..end).unwrap_or(&[]);
    reply("206 Partial Content", &extra, body, if send_half { body.len() / 2 } else { body.len() });
}

fn model_files() -> BTreeMap<String, Vec<u8>> {
    let weights: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
    let small = |text: &str| text.as_bytes().to_vec();
    [
        ("config.json", small("{\"model_type\": \"qwen3\"}")),
        ("tokenizer.json", small("{}")),
        ("tokenizer.model", small("pieces")),
        ("README.md", small("# no part of the model")),
        ("model.safetensors", weights),
        ("pytorch_model.bin", small("old")),
    ]
    .map(|(name, bytes)| (name.to_string(), bytes))
    .into()
}

fn shelf(faults: &[(&str, Fault)]) -> Shelf {
    Shelf {
        repos: [("o/n".to_string(), model_files())].into(),
        faults: faults.iter().map(|(file, fault)| (file.to_string(), *fault)).collect(),
        ..Shelf::default()
    }
}

fn name(text: &str) -> RepoName {
    RepoName::model(text).unwrap()
}

fn whole(dir: &Path) {
    for file in ["config.json", "tokenizer.json", "tokenizer.model", "model.safetensors"] {
        assert_eq!(fs::read(dir.join(file)).unwrap(), model_files()[file], "{file}");
    }
    for file in ["README.md", "pytorch_model.bin"] {
        assert!(!dir.join(file).exists(), "{file} is no part of a checkpoint");
    }
}

fn blobs(cache: &Path) -> Vec<PathBuf> {
    let dir = cache.join("models--o--n/blobs");
    fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_none_or(|e| e != "lock"))
        .collect()
}

#[test]
fn a_model_is_fetched_once_into_the_shared_layout_and_found_offline() {
    let (server, cache) = (Server::start(shelf(&[])), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    let dir = hub.model(&name("o/n")).unwrap();
    whole(&dir);
    // Where Python's huggingface_hub looks.
    assert_eq!(dir, cache.path().join("models--o--n/snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(cache.path().join("models--o--n/refs/main")).unwrap(), COMMIT);
    assert_eq!(server.asked().len(), 4);
    assert_eq!(hub.model(&name("o/n")).unwrap(), dir);
    assert_eq!(server.asked().len(), 0);
    let offline = Hub { offline: true, endpoint: "http://127.0.0.1:9".into(), ..server.hub(cache.path()) };
    assert_eq!(offline.model(&name("o/n")).unwrap(), dir);
    assert_eq!(offline.model(&name(&format!("o/n@{COMMIT}"))).unwrap(), dir);
    for missing in ["o/other", "o/n@v2"] {
        let error = format!("{:#}", offline.model(&name(missing)).unwrap_err());
        assert!(error.contains("HF_HUB_OFFLINE") && error.contains(missing), "{error}");
    }
    // A hub that cannot be reached is no reason to do without what is cached.
    let unreachable = Hub { offline: false, ..offline };
    assert_eq!(unreachable.model(&name("o/n")).unwrap(), dir);
    let error = format!("{:#}", unreachable.model(&name("o/other")).unwrap_err());
    assert!(error.contains("cannot be reached") && error.contains("HF_ENDPOINT"), "{error}");
}

#[test]
fn a_connection_that_is_cut_half_way_is_taken_up_where_it_broke() {
    let server = Server::start(shelf(&[("model.safetensors", Fault::CutOnce)]));
    let cache = tempfile::tempdir().unwrap();
    whole(&server.hub(cache.path()).model(&name("o/n")).unwrap());
    let asked: Vec<String> = server.asked().into_iter().filter(|a| a.starts_with("model")).collect();
    assert_eq!(asked, ["model.safetensors bytes=0-", "model.safetensors bytes=150000-"]);
}

#[test]
fn a_corrupt_file_is_never_left_in_the_cache() {
    let server = Server::start(shelf(&[("model.safetensors", Fault::CorruptOnce)]));
    let cache = tempfile::tempdir().unwrap();
    whole(&server.hub(cache.path()).model(&name("o/n")).unwrap());
    let server = Server::start(shelf(&[("model.safetensors", Fault::Corrupt)]));
    let cache = tempfile::tempdir().unwrap();
    let error = format!("{:#}", server.hub(cache.path()).model(&name("o/n")).unwrap_err());
    assert!(error.contains("corrupt") && error.contains("SHA-256") && error.contains("model.safetensors"), "{error}");
    // Only the three small files; and the half snapshot has no name to be found by.
    assert_eq!(blobs(cache.path()).len(), 3);
    assert!(!cache.path().join("models--o--n/refs/main").exists());
}

#[test]
fn refusals_and_missing_names_say_what_to_do() {
    let server = Server::start(Shelf { token: Some("secret".into()), ..shelf(&[]) });
    let cache = tempfile::tempdir().unwrap();
    let error = format!("{:#}", server.hub(cache.path()).model(&name("o/n")).unwrap_err());
    assert!(error.contains("401") && error.contains("HF_TOKEN") && error.contains("o/n"), "{error}");
    let wrong = Hub { token: Some("wrong".into()), ..server.hub(cache.path()) };
    let error = format!("{:#}", wrong.model(&name("o/n")).unwrap_err());
    assert!(error.contains("terms") && !error.contains("wrong"), "{error}");
    whole(&Hub { token: Some("secret".into()), ..server.hub(cache.path()) }.model(&name("o/n")).unwrap());
    let server = Server::start(shelf(&[("tokenizer.json", Fault::Status(404))]));
    let error = format!("{:#}", server.hub(cache.path()).model(&name("o/none@v1")).unwrap_err());
    assert!(error.contains("404") && error.contains("REVISION"), "{error}");
    let fresh = tempfile::tempdir().unwrap();
    let error = format!("{:#}", server.hub(fresh.path()).model(&name("o/n")).unwrap_err());
    assert!(error.contains("tokenizer.json") && error.contains("404"), "{error}");
    // Refused once, not asked four times.
    assert_eq!(server.asked().iter().filter(|a| a.starts_with("tokenizer")).count(), 1);
}

#[test]
fn a_silent_hub_is_given_up() {
    let server = Server::start(shelf(&[("config.json", Fault::Silent)]));
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { patience: Duration::from_millis(200), ..server.hub(cache.path()) };
    let error = format!("{:#}", hub.model(&name("o/n")).unwrap_err());
    assert!(error.contains("silent") || error.contains("Lock"), "{error}");
}

#[test]
fn a_hostile_list_of_files_leads_nowhere_else() {
    let mut shelf = shelf(&[]);
    let files = shelf.repos.get_mut("o/n").unwrap();
    for odd in ["../../../../evil.safetensors", "/etc/evil.safetensors", "model-../../evil.safetensors"] {
        files.insert(odd.to_string(), b"x".to_vec());
    }
    files.remove("model.safetensors");
    let (server, cache) = (Server::start(shelf), tempfile::tempdir().unwrap());
    let error = format!("{:#}", server.hub(cache.path()).model(&name("o/n")).unwrap_err());
    assert!(error.contains("safetensors weights"), "{error}");
    assert!(server.asked().is_empty());
}

#[test]
fn data_sets_come_by_address_and_the_binary_obeys_the_environment() {
    let mut shelf = shelf(&[]);
    let rows = b"{\"problem\": \"1+1=\", \"answer\": 2}\n".to_vec();
    let files = [("data/train.jsonl", b"x".to_vec()), ("data/test.jsonl", rows)];
    shelf.repos.insert("datasets/o/set".into(), files.map(|(n, b)| (n.to_string(), b)).into());
    shelf.token = Some("secret".into());
    let (server, root) = (Server::start(shelf), tempfile::tempdir().unwrap());
    let bupo = |environment: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bupo"));
        for key in ["HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"] {
            command.env_remove(key);
        }
        command.env("HF_HOME", root.path()).env("HF_ENDPOINT", &server.endpoint).envs(environment.iter().copied());
        let output = command.args(args).args(["--out", root.path().join("out").to_str().unwrap()]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        text
    };
    let evaluate = ["evaluate", "o/n", "--data", "hf://datasets/o/set@main"];
    let refused = bupo(&[], &evaluate);
    assert!(refused.contains("datasets/o/set") && refused.contains("HF_TOKEN"), "{refused}");
    let missing = bupo(&[("HF_HUB_OFFLINE", "1")], &evaluate);
    assert!(missing.contains("HF_HUB_OFFLINE is set"), "{missing}");
    // Data and model are fetched; the model is a stub, which is said by its path in the cache.
    let stub = bupo(&[("HF_TOKEN", "secret")], &evaluate);
    assert!(stub.contains("config.json") && stub.contains(COMMIT), "{stub}");
    assert!(root.path().join("hub/datasets--o--set/snapshots").join(COMMIT).join("data/test.jsonl").is_file());
    assert!(!root.path().join("hub/datasets--o--set/snapshots").join(COMMIT).join("data/train.jsonl").exists());
    let analyze = bupo(&[("HF_HUB_OFFLINE", "true")], &["analyze", "o/n", "--data", "/nonexistent.jsonl"]);
    assert!(analyze.contains("/nonexistent.jsonl"), "{analyze}");
    let odd = bupo(&[], &["evaluate", "o/n", "--data", "hf://models/o/set"]);
    assert!(odd.contains("hf://datasets/OWNER/NAME"), "{odd}");
}
