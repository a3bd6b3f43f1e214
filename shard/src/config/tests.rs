use super::*;

/// The id of the shard, and the slots of the ring that it owns.
fn shard(pairs: &[(&'static str, &'static str)]) -> Result<(String, u32, u32), String> {
    let lake = tempfile::tempdir().unwrap();
    let lake = lake.path().to_string_lossy().into_owned();
    let pairs = pairs.iter().map(|(name, value)| (*name, (*value).to_owned()));
    let env = Env::from_pairs(VARIABLES, pairs.chain([("TRELLIS_LAKE", lake)]));
    let (config, _) = Config::from_env(env).map_err(|error| error.to_string())?;
    match &config.owns[0].symbols {
        Some(pb::ownership::Symbols::HashRange(range)) => Ok((config.id, range.start, range.end)),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn a_shard_with_a_name_owns_the_part_of_that_name() {
    let four = ("TRELLIS_SHARD_COUNT", "4");
    let third = Ok(("shard-2".to_owned(), 32_768, 49_152));
    assert_eq!(shard(&[four, ("TRELLIS_ID", "shard-2")]), third, "the first slots are those of shard-0");
    assert_eq!(shard(&[four, ("TRELLIS_SHARD_INDEX", "2")]), third);
    assert_eq!(shard(&[four]), Ok(("shard-0".to_owned(), 0, 16_384)));
    let names = ("TRELLIS_SHARD_IDS", "a,b,c,d");
    assert_eq!(shard(&[four, names, ("TRELLIS_ID", "d")]), Ok(("d".to_owned(), 49_152, 65_536)));
    assert!(shard(&[four, ("TRELLIS_ID", "shard-4")]).unwrap_err().contains("is none of the 4 shards"));
    assert!(shard(&[four, ("TRELLIS_SHARD_INDEX", "4")]).unwrap_err().contains("TRELLIS_SHARD_INDEX"));
}
