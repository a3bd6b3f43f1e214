//! The overhead of an answer on the wire: bytes of the socket between a head and its client, compared with the rows.
#![allow(clippy::unwrap_used)] // a test may panic

use arrow_flight::{Ticket, flight_service_client::FlightServiceClient};
use prost::Message;
use trellis_fabric::{
    channel::{ChannelOptions, connect_now},
    limited,
};
use trellis_proto::{
    SeriesQuery, Symbols, TimeRange, pb, ticket,
    time::{DAY_NS, parse_time},
};
use trellis_tests::{
    gate::Gate,
    grid::{Grid, import, spec},
    oracle::Row,
};

const ROWS: i64 = 2_000;
const FIELDS: [&str; 5] = ["open", "high", "low", "close", "volume"];
/// Largest ratio of the bytes on the wire to the bytes of the rows.
const OF_ROWS: f64 = 1.02;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_slice_of_two_thousand_rows_is_two_percent_larger_on_the_wire_at_most() {
    let grid = Grid::start(1, 1).await.unwrap();
    let spec = spec("equities.daily", &FIELDS);
    let first = parse_time("2006-08-10").unwrap();
    // more rows at both ends than the read asks for, so that the answer is a slice
    let rows: Vec<Row> = (0..ROWS + 500)
        .map(|day| Row {
            symbol: "AMZN".to_owned(),
            ts: first + day * DAY_NS,
            known_at: 0,
            values: (0..FIELDS.len()).map(|field| Some(day as f64 + field as f64 / 10.0)).collect(),
        })
        .collect();
    import(&grid.client().await.unwrap(), &spec, &rows, None, "amzn").await.unwrap();

    let mut query = SeriesQuery::new(spec.dataset.clone(), Symbols::new(["AMZN"]).unwrap());
    let start = first + 250 * DAY_NS;
    query.range = TimeRange::new(Some(start), Some(start + ROWS * DAY_NS)).unwrap();
    let ticket = Ticket { ticket: ticket::encode(&query) };

    let gate = Gate::to(grid.head(0)).await.unwrap();
    let channel = connect_now(&gate.addr().to_string(), &ChannelOptions::default()).await.unwrap();
    let mut client = limited!(FlightServiceClient::new(channel));
    // The first answer fills the cache, and the connection sends its first settings.
    let mut overheads = Vec::new();
    for _ in 0..3 {
        let before = gate.answered();
        let mut answer = client.do_get(ticket.clone()).await.unwrap().into_inner();
        let (mut bodies, mut receipt) = (0, pb::Receipt::default());
        while let Some(message) = answer.message().await.unwrap() {
            bodies += message.data_body.len() as u64;
            if !message.app_metadata.is_empty() {
                receipt = pb::Receipt::decode(message.app_metadata).unwrap();
            }
        }
        assert_eq!(receipt.rows, ROWS as u64);
        // times, symbols and five fields
        assert!(bodies >= receipt.rows * (8 + 4 + 8 * FIELDS.len() as u64), "{bodies} bytes of rows");
        overheads.push((receipt.chunks_hit, gate.answered() - before, bodies));
    }
    let (hits, wire, bodies) = *overheads.last().unwrap();
    assert!(hits > 0, "read from memory");
    let of_rows = wire as f64 / bodies as f64;
    assert!(of_rows <= OF_ROWS, "{wire} bytes on the wire, {bodies} of rows: {of_rows:.4}; {overheads:?}");
    grid.stop().await.unwrap();
}
