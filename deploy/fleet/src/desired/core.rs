//! `heads.json` and `shards.json`.

use serde_json::{Map, Value, json};
use trellis_proto::{ownership::OwnershipMap, pb, placement::SLOTS, time::parse_time};

use super::{
    grid::read_arch,
    read::{Fields, Sheet, bytes, list, object, positive, text, whole},
};
use crate::class::{self, Arch, Class, Need, Provider, Size, classes};

/// Most heads, and most shards: five times the target.
const COUNT_MAX: u64 = 10_000;
/// A head needs half as much memory again as its cache.
const MEMORY_OF_CACHE: f64 = 1.5;

/// The heads.
#[derive(Clone, Debug, PartialEq)]
pub struct Heads {
    /// How many: `head-0` to `head-<count - 1>`.
    pub count: u64,
    /// Size of each.
    pub size: Size,
    /// `TRELLIS_CACHE_BYTES` of each, if not the class's.
    pub cache: Option<u64>,
}

/// The shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Shards {
    /// How many: `shard-0` to `shard-<count - 1>`.
    pub count: u64,
    /// Size of each.
    pub size: Size,
    /// What each owns. Empty: they split the symbols evenly.
    pub owns: Vec<Owns>,
}

/// What one shard owns.
#[derive(Clone, Debug, PartialEq)]
pub struct Owns {
    /// The value of `TRELLIS_OWNS`.
    pub json: String,
    /// The same without times. Shards of the same series at other times are kept apart, so that one failure does not hide the whole series.
    pub series: String,
}

pub(super) fn read_heads(sheet: &Sheet, json: &str) -> Option<Heads> {
    let class = classes().class("head");
    let mut f = sheet.object(json)?;
    let count = f.need("count", |s, p, v| whole(s, p, v, 1, COUNT_MAX));
    let cache = f.may("cache", bytes);
    let size = read_size(&mut f, class);
    if let (Some(cache), Some(size)) = (cache, size)
        && (cache as f64) * MEMORY_OF_CACHE > f64::from(size.memory) * f64::from(1 << 20)
    {
        f.wrong::<()>(
            "cache",
            format!("needs {MEMORY_OF_CACHE} times as much memory; a head has {} MiB", size.memory),
        );
    }
    f.end();
    Some(Heads { count: count?, size: size?, cache })
}

pub(super) fn read_shards(sheet: &Sheet, json: &str) -> Option<Shards> {
    let class = classes().class("shard");
    let mut f = sheet.object(json)?;
    let each = f.has("shards");
    let (count, owns) = if each {
        let owns = f.need("shards", |s, p, v| {
            let mut told = Vec::new();
            let owns = list(s, p, v, |s, p, v| {
                let (owns, regions) = read_shard(s, p, v)?;
                told.push((format!("shard-{}", told.len()), regions));
                Some(owns)
            })?;
            if let Err(error) = OwnershipMap::build(&told) {
                return s.wrong(p, format!("{}; {}", error.message(), error.hint_text()));
            }
            Some(owns)
        });
        (owns.as_ref().map(|owns| owns.len() as u64), owns.unwrap_or_default())
    } else {
        (f.need("count", |s, p, v| whole(s, p, v, 1, COUNT_MAX.min(u64::from(SLOTS)))), Vec::new())
    };
    let size = read_size(&mut f, class);
    f.end();
    Some(Shards { count: count?, size: size?, owns })
}

/// The class's size, or `cpu` and `memory`; `arch` in both cases.
fn read_size(f: &mut Fields<'_>, class: &Class) -> Option<Size> {
    let arch = f.may("arch", read_arch).unwrap_or(Arch::X86);
    let fixed = class.size?;
    let (cpu, memory) = if f.has("cpu") || f.has("memory") {
        (f.need("cpu", positive)?, f.need("memory", bytes)?)
    } else {
        (fixed.cpu, (fixed.memory_gb * f64::from(1 << 30)) as u64)
    };
    let size = match class::size(&Need { cpu, memory, gpu: 0, arch, spot: false }) {
        Ok(size) => size,
        Err(why) => return f.wrong("cpu", why),
    };
    if !class.providers.contains(&size.provider) {
        let allowed: Vec<_> = class.providers.iter().map(|each: &Provider| each.word()).collect();
        let why = format!("makes it run on {}; it may run on {}", size.provider.word(), allowed.join(", "));
        return f.wrong("cpu", why);
    }
    Some(size)
}

fn read_shard(sheet: &Sheet, path: &str, value: Value) -> Option<(Owns, Vec<pb::Ownership>)> {
    let mut f = object(sheet, path, value)?;
    let regions = f.need("owns", |s, p, v| {
        let regions = list(s, p, v, read_region)?;
        if regions.is_empty() { s.wrong(p, "is empty") } else { Some(regions) }
    });
    f.end();
    let regions = regions?;
    let json = Value::Array(regions.iter().map(|(told, _)| Value::Object(told.clone())).collect());
    let series = regions.iter().map(|(told, _)| {
        let timeless = told.iter().filter(|(key, _)| !matches!(key.as_str(), "start" | "end"));
        timeless.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>()
    });
    let series = Value::Array(series.map(Value::Object).collect());
    let owns = Owns { json: crate::text::of(&json), series: crate::text::of(&series) };
    Some((owns, regions.into_iter().map(|(_, region)| region).collect()))
}

/// A region in the words of `TRELLIS_OWNS`, and as the grid's programs know it.
fn read_region(sheet: &Sheet, path: &str, value: Value) -> Option<(Map<String, Value>, pb::Ownership)> {
    let mut f = object(sheet, path, value)?;
    let dataset = f.need("dataset", text);
    let both = f.has("slots") && f.has("symbols");
    let slots = f.may("slots", |s, p, v| {
        let slots = list(s, p, v, |s, p, v| whole(s, p, v, 0, u64::from(SLOTS)))?;
        match slots[..] {
            [start, end] if start < end => Some((start as u32, end as u32)),
            _ => s.wrong(p, format!("are a start and a larger end, up to {SLOTS}")),
        }
    });
    let symbols = f.may("symbols", |s, p, v| list(s, p, v, text));
    if both {
        f.wrong::<()>("slots", "stand beside symbols: give one of the two");
    }
    let time = |s: &Sheet, p: &str, v| {
        let text = text(s, p, v)?;
        match parse_time(&text) {
            Ok(ns) => Some((text, ns)),
            Err(error) => s.wrong(p, format!("{}; {}", error.message(), error.hint_text())),
        }
    };
    let start = f.may("start", time);
    let end = f.may("end", time);
    f.end();
    let dataset = dataset?;
    let mut told = Map::new();
    told.insert("dataset".to_owned(), json!(dataset));
    if let Some(slots) = slots {
        told.insert("slots".to_owned(), json!(slots));
    }
    if let Some(symbols) = &symbols {
        told.insert("symbols".to_owned(), json!(symbols));
    }
    for (key, time) in [("start", &start), ("end", &end)] {
        if let Some((text, _)) = time {
            told.insert(key.to_owned(), json!(text));
        }
    }
    let held = match (slots, symbols) {
        (_, Some(symbols)) => pb::ownership::Symbols::List(pb::SymbolList { symbols }),
        (slots, None) => {
            let (start, end) = slots.unwrap_or((0, SLOTS));
            pb::ownership::Symbols::HashRange(pb::HashRange { start, end })
        }
    };
    let region = pb::Ownership {
        dataset_pattern: dataset,
        symbols: Some(held),
        start_ns: start.map(|(_, ns)| ns),
        end_ns: end.map(|(_, ns)| ns),
    };
    Some((told, region))
}
