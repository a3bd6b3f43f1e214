//! Converts rows to a later definition of their dataset. Pure.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, Float64Array, RecordBatch, cast::AsArray, new_null_array, types::Int64Type,
};
use arrow_schema::{Field, Schema};
use trellis_proto::{
    Code, DatasetSpec, Error, FieldType, Result,
    spec::{Evolved, FieldSpec},
    time::format_time,
};

use crate::error::internal;

/// Converts rows of `old` to rows of `new`. The columns of the fields are the last ones, in order.
///
/// # Errors
/// [`Code::Conflict`] naming a value that the wider type does not hold.
pub(crate) fn converted(old: &DatasetSpec, new: &Evolved, rows: &RecordBatch) -> Result<RecordBatch> {
    let keys = rows.num_columns() - old.fields.len();
    let mut columns: Vec<ArrayRef> = rows.columns()[..keys].to_vec();
    let mut fields = rows.schema().fields()[..keys].to_vec();
    // Whether rows of this kind may lack the field.
    let nullable = |i: usize| rows.schema().field(keys + i).is_nullable();
    for (field, from) in new.spec.fields.iter().zip(&new.from) {
        let (column, may_lack) = match from {
            Some(i) => (widened(&old.fields[*i], field, rows.column(keys + i), rows)?, nullable(*i)),
            None => (new_null_array(&field.data_type.to_arrow(), rows.num_rows()), true),
        };
        fields.push(Arc::new(Field::new(field.name.as_str(), field.data_type.to_arrow(), may_lack)));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| internal("converting rows", e))
}

fn widened(old: &FieldSpec, new: &FieldSpec, column: &ArrayRef, rows: &RecordBatch) -> Result<ArrayRef> {
    if old.data_type == new.data_type {
        return Ok(column.clone());
    }
    if (old.data_type, new.data_type) != (FieldType::Int64, FieldType::Float64) {
        return arrow_cast::cast(column, &new.data_type.to_arrow())
            .map_err(|e| internal("widening a field", e));
    }
    let values = column.as_primitive::<Int64Type>();
    let exact = |value: i64| (value as f64) as i128 == i128::from(value);
    if let Some(i) = (0..values.len()).find(|&i| values.is_valid(i) && !exact(values.value(i))) {
        let symbol = rows.column(0).as_string::<i32>().value(i);
        let ts = rows.column(1).as_primitive::<Int64Type>().value(i);
        return Err(Error::new(
            Code::Conflict,
            format!(
                "{} cannot become float64: {} ({symbol} at {}) is a whole number that float64 does not hold",
                old.name,
                values.value(i),
                format_time(ts)
            ),
        )
        .symbol(symbol)
        .hint("keep the field as int64, and put other numbers into another field or dataset"));
    }
    let floats: Float64Array = values.unary(|v| v as f64);
    Ok(Arc::new(floats))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{testing::spec, write::rows_schema};

    proptest! {
        #[test]
        fn a_widened_whole_number_is_the_same_or_refused(
            values in prop::collection::vec(
                prop_oneof![8 => -(1_i64 << 53)..=1 << 53, 1 => any::<i64>(), 1 => Just(1_i64 << 60), 1 => Just(i64::MIN)], 1..20,
            ),
        ) {
            let of = |data_type| {
                let mut spec = spec();
                spec.fields[0].data_type = data_type;
                spec
            };
            let (old, new) = (of(FieldType::Int64), of(FieldType::Float64));
            let columns: Vec<ArrayRef> = vec![
                Arc::new(arrow_array::StringArray::from(vec!["A"; values.len()])),
                Arc::new(arrow_array::Int64Array::from_iter_values(0..values.len() as i64)),
                Arc::new(arrow_array::Int64Array::from(values.clone())),
            ];
            let rows = RecordBatch::try_new(rows_schema(&old), columns).unwrap();
            match converted(&old, &Evolved::by_name(&old, new), &rows) {
                Ok(rows) => {
                    let floats = rows.column(2).as_primitive::<arrow_array::types::Float64Type>();
                    for (float, value) in floats.values().iter().zip(&values) {
                        prop_assert_eq!(*float as i128, i128::from(*value));
                    }
                }
                Err(error) => prop_assert!(
                    values.iter().any(|v| *v as f64 as i128 != i128::from(*v) && error.message().contains(&v.to_string()))
                ),
            }
        }
    }
}
