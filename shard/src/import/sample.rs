//! A sample of each field as the import understood it, for people.

use arrow_array::Array;
use arrow_cast::display::array_value_to_string;
use trellis_proto::DatasetSpec;

use super::{
    choice::Surveyed,
    told::{FieldSample, Part},
};

/// Values of a field that are shown.
const VALUES_SHOWN: usize = 3;

pub(super) fn of(spec: &DatasetSpec, parts: &[Part], surveyed: &[Surveyed]) -> Vec<FieldSample> {
    let batches = || parts.iter().flat_map(|part| &part.batches);
    let of_field = |(i, field): (usize, &trellis_proto::spec::FieldSpec)| {
        // Symbol and ts come before the fields.
        let columns = || batches().map(move |batch| batch.column(i + 2));
        let values = columns().flat_map(|array| {
            (0..array.len()).map(move |row| {
                array.is_valid(row).then(|| array_value_to_string(array, row).unwrap_or_default())
            })
        });
        let column = surveyed.iter().map(|each| &each.header).find_map(|header| {
            let place = header.fields.iter().position(|(name, _)| *name == field.name)?;
            Some(match header.tickers.len() {
                0 => header.names[header.fields[place].1].clone(),
                tickers => format!("({tickers} columns)"),
            })
        });
        FieldSample {
            field: field.name.to_string(),
            data_type: field.data_type,
            column,
            missing: columns().map(|array| array.null_count() as u64).sum(),
            first: values.take(VALUES_SHOWN).collect(),
        }
    };
    spec.fields.iter().enumerate().map(of_field).collect()
}
