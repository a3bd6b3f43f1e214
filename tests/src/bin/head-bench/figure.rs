//! One figure: its value, its bar, and the peer that it is compared with.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Better {
    Lower,
    Higher,
}

#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// `None`: the figure has no bar; it explains another one.
    bar: Option<f64>,
    better: Better,
    peer: &'static str,
    detail: Value,
}

impl Figure {
    /// A figure for which lower is better.
    pub(crate) fn lower(name: &str, value: f64, unit: &'static str) -> Self {
        Self::new(name, value, unit, Better::Lower)
    }

    /// A figure for which higher is better.
    pub(crate) fn higher(name: &str, value: f64, unit: &'static str) -> Self {
        Self::new(name, value, unit, Better::Higher)
    }

    fn new(name: &str, value: f64, unit: &'static str, better: Better) -> Self {
        Self { name: name.to_owned(), value, unit, bar: None, better, peer: "", detail: Value::Null }
    }

    pub(crate) fn bar(mut self, bar: f64) -> Self {
        self.bar = Some(bar);
        self
    }

    /// Sets the peer that it is compared with.
    pub(crate) fn peer(mut self, peer: &'static str) -> Self {
        self.peer = peer;
        self
    }

    pub(crate) fn detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    pub(crate) fn print(&self) -> Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        std::io::stdout().lock().write_all(&line)?;
        Ok(())
    }
}

/// The median of a few values.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The greatest of a few values.
pub(crate) fn greatest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::MIN, f64::max)
}
