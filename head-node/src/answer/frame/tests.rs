//! The framed bytes are decoded by the readers that clients use (arrow-flight's, and arrow-ipc's stream reader), and compared with rows
//! that were made without our code.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, Float32Array, Float64Array, Int32Array, Int64Array,
    RecordBatch, StringArray, TimestampNanosecondArray, cast::AsArray, types::Int32Type,
};
use arrow_buffer::ScalarBuffer;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_ipc::reader::StreamReader;
use futures::{StreamExt, stream};
use proptest::prelude::*;
use trellis_proto::{ChunkSpan, DatasetName, FieldName, spec::FieldSpec};

use super::*;

/// A chunk of all seven types.
#[derive(Clone)]
pub(crate) struct Chunk(Arc<Inner>);
struct Inner {
    ts: ScalarBuffer<i64>,
    known_at: KnownAt,
    corrected: bool,
    columns: Vec<Column>,
}

impl Source for Chunk {
    fn ts(&self) -> &ScalarBuffer<i64> {
        &self.0.ts
    }
    fn known_at(&self) -> &KnownAt {
        &self.0.known_at
    }
    fn corrected(&self) -> bool {
        self.0.corrected
    }
    fn retracted(&self) -> Option<&BooleanBuffer> {
        None
    }
    fn column(&self, field: usize) -> &Column {
        &self.0.columns[field]
    }
}

fn column(array: &dyn Array) -> Column {
    use arrow_array::types::{Float32Type, Float64Type, Int64Type, TimestampNanosecondType};
    let fixed = |values: &Buffer| Values::Fixed(values.clone());
    let values = match array.data_type() {
        DataType::Float64 => fixed(array.as_primitive::<Float64Type>().values().inner()),
        DataType::Float32 => fixed(array.as_primitive::<Float32Type>().values().inner()),
        DataType::Int64 => fixed(array.as_primitive::<Int64Type>().values().inner()),
        DataType::Int32 => fixed(array.as_primitive::<Int32Type>().values().inner()),
        DataType::Timestamp(_, _) => fixed(array.as_primitive::<TimestampNanosecondType>().values().inner()),
        DataType::Boolean => Values::Bits(array.as_boolean().values().clone()),
        DataType::Utf8 => {
            let text = array.as_string::<i32>();
            Values::Text(text.offsets().inner().clone(), text.values().clone())
        }
        other => panic!("no field has the type {other}"),
    };
    Column { nulls: array.nulls().cloned().map(Box::new), values }
}

type Row = (i64, i64, Option<i64>);

/// Values follow from a row's seed, so that the expected batch is made from the same rows without our code.
fn columns(rows: &[Row]) -> Vec<ArrayRef> {
    let seeds = || rows.iter().map(|row| row.2);
    vec![
        Arc::new(seeds().map(|s| s.map(|s| s as f64 / 3.0)).collect::<Float64Array>()),
        Arc::new(seeds().map(|s| s.map(|s| s as f32)).collect::<Float32Array>()),
        Arc::new(rows.iter().map(|row| Some(row.0 * 7)).collect::<Int64Array>()),
        Arc::new(seeds().map(|s| s.map(|s| s as i32)).collect::<Int32Array>()),
        Arc::new(seeds().map(|s| s.map(|s| s % 3 == 0)).collect::<BooleanArray>()),
        Arc::new(seeds().map(|s| s.map(|s| "é".repeat(s as usize % 5))).collect::<StringArray>()),
        Arc::new(seeds().collect::<TimestampNanosecondArray>().with_timezone("UTC")),
    ]
}

fn chunk(rows: &[Row], lead: usize) -> Chunk {
    // the first `lead` rows are cut off again, so that bits and offsets do not start at zero
    let mut padded: Vec<Row> = (0..lead).map(|i| (0, 0, (i % 2 == 0).then_some(i as i64))).collect();
    padded.extend_from_slice(rows);
    let columns = columns(&padded).iter().map(|array| column(&array.slice(lead, rows.len()))).collect();
    let ts: Vec<i64> = rows.iter().map(|row| row.0).collect();
    let known: Vec<i64> = rows.iter().map(|row| row.1).collect();
    let corrected = ts.windows(2).any(|pair| pair[0] == pair[1]);
    let constant = !rows.is_empty() && known.iter().all(|at| *at == known[0]) && !corrected;
    let known_at = if constant { KnownAt::Constant(known[0]) } else { KnownAt::PerRow(known.into()) };
    Chunk(Arc::new(Inner { ts: ts.into(), known_at, corrected, columns }))
}

