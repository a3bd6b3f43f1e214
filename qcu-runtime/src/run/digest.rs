//! A digest of rows. It does not depend on the batches or on a dictionary's numbering. Pure.
//!
//! Each column is hashed alone, value after value in one form: numbers in little-endian with zero for null, texts with their length
//! before them, and for each row one byte that says whether the value is there. So batch boundaries leave no trace.

use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{Float32Type, Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use arrow_schema::{DataType, Schema, TimeUnit};
use sha2::{Digest, Sha256};

/// SHA-256 of the schema (names and types) and the rows.
#[must_use]
pub(crate) fn rows(schema: &Schema, batches: &[RecordBatch]) -> [u8; 32] {
    let mut whole = Sha256::new();
    for (i, field) in schema.fields().iter().enumerate() {
        let data_type = match field.data_type() {
            // a dictionary is an encoding of texts, not another type
            DataType::Dictionary(_, values) => values.as_ref(),
            plain => plain,
        };
        let mut column = Sha256::new();
        column.update(format!("{}:{data_type};", field.name()));
        let mut presence = Sha256::new();
        for batch in batches {
            let array = batch.column(i);
            values(array, &mut column);
            present(array, &mut presence);
        }
        whole.update(column.finalize());
        whole.update(presence.finalize());
    }
    whole.finalize().into()
}

/// Lower-case hexadecimal.
#[must_use]
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn present(array: &ArrayRef, hash: &mut Sha256) {
    match array.logical_nulls() {
        Some(nulls) => hash.update(nulls.iter().map(u8::from).collect::<Vec<u8>>()),
        None => hash.update(vec![1_u8; array.len()]),
    }
}

fn values(array: &ArrayRef, hash: &mut Sha256) {
    macro_rules! fixed {
        ($type:ty) => {{
            let array = array.as_primitive::<$type>();
            let mut bytes = Vec::with_capacity(array.len() * 8);
            if array.null_count() == 0 {
                array.values().iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
            } else {
                array
                    .iter()
                    .for_each(|value| bytes.extend_from_slice(&value.unwrap_or_default().to_le_bytes()));
            }
            hash.update(bytes);
        }};
    }
    let mut text = |value: Option<&str>| {
        let value = value.unwrap_or("");
        hash.update((value.len() as u64).to_le_bytes());
        hash.update(value.as_bytes());
    };
    match array.data_type() {
        DataType::Float64 => fixed!(Float64Type),
        DataType::Float32 => fixed!(Float32Type),
        DataType::Int64 => fixed!(Int64Type),
        DataType::Int32 => fixed!(Int32Type),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => fixed!(TimestampNanosecondType),
        DataType::Boolean => {
            let bytes: Vec<u8> = array.as_boolean().iter().map(|v| u8::from(v == Some(true))).collect();
            hash.update(bytes);
        }
        DataType::Utf8 => array.as_string::<i32>().iter().for_each(&mut text),
        DataType::Dictionary(_, _) => {
            let Some(array) = array.as_dictionary_opt::<Int32Type>() else { return };
            let Some(names) = array.values().as_string_opt::<i32>() else { return };
            array.keys().iter().for_each(|key| {
                let name = key.and_then(|key| usize::try_from(key).ok()).filter(|key| *key < names.len());
                text(name.map(|key| names.value(key)));
            });
        }
        // the contract has no other types
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::testing::{Row, part};

    proptest! {
        #[test]
        fn batches_and_dictionaries_leave_no_trace(
            rows_in in proptest::collection::vec(("[A-C]{1,2}", any::<i64>(), proptest::option::of(any::<f64>())), 0..40),
            cut in 1..10_usize,
        ) {
            let whole = part(&rows_in, 1_000, &[]);
            let pieces = part(&rows_in, cut, &["AAA", "ZZ"]);
            prop_assert_eq!(rows(&whole.schema, &whole.batches), rows(&pieces.schema, &pieces.batches));
        }

        #[test]
        fn another_value_is_another_digest(rows_in in proptest::collection::vec(("[A-C]", any::<i64>(), proptest::option::of(-1.0..1.0)), 1..20), at in any::<usize>()) {
            let mut changed: Vec<Row> = rows_in.clone();
            let at = at % changed.len();
            changed[at].2 = match changed[at].2 { None => Some(0.0), Some(v) => Some(v + 1.0) };
            let (a, b) = (part(&rows_in, 7, &[]), part(&changed, 7, &[]));
            prop_assert_ne!(rows(&a.schema, &a.batches), rows(&b.schema, &b.batches));
        }
    }
}
