//! Casts a column to another type with every value unchanged, or names the first value that would change. Pure.
//!
//! A strategy's output passes here twice: when it becomes rows of the grid's types, and when those rows are checked against the
//! unit's declaration.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, Float64Array, Int64Array, TimestampNanosecondArray,
    cast::AsArray,
    types::{
        Date32Type, Date64Type, Float32Type, Float64Type, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType,
    },
};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, TimeUnit};
use chrono::DateTime;
use trellis_proto::time::{DAY_NS, REACH, SECOND_NS};

/// A float64 beyond this may stand for several integers.
const EXACT_INTEGER_MAX: f64 = 9_007_199_254_740_992.0; // 2^53

/// Casts `column` to the type `want`.
///
/// Whole floats up to 2^53 become integers. An integer becomes a float if the float is exactly that integer. A decimal becomes an
/// integer, or the float whose shortest text is that decimal. A float64 becomes a float32 if both are the same
/// number. Booleans are no numbers.
///
/// # Errors
/// The first value that would change, as a text to write after the name of the type. The text is empty if the types never fit.
pub(crate) fn cast_unchanged(column: &ArrayRef, want: &DataType) -> Result<ArrayRef, String> {
    let have = column.data_type();
    if have == want {
        return Ok(column.clone());
    }
    let text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    match (have, want) {
        (DataType::Dictionary(_, values), want) if values.as_ref() != want => {
            cast_unchanged(&checked_cast(column, values)?, want)
        }
        // a column of nulls only has no type of its own
        (DataType::Dictionary(..) | DataType::Null, want) => checked_cast(column, want),
        (have, DataType::Utf8) if text(have) => checked_cast(column, want),
        (DataType::Timestamp(..) | DataType::Date32 | DataType::Date64, DataType::Timestamp(..)) => {
            times_to_ns(column)
        }
        (have, DataType::Int64 | DataType::Int32 | DataType::Float64 | DataType::Float32)
            if is_decimal(have) =>
        {
            cast_unchanged(&decimals_to_numbers(column)?, want)
        }
        (have, DataType::Int64 | DataType::Int32) if have.is_floating() => {
            checked_cast(&whole(column)?, want)
        }
        (have, DataType::Int64 | DataType::Int32) if have.is_integer() => checked_cast(column, want),
        (have, DataType::Float64 | DataType::Float32) if have.is_integer() || have.is_floating() => {
            let cast = checked_cast(column, want)?;
            match first_changed(column, &cast) {
                None => Ok(cast),
                Some(told) => Err(told),
            }
        }
        _ => Err(String::new()),
    }
}

/// Arrow's own cast. Without its option `safe`, a value out of range is an error and not a silent null.
fn checked_cast(column: &ArrayRef, want: &DataType) -> Result<ArrayRef, String> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, want, &options).map_err(|e| format!(" ({e})"))
}

/// Whether the type is a decimal of any width.
#[must_use]
pub fn is_decimal(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Decimal32(..)
            | DataType::Decimal64(..)
            | DataType::Decimal128(..)
            | DataType::Decimal256(..)
    )
}

/// Timestamps of any unit, and dates, as `timestamp[ns, UTC]`. A timestamp without a time zone counts as UTC.
///
/// # Errors
/// The first time that nanoseconds in 64 bits cannot hold.
pub fn times_to_ns(column: &ArrayRef) -> Result<ArrayRef, String> {
    // the values, and the nanoseconds of one unit; Arrow's own casts wrap around for some of these types
    let (values, unit): (Int64Array, i64) = match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            (column.as_primitive::<TimestampSecondType>().reinterpret_cast(), SECOND_NS)
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            (column.as_primitive::<TimestampMillisecondType>().reinterpret_cast(), 1_000_000)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            (column.as_primitive::<TimestampMicrosecondType>().reinterpret_cast(), 1_000)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            (column.as_primitive::<TimestampNanosecondType>().reinterpret_cast(), 1)
        }
        DataType::Date32 => (column.as_primitive::<Date32Type>().unary(i64::from), DAY_NS),
        DataType::Date64 => (column.as_primitive::<Date64Type>().reinterpret_cast(), 1_000_000),
        _ => return Err(String::new()),
    };
    let mut ns = Vec::with_capacity(values.len());
    for row in 0..values.len() {
        // the value under a null may be anything
        let value = if values.is_valid(row) { values.value(row) } else { 0 };
        match value.checked_mul(unit) {
            Some(value) => ns.push(value),
            None => return Err(format!(" ({} in row {row} is outside of {REACH})", far_time(value, unit))),
        }
    }
    let times = TimestampNanosecondArray::new(ns.into(), values.nulls().cloned());
    Ok(Arc::new(times.with_timezone("UTC")))
}

