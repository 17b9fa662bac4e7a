//! One HTML file that needs nothing else: data, scripts and style inside.
//!
//! Data is JSON in a `<script>` that no browser runs, with every `<` written as `\u003c`: whatever a model said, it cannot
//! end the element. A policy in the page's head lets only the page's own scripts run, each by its hash.

use super::assets::{SCRIPTS, STYLE};
use super::collect::bundle;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;

/// A report of items, see [`super::collect`].
pub fn page(title: &str, mut items: Vec<Value>) -> Result<String> {
    for item in &mut items {
        pack_maps(item)?;
    }
    let data = bundle(&items)?.replace('<', "\\u003c");
    let scripts: String = SCRIPTS.iter().map(|s| format!("<script>{}</script>\n", s.text)).collect();
    let hashes: Vec<String> =
        SCRIPTS.iter().map(|s| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(s.text.as_bytes())))).collect();
    let policy = format!(
        "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'",
        hashes.join(" ")
    );
    let title = escape(title);
    let style = STYLE.text;
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{style}</style>\n</head>\n<body>\n<noscript>This page draws its charts with JavaScript.</noscript>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n{scripts}</body>\n</html>\n"
    ))
}

/// The page that asks a server for its data.
pub fn shell(title: &str) -> String {
    let scripts: String = SCRIPTS.iter().map(|s| format!("<script src=\"/assets/{}\"></script>\n", s.name)).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
         <link rel=\"stylesheet\" href=\"/assets/{}\">\n<link rel=\"icon\" href=\"data:,\">\n</head>\n<body>\n\
         <noscript>This page draws its charts with JavaScript.</noscript>\n{scripts}</body>\n</html>\n",
        escape(title),
        STYLE.name
    )
}

/// Token maps are most of a page: they go into it as gzip in base64.
fn pack_maps(item: &mut Value) -> Result<()> {
    for inner in item.get_mut("analyses").and_then(Value::as_array_mut).into_iter().flatten() {
        pack_maps(inner)?;
    }
    let Some(samples) = item.pointer_mut("/tokens/samples").and_then(Value::as_array_mut) else { return Ok(()) };
    for sample in samples {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        serde_json::to_writer(&mut encoder, sample).context("a token map cannot be written as JSON")?;
        encoder.flush()?;
        let bytes = encoder.finish().context("a token map cannot be packed")?;
        *sample = json!({"sample": sample["sample"], "gzip": STANDARD.encode(bytes)});
    }
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    #[test]
    fn nothing_that_a_model_said_ends_the_data() {
        let evil = "</script><script>alert(1)</script><!-- <img onerror=alert(1)> \u{2028}";
        let items = vec![json!({"kind": "samples", "name": evil, "rows": [{"policy": "final", "text": evil}]})];
        let page = page(evil, items).unwrap();
        let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
        let read: Value = serde_json::from_str(data).unwrap();
        assert_eq!(read["items"][0]["rows"][0]["text"], evil);
        assert_eq!(page.matches("<script>").count(), SCRIPTS.len(), "only the page's own scripts");
        assert!(!data.contains('<') && page.contains("<title>&lt;/script&gt;"));
    }

    #[test]
    fn token_maps_are_packed_and_unpack_to_themselves() {
        let map = json!({"sample": 3, "states": {"layer": {"entropy": vec![1.25; 100]}}});
        let mut item = json!({"analyses": [{"tokens": {"samples": [map]}}]});
        pack_maps(&mut item).unwrap();
        let packed = &item["analyses"][0]["tokens"]["samples"][0];
        let bytes = STANDARD.decode(packed["gzip"].as_str().unwrap()).unwrap();
        let mut text = String::new();
        GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
        assert_eq!((serde_json::from_str::<Value>(&text).unwrap(), &packed["sample"]), (map, &json!(3)));
    }
}