fn spec() -> DatasetSpec {
    let types = FieldType::ALL.map(|(data_type, name)| (data_type, name));
    // in the order of `columns`
    let order = ["float64", "float32", "int64", "int32", "bool", "string", "timestamp"];
    let fields = order.map(|name| FieldSpec {
        name: FieldName::new(format!("f_{name}")).unwrap(),
        data_type: types.iter().find(|(_, known)| *known == name).unwrap().0,
        nullable: name != "int64",
    });
    DatasetSpec::new(
        DatasetName::new("test.all").unwrap(),
        fields.into(),
        ChunkSpan::new(60_000_000_000).unwrap(),
    )
    .unwrap()
}

fn symbols(count: usize) -> Vec<Symbol> {
    (0..count).map(|i| Symbol::new(format!("S{i:04}")).unwrap()).collect()
}

/// All bytes, and the number of pieces.
fn drain<S: Source>(framer: &mut Framer<S>) -> (Vec<u8>, usize) {
    let (mut bytes, mut pieces) = (Vec::new(), 0);
    while let Some(piece) = framer.pop() {
        assert!(!piece.is_empty());
        bytes.extend_from_slice(&piece);
        pieces += 1;
    }
    (bytes, pieces)
}

/// The gRPC messages of a stream.
pub(crate) fn messages(mut bytes: &[u8]) -> Vec<FlightData> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[0], 0, "not compressed");
        let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        messages.push(FlightData::decode(&bytes[5..5 + len]).unwrap());
        bytes = &bytes[5 + len..];
    }
    messages
}

fn by_flight(messages: &[FlightData]) -> Vec<RecordBatch> {
    let messages = messages.to_vec();
    let decoder = FlightDataDecoder::new(stream::iter(messages.into_iter().map(Ok)));
    let batches = decoder.filter_map(|message| async {
        match message.unwrap().payload {
            DecodedPayload::RecordBatch(batch) => Some(batch),
            _ => None,
        }
    });
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(batches.collect())
}

fn by_ipc(messages: &[FlightData]) -> Vec<RecordBatch> {
    let mut stream = Vec::new();
    for message in messages {
        let padded = message.data_header.len().next_multiple_of(8);
        stream.extend_from_slice(&[0xff; 4]);
        stream.extend_from_slice(&(padded as u32).to_le_bytes());
        stream.extend_from_slice(&message.data_header);
        stream.resize(stream.len() + padded - message.data_header.len(), 0);
        stream.extend_from_slice(&message.data_body);
    }
    StreamReader::try_new(stream.as_slice(), None).unwrap().map(Result::unwrap).collect()
}

/// The plain answer: rows of (symbol, row) in one batch.
fn plain(symbols: &[Symbol], rows: &[(usize, Row)], fields: &[usize], known_at: bool) -> RecordBatch {
    let keys: Int32Array = rows.iter().map(|(key, _)| Some(*key as i32)).collect();
    let names: StringArray = symbols.iter().map(|s| Some(s.as_str())).collect();
    let only: Vec<Row> = rows.iter().map(|(_, row)| *row).collect();
    let all = columns(&only);
    let time = |values: Vec<i64>| -> ArrayRef {
        Arc::new(TimestampNanosecondArray::from(values).with_timezone("UTC"))
    };
    let mut out: Vec<ArrayRef> = vec![
        Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(names)).unwrap()),
        time(only.iter().map(|row| row.0).collect()),
    ];
    out.extend(fields.iter().map(|&i| all[i].clone()));
    if known_at {
        out.push(time(only.iter().map(|row| row.1).collect()));
    }
    RecordBatch::try_new(spec().answer_schema(fields, known_at), out).unwrap()
}

fn concat(batches: &[RecordBatch]) -> RecordBatch {
    arrow_select::concat::concat_batches(&batches[0].schema(), batches).unwrap()
}

/// `rows` of one symbol, an event a second, learned at once.
fn series(rows: usize) -> Vec<Row> {
    (0..rows as i64).map(|i| (i * 1_000_000_000, 5, Some(i))).collect()
}

const ALL: Window = Window { start: i64::MIN, end: i64::MAX, as_of: None };