fn far_time(value: i64, unit_ns: i64) -> String {
    let seconds = i128::from(value) * i128::from(unit_ns) / i128::from(SECOND_NS);
    let time = i64::try_from(seconds).ok().and_then(|s| DateTime::from_timestamp(s, 0));
    time.map_or_else(|| format!("{value} x {unit_ns} ns"), |t| t.format("%Y-%m-%dT%H:%M:%S").to_string())
}

/// Decimals as int64 if all are whole, otherwise as float64. Each float is the one whose shortest text is the decimal.
///
/// # Errors
/// The first decimal that neither type can hold.
pub fn decimals_to_numbers(column: &ArrayRef) -> Result<ArrayRef, String> {
    let text = checked_cast(column, &DataType::Utf8)?;
    let text: Vec<Option<String>> =
        text.as_string::<i32>().iter().map(|t| t.map(|t| plain_decimal(t).to_owned())).collect();
    let integers: Option<Vec<Option<i64>>> =
        text.iter().map(|t| t.as_ref().map(|t| t.parse().ok()).map_or(Some(None), |n| n.map(Some))).collect();
    if let Some(integers) = integers {
        return Ok(Arc::new(Int64Array::from(integers)));
    }
    let float = |(row, text): (usize, &Option<String>)| {
        let Some(text) = text else { return Ok(None) };
        let told = || format!(" ({text} in row {row} is no float64)");
        let float: f64 = text.parse().map_err(|_| told())?;
        if plain_decimal(&float.to_string()) == text { Ok(Some(float)) } else { Err(told()) }
    };
    Ok(Arc::new(text.iter().enumerate().map(float).collect::<Result<Float64Array, String>>()?))
}

/// A decimal's text without the zeros at the end of the fraction.
fn plain_decimal(text: &str) -> &str {
    let short = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
    if short == "-0" { "0" } else { short }
}

/// Whole floats as int64.
fn whole(column: &ArrayRef) -> Result<ArrayRef, String> {
    let Some(floats) = as_float64(column) else { return Err(String::new()) };
    let integer = |row: usize| {
        if floats.is_null(row) {
            return Ok(None);
        }
        let value = floats.value(row);
        if value.fract() != 0.0 || value.abs() > EXACT_INTEGER_MAX || !value.is_finite() {
            return Err(format!(" ({value} in row {row} is no exact integer)"));
        }
        Ok(Some(value as i64))
    };
    Ok(Arc::new((0..floats.len()).map(integer).collect::<Result<Int64Array, String>>()?))
}

/// The first value that a cast to a float type changed.
fn first_changed(before: &ArrayRef, after: &ArrayRef) -> Option<String> {
    let after = as_float64(after)?;
    match before.data_type() {
        t if t.is_floating() => {
            let before = as_float64(before)?;
            let same = |i: usize| {
                before.value(i) == after.value(i) || (before.value(i).is_nan() && after.value(i).is_nan())
            };
            let row = (0..before.len()).find(|&i| before.is_valid(i) && !same(i))?;
            let (value, cast) = (before.value(row), after.value(row));
            Some(format!(" ({value} in row {row} would become {cast}: give it as float32 if that is meant)"))
        }
        t if t.is_integer() => {
            let Ok(whole) = checked_cast(before, &DataType::Int64) else {
                return Some(" (a value is beyond int64)".to_owned());
            };
            let whole: &Int64Array = whole.as_primitive();
            // in 128 bits, because 2^63 as a float becomes i64::MAX when it is cast back
            let row = (0..whole.len())
                .find(|&i| whole.is_valid(i) && i128::from(whole.value(i)) != after.value(i) as i128)?;
            Some(format!(" ({} in row {row} would become {})", whole.value(row), after.value(row)))
        }
        _ => None,
    }
}

