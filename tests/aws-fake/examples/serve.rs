//! Serves a world on a port of the loopback interface, and prints its address. `cargo run -p trellis-aws-fake --example serve [SPEED]`;
//! SPEED is how many seconds pass in the world in one second. It ends with its standard input.

use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use trellis_aws_fake::{Settings, World, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let speed = std::env::args().nth(1).map_or(Ok(1.0), |speed| speed.parse())?;
    let mut world = World::new(Settings { speed, lag: Default::default(), ..Settings::default() });
    for (account, cluster) in [("111111111111", "peony"), ("222222222222", "tulip")] {
        world.cluster(account, "eu-central-1", cluster, &[&format!("{cluster}-general")]);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    std::thread::spawn(|| {
        // whoever started this is gone, whether or not the last read failed
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0)
    });
    serve(Arc::new(Mutex::new(world)), listener).await?;
    Ok(())
}