#[test]
fn a_small_answer_is_one_piece_and_one_message() {
    let shape = Arc::new(Shape::new(&spec(), &[0], false));
    let symbols = symbols(1);
    let mut framer = Framer::new(shape.clone());
    framer.begin(&symbols, 0);
    let rows = series(2_520);
    for part in rows.chunks(44) {
        assert_eq!(framer.push(0, &chunk(part, 0), &ALL), part.len());
    }
    assert!(!framer.is_full());
    framer.finish(|framed| {
        assert_eq!(framed.rows, 2_520);
        b"receipt".to_vec()
    });
    let (bytes, pieces) = drain(&mut framer);
    assert_eq!(pieces, 1);
    let messages = messages(&bytes);
    assert_eq!(messages.len(), 3, "schema, dictionary, batch");
    assert_eq!(messages[2].app_metadata.as_ref(), b"receipt");
    let want: Vec<_> = rows.iter().map(|row| (0, *row)).collect();
    assert_eq!(by_flight(&messages), [plain(&symbols, &want, &[0], false)]);
}

/// All headers are 750 bytes here, the least that the format allows: schema 300, dictionary 168, batch 232, prefixes. The
/// receipt is content.
#[test]
fn two_thousand_rows_take_two_percent_more_than_their_values() {
    let shape = Arc::new(Shape::new(&spec(), &[0], false));
    let mut framer = Framer::new(shape);
    framer.begin(&symbols(1), 0);
    for part in series(2_000).chunks(44) {
        framer.push(0, &chunk(part, 0), &ALL);
    }
    let receipt = vec![7; 90];
    framer.finish(|_| receipt.clone());
    let bytes = drain(&mut framer).0.len();
    let content = 2_000 * (4 + 8 + 8) + receipt.len();
    assert!(bytes as f64 / content as f64 <= 1.02, "{bytes} bytes for {content}");
}

#[test]
fn no_rows_are_a_schema_a_dictionary_and_an_empty_batch_with_the_receipt() {
    let shape = Arc::new(Shape::new(&spec(), &[0, 4, 5], true));
    let mut framer: Framer<Chunk> = Framer::new(shape.clone());
    framer.begin(&symbols(3), 0);
    framer.finish(|framed| {
        assert_eq!(framed.rows, 0);
        b"r".to_vec()
    });
    let messages = messages(&drain(&mut framer).0);
    assert_eq!(messages.last().unwrap().app_metadata.as_ref(), b"r");
    assert_eq!(by_flight(&messages), [plain(&symbols(3), &[], &[0, 4, 5], true)]);
    assert_eq!(by_ipc(&messages), [plain(&symbols(3), &[], &[0, 4, 5], true)]);
}

#[test]
fn long_runs_are_shared_and_their_pin_goes_with_the_last_byte() {
    let shape = Arc::new(Shape::new(&spec(), &[0, 2], false));
    let symbols = symbols(1);
    let rows = series(100_000);
    let mut framer = Framer::new(shape.clone());
    framer.begin(&symbols, 0);
    let source = chunk(&rows, 0);
    framer.push(0, &source, &ALL);
    let (mut bytes, mut pieces, mut shared) = (Vec::new(), Vec::new(), 0);
    while framer.is_full() {
        framer.frame();
        while let Some(piece) = framer.pop() {
            bytes.extend_from_slice(&piece);
            let Values::Fixed(values) = &source.0.columns[0].values else { panic!("floats") };
            let ours = [source.0.ts.inner(), values];
            shared += usize::from(ours.iter().any(|b| b.as_ptr_range().contains(&piece.as_ptr())));
            pieces.push(piece);
        }
    }
    framer.finish(|_| vec![1]);
    bytes.extend(drain(&mut framer).0);
    assert!(shared >= 4, "{shared} shared pieces");
    let messages = messages(&bytes);
    for message in &messages[2..] {
        assert!(message.data_body.len() <= LAST_MESSAGE_BYTES + 4096, "{}", message.data_body.len());
    }
    let want: Vec<_> = rows.iter().map(|row| (0, *row)).collect();
    assert_eq!(concat(&by_flight(&messages)), plain(&symbols, &want, &[0, 2], false));
    drop(framer);
    assert!(Arc::strong_count(&source.0) > 1, "sent pieces hold the chunk");
    drop(pieces);
    assert_eq!(Arc::strong_count(&source.0), 1);
}

