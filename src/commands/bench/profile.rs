//! A profile as a table.

use crate::evaluate::table::{Style, table};
use serde_json::Value;

/// Kinds of work that are shown by name; the rest is one row.
const SHOWN: usize = 40;

/// What a device spent its time on, the longest first; `profile` as `compute/cuda/profile.rs` has it.
pub fn profile_table(profile: &Value) -> String {
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or(0.0);
    let entries = profile["entries"].as_array().map_or(&[][..], Vec::as_slice);
    let cells = |name: String, calls: f64, seconds: f64, share: f64, tflops: Option<f64>| {
        let rate = tflops.map_or_else(String::new, |rate| format!("{rate:.1}"));
        let each = 1e6 * seconds / calls.max(1.0);
        vec![
            name,
            format!("{calls:.0}"),
            format!("{seconds:.4}"),
            format!("{each:.1}"),
            format!("{:.1}", 100.0 * share),
            rate,
        ]
    };
    let row = |entry: &Value| {
        let name = entry["name"].as_str().unwrap_or_default().to_string();
        cells(name, number(entry, "calls"), number(entry, "seconds"), number(entry, "share"), entry["tflops"].as_f64())
    };
    let mut rows: Vec<Vec<String>> = entries.iter().take(SHOWN).map(row).collect();
    let rest = entries.get(SHOWN..).unwrap_or_default();
    if !rest.is_empty() {
        let sum = |key: &str| rest.iter().map(|entry| number(entry, key)).sum::<f64>();
        rows.push(cells(format!("{} more", rest.len()), sum("calls"), sum("seconds"), sum("share"), None));
    }
    let header = ["work", "calls", "seconds", "us each", "%", "TFLOP/s"];
    let (busy, idle) = (number(profile, "seconds"), number(profile, "idle_seconds"));
    format!("{}\nat work {busy:.4} s, waiting for the host {idle:.4} s", table(Style::Terminal, &header, &rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_profile_is_shown_whole() {
        let entry = |i: usize| json!({ "name": format!("kernel{i}"), "calls": 2, "seconds": 0.5, "share": 0.02 });
        let mut entries: Vec<Value> = (0..50).map(entry).collect();
        entries[0]["tflops"] = json!(123.45);
        let table = profile_table(&json!({ "seconds": 25.0, "idle_seconds": 0.25, "entries": entries }));
        assert!(table.contains("kernel39") && !table.contains("kernel40") && table.contains("10 more"), "{table}");
        assert!(table.contains("250000.0") && table.contains("123.5") && table.contains("20.0"), "{table}");
        assert!(table.ends_with("at work 25.0000 s, waiting for the host 0.2500 s"), "{table}");
    }
}
