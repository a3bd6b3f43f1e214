//! The columns of a chunk, as Arrow lays them out.

use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, ScalarBuffer};

/// The values of one field of one chunk; row 0 is the chunk's first row.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    /// Values of equal width, from the buffer's first byte on.
    Fixed(Buffer),
    /// Values of one bit each.
    Bits(BooleanBuffer),
    /// Text: offsets into the bytes beside them, one more than rows.
    Text(ScalarBuffer<i32>, Buffer),
}

/// One field of one chunk.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    /// Which values are there; `None`: all. Boxed, because nulls are rare and columns are many.
    pub(crate) nulls: Option<Box<NullBuffer>>,
    /// The values; anything where a null is.
    pub(crate) values: Values,
}

/// The knowledge times of a chunk's rows.
#[derive(Debug, Clone)]
pub(crate) enum KnownAt {
    /// Every row was learned at this moment.
    Constant(i64),
    /// One for each row.
    PerRow(ScalarBuffer<i64>),
}

impl KnownAt {
    pub(crate) fn at(&self, row: usize) -> i64 {
        match self {
            Self::Constant(at) => *at,
            Self::PerRow(at) => at[row],
        }
    }
}
