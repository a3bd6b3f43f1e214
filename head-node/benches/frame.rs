//! The computation of a hit without the network: slicing and framing.
//!
//! Expected, from the bytes: 2,520 rows of 20 bytes are copied once, 50 KB at 10 GB/s or more: 5 us, of which the 57
//! chunks with three columns each are 171 copies of 350 bytes, 10 ns each: 2 us.
//!
//! `cargo bench -p trellis-head --bench frame`

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_buffer::{BooleanBuffer, Buffer, ScalarBuffer};
use trellis_proto::{
    ChunkSpan, DatasetName, DatasetSpec, FieldName, FieldType, Symbol, spec::FieldSpec, time::DAY_NS,
};

/// Pure files of the crate, included here because they are not public.
#[allow(dead_code, unused_imports)]
#[path = "../src/answer"]
mod pure {
    pub(crate) mod column;
    pub(crate) mod frame;
    pub(crate) mod slice;
}
use pure::{
    column::{Column, KnownAt, Values},
    frame::{Framer, Shape, Source},
    slice::Window,
};

#[derive(Clone)]
struct Chunk(Arc<(ScalarBuffer<i64>, Column)>);

impl Source for Chunk {
    fn ts(&self) -> &ScalarBuffer<i64> {
        &self.0.0
    }
    fn known_at(&self) -> &KnownAt {
        &KnownAt::Constant(5)
    }
    fn corrected(&self) -> bool {
        false
    }
    fn retracted(&self) -> Option<&BooleanBuffer> {
        None
    }
    fn column(&self, _: usize) -> &Column {
        &self.0.1
    }
}

fn spec(fields: usize) -> DatasetSpec {
    let field = |i| FieldSpec {
        name: FieldName::new(format!("f{i}")).expect("a name"),
        data_type: FieldType::Float64,
        nullable: true,
    };
    let name = DatasetName::new("bench.frame").expect("a name");
    let chunk = ChunkSpan::new(64 * DAY_NS).expect("a span");
    DatasetSpec::new(name, (0..fields).map(field).collect(), chunk).expect("a spec")
}

fn chunks(rows: usize, of: usize) -> Vec<Chunk> {
    let ts: Vec<i64> = (0..rows as i64).map(|i| i * DAY_NS).collect();
    let chunk = |ts: &[i64]| {
        let values: Vec<f64> = ts.iter().map(|t| *t as f64).collect();
        let column = Column { nulls: None, values: Values::Fixed(Buffer::from_vec(values)) };
        Chunk(Arc::new((ts.to_vec().into(), column)))
    };
    ts.chunks(of).map(chunk).collect()
}

fn measure(name: &str, symbols: usize, rows: usize, of: usize, fields: usize) {
    const ROUNDS: usize = 15;
    let chunks = chunks(rows, of);
    let symbols: Vec<Symbol> =
        (0..symbols).map(|i| Symbol::new(format!("S{i:04}")).expect("a symbol")).collect();
    let shape = Arc::new(Shape::new(&spec(fields), &(0..fields).collect::<Vec<_>>(), false));
    let window = Window { start: 0, end: i64::MAX, as_of: Some(9) };
    let (mut times, mut bytes, mut pieces) = (Vec::new(), 0, 0);
    for _ in 0..ROUNDS {
        let (begun, mut count) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_millis(40) {
            (bytes, pieces) = (0, 0);
            let mut framer = Framer::new(shape.clone());
            framer.begin(&symbols, 0);
            let mut drain = |framer: &mut Framer<Chunk>| {
                while let Some(piece) = framer.pop() {
                    (bytes, pieces) = (bytes + piece.len(), pieces + 1);
                    black_box(&piece);
                }
            };
            for key in 0..symbols.len() {
                for chunk in &chunks {
                    framer.push(key, chunk, &window);
                }
                while framer.is_full() {
                    framer.frame();
                    drain(&mut framer);
                }
            }
            framer.finish(|_| vec![7; 90]);
            drain(&mut framer);
            count += 1;
        }
        times.push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(count));
    }
    times.sort_by(f64::total_cmp);
    let median = times[ROUNDS / 2];
    println!(
        "{name:48} {median:9.1} us (min {:.1})  {bytes:9} bytes  {pieces:3} pieces  {:6.2} GB/s",
        times[0],
        bytes as f64 / median / 1e3
    );
}

fn main() {
    measure("1 symbol x 2,520 rows x 1 field, chunks of 44", 1, 2_520, 44, 1);
    measure("1 symbol x 98,280 rows x 6 fields, chunks of 1,560", 1, 98_280, 1_560, 6);
    measure("1 symbol x 98,280 rows x 6 fields, one chunk", 1, 98_280, 98_280, 6);
    measure("500 symbols x 252 rows x 1 field, chunks of 44", 500, 252, 44, 1);
}
