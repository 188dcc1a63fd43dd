//! What this CPU can do at most, in operations and bytes a second: what the benches hold the kernels' rates against.
//!
//! ```sh
//! cargo run --release --example limits -- --json limits.json
//! ```

#[path = "../benches/kernels/limits/mod.rs"]
mod limits;

use serde_json::{Map, Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let file = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--json", file] => Some(file),
        _ => return Err("expected nothing, or --json FILE".into()),
    };
    let limits = limits::Limits::measure(std::thread::available_parallelism()?.get())?;
    println!("{limits}");
    let Some(file) = file else { return Ok(()) };
    let mut found = Map::new();
    let mut put = |key: &str, keys: &[&str]| {
        let threads = limits.all.iter().flat_map(|limit| &limit.rates).map(|rate| rate.threads);
        let best = threads.filter_map(|n| Some((n.to_string(), json!(limits.best(keys, n)?))));
        let best: Map<String, Value> = best.collect();
        if !best.is_empty() {
            found.insert(key.into(), best.into());
        }
    };
    // the better of two forms, under a name of its own
    put("fma_gflops", &["fma_zmm_gflops", "fma_ymm_gflops"]);
    put("read_gbps", &["read_1_stream_gbps", "read_4_streams_gbps"]);
    limits.all.iter().for_each(|limit| put(limit.key, &[limit.key]));
    std::fs::write(file, serde_json::to_string_pretty(&found)? + "\n")?;
    Ok(())
}