fn as_float64(column: &ArrayRef) -> Option<Float64Array> {
    match column.data_type() {
        DataType::Float64 => Some(column.as_primitive::<Float64Type>().clone()),
        DataType::Float32 => Some(column.as_primitive::<Float32Type>().unary(f64::from)),
        _ => {
            arrow_cast::cast(column, &DataType::Float64).ok().map(|c| c.as_primitive::<Float64Type>().clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{
        Date32Array, Date64Array, Decimal128Array, Float32Array, Int32Array, TimestampMicrosecondArray,
        TimestampSecondArray,
    };
    use proptest::prelude::*;

    use super::*;

    fn f64s(values: &[f64]) -> ArrayRef {
        Arc::new(Float64Array::from(values.to_vec()))
    }

    fn decimal(values: &[i128], scale: i8) -> ArrayRef {
        Arc::new(Decimal128Array::from(values.to_vec()).with_precision_and_scale(38, scale).unwrap())
    }

    #[test]
    fn whole_floats_are_integers_and_others_are_told_by_value() {
        let cast = cast_unchanged(&f64s(&[1.0, -2.0, 0.0]), &DataType::Int64).unwrap();
        assert_eq!(cast.as_primitive::<arrow_array::types::Int64Type>().values(), &[1, -2, 0]);
        for bad in [1.5, 1e300, f64::INFINITY, 9_007_199_254_740_994.0] {
            let told = cast_unchanged(&f64s(&[1.0, bad]), &DataType::Int64).unwrap_err();
            assert!(told.contains(&bad.to_string()) && told.contains("row 1"), "{told}");
        }
        assert!(cast_unchanged(&f64s(&[3e9]), &DataType::Int32).unwrap_err().contains("3000000000"));
    }

    #[test]
    fn decimals_are_the_numbers_that_they_say() {
        let whole = cast_unchanged(&decimal(&[1000, -2500], 2), &DataType::Int64).unwrap();
        assert_eq!(whole.as_primitive::<arrow_array::types::Int64Type>().values(), &[10, -25]);
        let floats = cast_unchanged(&decimal(&[1010, -2500, 5], 2), &DataType::Float64).unwrap();
        assert_eq!(floats.as_primitive::<Float64Type>().values(), &[10.1, -25.0, 0.05]);
        assert!(cast_unchanged(&decimal(&[1010], 2), &DataType::Int64).unwrap_err().contains("10.1"));
        let long = 12_345_678_901_234_567_891_i128;
        assert!(
            cast_unchanged(&decimal(&[long], 2), &DataType::Float64)
                .unwrap_err()
                .contains("123456789012345678.91")
        );
    }

    #[test]
    fn a_time_that_nanoseconds_do_not_hold_is_told_by_value_whatever_its_type() {
        let far = 253_402_214_400; // 9999-12-31
        let columns: [ArrayRef; 4] = [
            Arc::new(TimestampSecondArray::from(vec![0, far])),
            Arc::new(TimestampMicrosecondArray::from(vec![0, far * 1_000_000]).with_timezone("Asia/Tokyo")),
            Arc::new(Date32Array::from(vec![0, i32::try_from(far / 86_400).unwrap()])),
            Arc::new(Date64Array::from(vec![0, far * 1000])),
        ];
        for column in columns {
            let told = times_to_ns(&column).unwrap_err();
            assert!(told.contains("9999-12-31") && told.contains("row 1"), "{told}");
            let first = times_to_ns(&column.slice(0, 1)).unwrap();
            assert_eq!(first.as_primitive::<TimestampNanosecondType>().value(0), 0);
        }
        let missing: ArrayRef = Arc::new(Date32Array::new(vec![i32::MAX].into(), Some(vec![false].into())));
        assert_eq!(times_to_ns(&missing).unwrap().null_count(), 1);
    }

    proptest! {
        #[test]
        fn an_integer_becomes_a_float_only_if_it_comes_back(values in proptest::collection::vec(
            prop_oneof![any::<i64>(), -1000_i64..1000, Just(i64::MAX), Just((1_i64 << 53) + 1)], 0..20)) {
            let column: ArrayRef = Arc::new(Int64Array::from(values.clone()));
            let fits = values.iter().all(|v| (*v as f64) as i128 == i128::from(*v));
            prop_assert_eq!(cast_unchanged(&column, &DataType::Float64).is_ok(), fits);
        }

        #[test]
        fn what_is_cast_is_equal_to_what_was_given(values in proptest::collection::vec(-1e6..1e6_f64, 0..20), round in any::<bool>()) {
            let values: Vec<f64> = values.into_iter().map(|v| if round { v.round() } else { v }).collect();
            for want in [DataType::Int64, DataType::Int32, DataType::Float32] {
                if let Ok(cast) = cast_unchanged(&f64s(&values), &want) {
                    let back = as_float64(&cast).unwrap();
                    prop_assert_eq!(back.values().as_ref(), values.as_slice());
                } else {
                    prop_assert!(want == DataType::Float32 || !round);
                }
            }
        }

        #[test]
        fn decimals_of_fifteen_digits_are_always_floats(value in -999_999_999_999_999_i128..999_999_999_999_999, scale in 0_i8..12) {
            let cast = cast_unchanged(&decimal(&[value], scale), &DataType::Float64).unwrap();
            let want: f64 = format!("{value}e-{scale}").parse().unwrap();
            prop_assert_eq!(cast.as_primitive::<Float64Type>().value(0), want);
        }
    }

    #[test]
    fn narrower_floats_and_booleans_are_not_guessed() {
        let small: ArrayRef = Arc::new(Float32Array::from(vec![0.1_f32]));
        assert!(cast_unchanged(&small, &DataType::Float64).is_ok());
        assert!(cast_unchanged(&f64s(&[0.1]), &DataType::Float32).unwrap_err().contains("float32"));
        assert!(cast_unchanged(&f64s(&[0.5]), &DataType::Float32).is_ok());
        let flags: ArrayRef = Arc::new(arrow_array::BooleanArray::from(vec![true]));
        let ones: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        assert!(
            cast_unchanged(&flags, &DataType::Int64).is_err()
                && cast_unchanged(&ones, &DataType::Boolean).is_err()
        );
    }
}
