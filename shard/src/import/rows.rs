//! Makes rows from the cells of one record, by the same rules for text and for typed files.

use super::{
    choice::Header,
    table::{Key, Rows, Table},
    told::Bad,
    values::{Cell, Clock, Reading, Reason, Wanted},
};

/// How the records of one file become rows.
pub(crate) struct Target<'a> {
    pub(crate) number: u32,
    pub(crate) header: &'a Header,
    /// For each column of the file.
    pub(crate) roles: Vec<Role>,
    /// Every field of the dataset.
    pub(crate) fields: &'a [Wanted],
    /// The symbol of all rows, if they have one in common.
    pub(crate) symbol: Option<u32>,
    pub(crate) ts: Clock,
    pub(crate) known_at: Clock,
    pub(crate) reading: &'a Reading,
}

/// The role of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Skip,
    Symbol,
    /// The event time, or its date.
    Ts,
    /// The time of the day; read together with [`Role::Ts`].
    Time,
    KnownAt,
    /// The field at this position of the dataset.
    Field(usize),
    /// The field at this position, of the symbol with this number.
    Ticker(usize, u32),
}

/// The cells of one record.
pub(crate) trait Record<'a> {
    fn symbol(&self, column: usize, table: &mut Table) -> Result<u32, Reason>;
    fn time(&self, column: usize, clock: &Clock) -> Result<i64, Reason>;
    /// A date and a time of the day, in two columns.
    fn date_and_time(&self, date: usize, time: usize, clock: &Clock) -> Result<i64, Reason>;
    fn cell(&self, column: usize, field: &Wanted, reading: &Reading) -> Result<Cell<'a>, Reason>;
    /// The cell as messages show it.
    fn shown(&self, column: usize) -> String;
}

/// The rows of a record. The first fault, from the left, makes the record bad as a whole.
pub(crate) fn rows<'a>(
    record: &impl Record<'a>,
    target: &Target<'_>,
    table: &mut Table,
) -> Result<Rows<'a>, Bad> {
    let width = target.fields.len();
    let mut cells = vec![Cell::Null; width];
    let (mut symbol, mut ts, mut known_at) = (target.symbol, 0, None);
    let mut tickers: Vec<(u32, usize, Cell<'a>)> = Vec::new();
    for (column, role) in target.roles.iter().enumerate() {
        let wrong = |reason| Bad::cell(&target.header.names[column], &record.shown(column), reason);
        match *role {
            Role::Skip | Role::Time => {}
            Role::Symbol => symbol = Some(record.symbol(column, table).map_err(wrong)?),
            Role::Ts => {
                ts = match target.header.time {
                    Some(time) => record.date_and_time(column, time, &target.ts).map_err(|reason| {
                        let shown = format!("{} {}", record.shown(column), record.shown(time));
                        Bad::cell(&target.header.ts_name(), &shown, reason)
                    })?,
                    None => record.time(column, &target.ts).map_err(wrong)?,
                };
            }
            Role::KnownAt => known_at = Some(record.time(column, &target.known_at).map_err(wrong)?),
            Role::Field(field) => {
                cells[field] = record.cell(column, &target.fields[field], target.reading).map_err(wrong)?;
            }
            Role::Ticker(field, symbol) => {
                let cell = record.cell(column, &target.fields[field], target.reading).map_err(wrong)?;
                if cell != Cell::Null {
                    tickers.push((symbol, field, cell));
                }
            }
        }
    }
    if !target.header.tickers.is_empty() {
        let mut rows = Rows { keys: Vec::with_capacity(tickers.len()), cells: Vec::new() };
        for (symbol, field, cell) in tickers {
            rows.keys.push(Key { symbol, ts, known_at });
            rows.cells.extend((0..width).map(|place| if place == field { cell } else { Cell::Null }));
        }
        return Ok(rows);
    }
    // A header has a column for the symbol, unless the target has the symbol.
    let symbol = symbol.ok_or_else(|| Bad::row("the symbol is missing"))?;
    Ok(Rows { keys: vec![Key { symbol, ts, known_at }], cells })
}
