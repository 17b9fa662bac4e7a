//! Soft overlong punishment (DAPO, equation 13): nothing up to a length, then linearly down to -1 at the longest.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OverlongConfig {
    pub weight: f64,
    /// Tokens at which the value reaches -1; the longest response that is sampled without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Tokens before that over which it falls from 0.
    pub buffer: usize,
}

impl Default for OverlongConfig {
    fn default() -> Self {
        OverlongConfig { weight: 1.0, max_tokens: None, buffer: 1024 }
    }
}

impl OverlongConfig {
    pub fn check(&self) -> Result<()> {
        ensure!(self.buffer > 0, "buffer = 0: expected at least one token over which the punishment grows");
        ensure!(
            self.max_tokens.is_none_or(|max| max >= self.buffer),
            "buffer = {}: expected at most max_tokens = {}",
            self.buffer,
            self.max_tokens.unwrap_or(0)
        );
        Ok(())
    }
}

/// Ready to measure.
#[derive(Clone, Copy, Debug)]
pub struct Overlong {
    max_tokens: usize,
    buffer: usize,
}

impl Overlong {
    pub fn new(config: &OverlongConfig, longest: usize) -> Result<Overlong> {
        config.check()?;
        let max_tokens = config.max_tokens.unwrap_or(longest);
        ensure!(
            config.buffer <= max_tokens,
            "buffer = {}: expected at most the longest response, {max_tokens} tokens",
            config.buffer
        );
        Ok(Overlong { max_tokens, buffer: config.buffer })
    }

    /// From 0 to -1, for a response of so many tokens.
    pub fn value(&self, tokens: usize) -> f64 {
        let free = self.max_tokens - self.buffer;
        -(tokens.saturating_sub(free) as f64 / self.buffer as f64).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_linearly_over_the_buffer() {
        let overlong = Overlong::new(&OverlongConfig { buffer: 4, ..OverlongConfig::default() }, 20).unwrap();
        for (tokens, value) in [(0, 0.0), (16, 0.0), (17, -0.25), (18, -0.5), (20, -1.0), (1000, -1.0)] {
            assert_eq!(overlong.value(tokens), value, "{tokens}");
        }
        let config = |max_tokens, buffer| OverlongConfig { max_tokens, buffer, weight: 1.0 };
        assert!(Overlong::new(&config(None, 21), 20).is_err());
        assert!(Overlong::new(&config(Some(3), 4), 20).is_err());
        assert!(Overlong::new(&config(None, 0), 20).is_err());
        assert_eq!(Overlong::new(&config(Some(8), 8), 20).unwrap().value(2), -0.25);
    }
}