#[test]
fn five_hundred_symbols_are_a_few_messages() {
    let shape = Arc::new(Shape::new(&spec(), &[0], false));
    let symbols = symbols(500);
    let mut framer = Framer::new(shape.clone());
    framer.begin(&symbols, 0);
    let rows = series(252);
    let mut bytes = Vec::new();
    for key in 0..500 {
        for part in rows.chunks(44) {
            framer.push(key, &chunk(part, 0), &ALL);
        }
        while framer.is_full() {
            framer.frame();
        }
        bytes.extend(drain(&mut framer).0);
    }
    framer.finish(|_| vec![1]);
    bytes.extend(drain(&mut framer).0);
    let messages = messages(&bytes);
    assert!(messages.len() <= 2 + 6, "{} messages", messages.len());
    let want: Vec<_> = (0..500).flat_map(|key| rows.iter().map(move |row| (key, *row))).collect();
    let got = by_flight(&messages);
    assert_eq!(concat(&got), plain(&symbols, &want, &[0], false));
}

#[test]
fn a_row_larger_than_a_message_is_a_message() {
    let field =
        |name, data_type| FieldSpec { name: FieldName::new(name).unwrap(), data_type, nullable: true };
    let fields = vec![field("note", FieldType::String)];
    let name = DatasetName::new("test.notes").unwrap();
    let spec = DatasetSpec::new(name, fields, ChunkSpan::new(60_000_000_000).unwrap()).unwrap();
    let shape = Arc::new(Shape::new(&spec, &[0], false));
    let notes =
        ["a".to_owned(), "b".repeat(3 << 20), "c".to_owned(), "d".repeat(700 << 10), "e".repeat(700 << 10)];
    let array = StringArray::from_iter_values(&notes);
    let source = Chunk(Arc::new(Inner {
        ts: (0..notes.len() as i64).collect(),
        known_at: KnownAt::Constant(1),
        corrected: false,
        columns: vec![column(&array)],
    }));
    let mut framer = Framer::new(shape);
    framer.begin(&symbols(1), 0);
    framer.push(0, &source, &ALL);
    while framer.is_full() {
        framer.frame();
    }
    framer.finish(|_| vec![1]);
    let batches = by_flight(&messages(&drain(&mut framer).0));
    let got: Vec<String> = batches
        .iter()
        .flat_map(|batch| {
            batch.column(2).as_string::<i32>().iter().map(|note| note.unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(got, notes);
    assert!(batches.len() >= 3);
}

/// The exact bytes of a small answer: what changes here changes what every client receives.
#[test]
fn the_bytes_of_a_small_answer_are_these() {
    let shape = Arc::new(Shape::new(&spec(), &[0], false));
    let mut framer = Framer::new(shape);
    framer.begin(&symbols(2), 0);
    framer.push(0, &chunk(&[(1, 9, Some(3)), (2, 9, None)], 0), &ALL);
    framer.push(1, &chunk(&[(1, 9, Some(6))], 0), &ALL);
    framer.finish(|_| b"receipt".to_vec());
    let (bytes, _) = drain(&mut framer);
    let hex: String = bytes
        .chunks(32)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
        .collect();
    let golden = include_str!("golden/small_answer.hex");
    assert_eq!(hex, golden, "if the change is meant, write this to frame/golden/small_answer.hex:\n{hex}");
}

#[test]
fn probed_bytes_are_not_sent_twice_and_an_abandoned_answer_ends_with_a_whole_message() {
    let shape = Arc::new(Shape::new(&spec(), &[0, 1, 2, 3, 4, 5, 6], false));
    let symbols = symbols(2);
    let framed = |probes: usize, finish: bool| {
        let mut bytes = Vec::new();
        for _ in 0..probes {
            bytes.extend_from_slice(&shape.probe(bytes.len()).expect("two fit a schema of seven fields"));
        }
        let mut framer = Framer::new(shape.clone());
        framer.push(0, &chunk(&[(1, 9, Some(3))], 0), &ALL);
        if !finish {
            framer.forget();
        }
        framer.begin(&symbols, bytes.len());
        if finish {
            framer.finish(|_| Vec::new())
        } else {
            framer.abandon()
        }
        while let Some(piece) = framer.pop() {
            bytes.extend_from_slice(&piece);
        }
        bytes
    };
    let (whole, abandoned) = (framed(0, true), framed(0, false));
    for probes in [1, 2] {
        assert_eq!(framed(probes, true), whole);
        assert_eq!(framed(probes, false), abandoned);
    }
    assert!(whole.starts_with(&abandoned));
    let (mut at, mut messages) = (0, 0);
    while at < abandoned.len() {
        let length = u32::from_be_bytes(abandoned[at + 1..at + 5].try_into().unwrap());
        (at, messages) = (at + 5 + length as usize, messages + 1);
    }
    assert_eq!((at, messages), (abandoned.len(), 2), "the schema and the dictionary");
}

/// Gap to the row before, knowledge times, seed.
type Drawn = (i64, Vec<i64>, Option<i64>);

#[derive(Debug, Clone)]
struct World {
    /// For each symbol its chunks, and for each chunk its rows.
    series: Vec<Vec<Vec<Drawn>>>,
    fields: Vec<usize>,
    known_at: bool,
    lead: usize,
    window: Window,
}

fn world() -> impl Strategy<Value = World> {
    let versions = prop_oneof![4 => Just(vec![3]), 1 => prop::collection::btree_set(0i64..9, 1..4).prop_map(|s| s.into_iter().collect())];
    let row = (1i64..5, versions, prop::option::weighted(0.8, 0i64..50));
    let rows = prop_oneof![3 => prop::collection::vec(row.clone(), 0..20), 1 => prop::collection::vec(row, 900..1_100)];
    let series = prop::collection::vec(prop::collection::vec(rows, 0..4), 1..5);
    let fields = Just((0..7usize).collect::<Vec<_>>())
        .prop_shuffle()
        .prop_flat_map(|all| (0..=all.len()).prop_map(move |n| all[..n].to_vec()));
    let window = prop_oneof![
        Just(ALL),
        (-5i64..2_000, 0i64..3_000, prop::option::of(-1i64..10)).prop_map(|(start, len, as_of)| Window {
            start,
            end: start + len,
            as_of
        }),
    ];
    (series, fields, any::<bool>(), 0usize..11, window)
        .prop_map(|(series, fields, known_at, lead, window)| World { series, fields, known_at, lead, window })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn clients_decode_the_rows_of_the_oracle(world in world(), message_bytes in prop_oneof![Just(0usize), 200usize..60_000]) {
        let shape = Arc::new(Shape::new(&spec(), &world.fields, world.known_at));
        let symbols = symbols(world.series.len());
        let mut framer = Framer::new(shape.clone());
        framer.begin(&symbols, 0);
        let (mut bytes, mut want) = (Vec::new(), Vec::new());
        for (key, chunks) in world.series.iter().enumerate() {
            let mut now = 0;
            for rows in chunks {
                let mut flat: Vec<Row> = Vec::new();
                for (gap, versions, seed) in rows {
                    now += gap;
                    // each version of a row has a value of its own
                    flat.extend(versions.iter().map(|at| (now, *at, seed.map(|s| s + at))));
                }
                let window = world.window;
                for group in flat.chunk_by(|a, b| a.0 == b.0) {
                    let seen = group.iter().filter(|row| window.as_of.is_none_or(|as_of| row.1 <= as_of));
                    if let Some(row) = seen.max_by_key(|row| row.1)
                        && row.0 >= window.start && row.0 < window.end {
                        want.push((key, *row));
                    }
                }
                framer.push(key, &chunk(&flat, world.lead), &window);
                if message_bytes > 0 {
                    // as `frame` does, with messages small enough to divide these chunks
                    while framer.bytes > message_bytes {
                        framer.take(message_bytes);
                        framer.batch(|_| Vec::new());
                    }
                }
            }
        }
        prop_assert_eq!(framer.rows(), want.len() as u64);
        framer.finish(|_| b"receipt".to_vec());
        prop_assert_eq!(framer.framed().rows, want.len() as u64);
        prop_assert_eq!((framer.rows, framer.bytes, framer.chunks.len()), (0, 0, 0));
        bytes.extend(drain(&mut framer).0);

        let messages = messages(&bytes);
        let want = plain(&symbols, &want, &world.fields, world.known_at);
        for got in [by_flight(&messages), by_ipc(&messages)] {
            let got = concat(&got);
            got.column(0).to_data().validate_full().unwrap();
            prop_assert_eq!(&got, &want);
        }
        let body: usize = messages[2..].iter().map(|m| m.data_body.len()).sum();
        prop_assert_eq!(framer.framed().bytes, body as u64);
        prop_assert!(messages[2..messages.len() - 1].iter().all(|m| m.app_metadata.is_empty()));
        prop_assert_eq!(messages.last().unwrap().app_metadata.as_ref(), b"receipt");
    }
}
