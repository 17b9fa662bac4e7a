//! The page's own files, inside the binary.

/// A file of the page: its name, media type and content.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    pub name: &'static str,
    pub media_type: &'static str,
    pub text: &'static str,
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

pub const STYLE: Asset = Asset {
    name: "style.css",
    media_type: "text/css; charset=utf-8",
    text: include_str!("../../assets/page/style.css"),
};

macro_rules! script {
    ($name:literal, $path:literal) => {
        Asset { name: $name, media_type: JAVASCRIPT, text: include_str!(concat!("../../assets/", $path)) }
    };
}

/// In the order they run: the chart library, then parts that each add to `bupo`, then `start.js`.
pub const SCRIPTS: [Asset; 13] = [
    script!("echarts.min.js", "echarts/echarts.min.js"),
    script!("core.js", "page/core.js"),
    script!("chart.js", "page/chart.js"),
    script!("analysis.js", "page/analysis.js"),
    script!("ablation.js", "page/ablation.js"),
    script!("tokens.js", "page/tokens.js"),
    script!("training.js", "page/training.js"),
    script!("probe.js", "page/probe.js"),
    script!("completions.js", "page/completions.js"),
    script!("tables.js", "page/tables.js"),
    script!("sweeps.js", "page/sweeps.js"),
    script!("live.js", "page/live.js"),
    script!("start.js", "page/start.js"),
];

pub fn asset(name: &str) -> Option<Asset> {
    SCRIPTS.into_iter().chain([STYLE]).find(|a| a.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_chart_library_is_the_one_that_its_readme_names() {
        let sum = Sha256::digest(SCRIPTS[0].text.as_bytes());
        let sum: String = sum.iter().map(|b| format!("{b:02x}")).collect();
        assert!(include_str!("../../assets/echarts/README.md").contains(&sum), "echarts.min.js has the sum {sum}");
    }

    #[test]
    fn scripts_stay_readable_and_can_stand_in_a_page() {
        for script in &SCRIPTS[1..] {
            assert!(script.text.lines().count() < 600, "{}", script.name);
            assert!(!script.text.contains("innerHTML"), "{}: text from files goes into the page as text", script.name);
        }
        // Inside a <script>, these would end it or hide its end.
        assert!(SCRIPTS.iter().all(|s| !s.text.contains("</script") && !s.text.contains("<!--")));
    }
}
