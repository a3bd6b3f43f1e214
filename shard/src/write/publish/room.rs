//! Whether the rows of a publish can be read back. A shard sends the rows of one symbol in one chunk in one message, and messages
//! have a bound. So a chunk gets no more rows than a message holds.
//!
//! Most publishes are far from the bound, and the lengths of the files' runs say so. For the others, the rows of each symbol and
//! chunk are counted from the files' indexes; of a run that reaches over a chunk's end, event times are read if that decides.

use std::{collections::BTreeMap, sync::Arc};

use arrow_array::{cast::AsArray, types::Int64Type};
use trellis_proto::{Code, Error, Result, time::format_time};

use super::accepted::Accepted;
use crate::{
    error::corrupt,
    files::{DataFile, TS_NS},
    scan::Key,
    table::Snapshot,
    write::request::Publish,
};

/// Bytes of a row beside its fields: event time, knowledge time, and a share of the bit maps.
const KEY_BYTES: usize = 17;

/// Refuses a publish that makes a chunk of a symbol larger than `bytes_max`. `retracted`: the rows that it takes back.
///
/// # Errors
/// [`Code::TooLarge`] naming the chunk.
pub(super) async fn check_room(
    snapshot: Option<&Snapshot>,
    accepted: &[Accepted],
    publish: &Publish,
    retracted: &[Key],
    bytes_max: usize,
) -> Result<()> {
    let times = publish.rows.span().into_iter().flat_map(|(first, last)| [first, last]);
    let times: Vec<i64> = times.chain(retracted.iter().map(|key| key.1)).collect();
    let (Some(first), Some(last)) = (times.iter().min(), times.iter().max()) else { return Ok(()) };
    let chunk = publish.spec.chunk;
    let (from, to) = (chunk.start(chunk.chunk_of(*first)), chunk.end(chunk.chunk_of(*last)));
    let fixed: usize = publish.spec.fields.iter().map(|field| field.data_type.width()).sum();
    let rows_max = bytes_max / (KEY_BYTES + fixed.max(publish.rows.field_bytes()));
    let files = snapshot.map(|snapshot| snapshot.files.as_slice()).unwrap_or_default();
    let files: Vec<&Arc<DataFile>> = files
        .iter()
        .filter(|file| file.index.rows > 0 && file.index.last_ts >= from && file.index.first_ts < to)
        .collect();
    let group: usize = accepted.iter().map(|a| a.publish.rows.len() + a.retracts()).sum();
    let most: usize = files.iter().map(|file| file.longest()).sum();
    if most + group + publish.rows.len() + retracted.len() <= rows_max {
        return Ok(());
    }
    let mut added: BTreeMap<(String, i64), usize> = BTreeMap::new();
    for (symbol, k, rows) in publish.rows.chunks(chunk) {
        *added.entry((symbol, k)).or_default() += rows;
    }
    for (symbol, ts) in retracted {
        *added.entry((symbol.to_string(), chunk.chunk_of(*ts))).or_default() += 1;
    }
    for ((symbol, k), mut rows) in added {
        let (from, to) = chunk.range(k);
        for other in accepted {
            rows += other.count(&symbol, &(from..to));
        }
        let near = stored(&files, &symbol, from, to, Count::Pages).await?;
        // A page may reach over the chunk's end.
        rows += match rows + near > rows_max {
            true => stored(&files, &symbol, from, to, Count::Rows).await?,
            false => near,
        };
        if rows > rows_max {
            return Err(Error::new(
                Code::TooLarge,
                format!(
                    "{symbol} would have about {rows} rows from {} to {}, which are one chunk; more than {rows_max} \
                     rows ({bytes_max} bytes) of a symbol in a chunk could not be read back",
                    format_time(from),
                    format_time(to)
                ),
            )
            .symbol(&symbol)
            .hint("import the rows into a new dataset with a shorter chunk, as --chunk 1h; nothing was written"));
        }
    }
    Ok(())
}

/// How runs that reach over the end of a chunk are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    /// The count is exact to the page: it may have a page too many.
    Pages,
    /// The count is exact: the shard reads the event times.
    Rows,
}

/// How many rows of `symbol` the files have in `[from, to)`.
async fn stored(files: &[&Arc<DataFile>], symbol: &str, from: i64, to: i64, count: Count) -> Result<usize> {
    let mut rows = 0;
    for file in files {
        for run in file.index.runs_of(symbol).iter().filter(|run| run.last_ts >= from && run.first_ts < to) {
            let whole = run.first_ts >= from && run.last_ts < to;
            let near = match whole {
                true => run.start..run.end,
                false => file.narrow(run.start, run.end, from, to).await?,
            };
            if whole || count == Count::Pages || near.is_empty() {
                rows += near.len();
                continue;
            }
            let near = near.start as usize..near.end as usize;
            for batch in file.read(&[TS_NS.to_owned()], Some(vec![near])).await? {
                let ts = batch.column(0).as_primitive_opt::<Int64Type>();
                let ts = ts.ok_or_else(|| corrupt(&file.name, "ts_ns is not int64"))?;
                rows += ts.values().iter().filter(|at| (from..to).contains(*at)).count();
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Grid;
    use trellis_proto::time::DAY_NS;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_chunk_gets_no_more_rows_than_can_be_read_back() {
        // Room for 100 rows of a symbol in a chunk of 64 days.
        let grid = Grid::with(|config| config.limits.chunk_bytes_max = 100 * (KEY_BYTES + 8)).await;
        let rows =
            |symbol: &'static str, days: std::ops::Range<i64>, step: i64| -> Vec<(&'static str, i64, f64)> {
                days.map(|i| (symbol, i * step, i as f64)).collect()
            };
        let refused = grid.import(&rows("A", 0..101, 1)).await.unwrap_err();
        assert_eq!(refused.code(), Code::TooLarge, "{refused}");
        assert!(
            refused.message().contains("about 101 rows") && refused.message().contains("more than 100"),
            "{refused}"
        );
        assert!(grid.shard.catalog.find("d.a").await.is_err(), "nothing was written");
        // Two chunks, and two symbols, have room for 100 each.
        grid.import(&rows("A", 0..128, DAY_NS)).await.unwrap();
        grid.import(&rows("B", 0..100, 1)).await.unwrap();
        assert_eq!(grid.rows("A").await.len(), 128);
        // Later versions of rows count, and so do retractions: readers get all of them.
        grid.import(&rows("A", 0..36, DAY_NS)).await.unwrap();
        let refused = grid.import(&rows("A", 0..1, DAY_NS)).await.unwrap_err();
        assert_eq!(refused.code(), Code::TooLarge, "{refused}");
        let refused = grid.retract(&[("A", 0)]).await.unwrap_err();
        assert_eq!(refused.code(), Code::TooLarge, "{refused}");
        grid.import(&rows("A", 64..100, DAY_NS)).await.unwrap();
    }
}
