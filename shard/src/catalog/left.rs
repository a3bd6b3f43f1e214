//! The descriptions that a shard leaves for its next life, as one file beside the tables. Without it a start would have to open every
//! table before the shard can list its datasets. Pure.
//!
//! The file is believed only for tables whose newest version is the described one. It may be old, or missing.

use bytes::Bytes;
use prost::Message as _;
use trellis_proto::pb;

use crate::{files::checksum_text, table::Context};

/// What the descriptions mean. Another number is another meaning, and the file of another number is left alone.
const FORMAT: u64 = 1;

/// The name of the file of a shard.
pub(super) fn file_name(context: &Context) -> String {
    format!("datasets-{}", context.shard)
}

/// The descriptions, with what they depend on: what the shard owns, and the names of all shards.
fn of(context: &Context, datasets: Vec<pb::DatasetDescription>) -> pb::ShardDescription {
    pb::ShardDescription {
        shard: context.shard.clone(),
        epoch: FORMAT,
        owns: context.owns.wire().to_vec(),
        incarnation: context.shards.join(" "),
        datasets,
        unopened: Vec::new(),
    }
}

/// The file: the checksum of the rest, a line feed, and the descriptions.
pub(super) fn encode(context: &Context, datasets: Vec<pb::DatasetDescription>) -> Bytes {
    let said = of(context, datasets).encode_to_vec();
    let mut file = checksum_text(&said).into_bytes();
    file.push(b'\n');
    file.extend_from_slice(&said);
    file.into()
}

/// The descriptions of a file. `None`: it is damaged, or a shard with other settings wrote it.
pub(super) fn decode(context: &Context, file: &[u8]) -> Option<Vec<pb::DatasetDescription>> {
    let end = file.iter().position(|byte| *byte == b'\n')?;
    let (sum, said) = (&file[..end], &file[end + 1..]);
    if sum != checksum_text(said).as_bytes() {
        return None;
    }
    let mut said = pb::ShardDescription::decode(said).ok()?;
    let datasets = std::mem::take(&mut said.datasets);
    (said == of(context, Vec::new())).then_some(datasets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Grid;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_is_damaged_or_of_another_shard_is_not_believed() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let context = &grid.table().context;
        let said = grid.shard.describe(false).await.unwrap().datasets;
        let file = encode(context, said.clone());
        assert_eq!(decode(context, &file), Some(said));
        for at in 0..file.len() {
            let mut bytes = file.to_vec();
            bytes[at] ^= 4;
            assert_eq!(decode(context, &bytes), None, "byte {at}");
            assert_eq!(decode(context, &file[..at]), None, "cut at {at}");
        }
        let other = Grid::with(|config| {
            config.shards.push("shard-1".to_owned());
        })
        .await;
        assert_eq!(decode(&other.table().context, &file), None);
    }
}
