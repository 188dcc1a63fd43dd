//! A network that Python quantized and saved, in a Rust program without Python.
//!
//! ```sh
//! cargo run --release --example mlp
//! cargo run --release --example mlp -- NETWORK.safetensors HELD_OUT.safetensors
//! ```
//!
//! `rquant.save` wrote the network (`examples/train_mlp.py`: Linear, ReLU, Linear in int4 with int8 activations). Beside
//! it lie digits that it was not trained on, with the outputs that Python got for them. Integer arithmetic gives the
//! same bits everywhere, so this program must get exactly those.
//!
//! The crate itself reads no files: `safetensors`, `serde_json` and `half` are what a program like this one adds.

use half::f16;
use rquant::{
    Arithmetic, Executor, Floats, FloatsMut, OwnedScales, OwnedZeroPoints, PackedMatrix, Pool, QuantType,
    QuantizedMatrix, active_isa, linear,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Whatever is wrong with a file or an argument becomes an error that names it; nothing here panics.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A layer as it stays in memory: the panels that this machine's kernels read, and no other copy of the weight.
struct Linear {
    weight: PackedMatrix,
    bias: Option<Vec<f32>>,
    arithmetic: Arithmetic,
}

impl Linear {
    /// Layer `name` of a file. `k` is its number of input features, which the model knows: rows of packed codes are
    /// padded to 4 bytes, so their length does not tell.
    fn read(file: &SafeTensors, modules: &Value, name: &str, k: usize, executor: &dyn Executor) -> Result<Self> {
        // How the layer was quantized is JSON in the file's header; its numbers are tensors under its name.
        let config = modules.get(name).ok_or_else(|| format!("module {name}: not in the file"))?;
        let tensor = |part: &str| file.tensor(&format!("{name}.{part}")).map_err(|e| format!("{name}.{part}: {e}"));
        let qtype = match config["weights"].as_str() {
            Some("qint8") => QuantType::Int8,
            Some("qint4") => QuantType::Int4,
            Some("qint2") => QuantType::Int2,
            other => return Err(format!("module {name}: expected int8, int4 or int2 weights, got {other:?}").into()),
        };
        let group_size = match config["group_size"].as_i64() {
            Some(-1) => k.max(1), // one scale for a whole row
            Some(size) => usize::try_from(size)?,
            None => return Err(format!("module {name}: expected a group_size").into()),
        };

        let codes = tensor("weight_packed")?;
        let &[rows, _] = codes.shape() else { return Err(format!("{name}.weight_packed: expected two axes").into()) };
        let scale = tensor("weight_scale")?;
        let scales = match scale.dtype() {
            Dtype::F16 => OwnedScales::F16(elements(&scale, Dtype::F16, f16::from_le_bytes)?),
            _ => OwnedScales::F32(elements(&scale, Dtype::F32, f32::from_le_bytes)?),
        };
        let zeros = if config["symmetric"] == true {
            OwnedZeroPoints::None
        } else {
            let zero = tensor("weight_zero_point")?;
            match zero.dtype() {
                Dtype::F16 => OwnedZeroPoints::F16(elements(&zero, Dtype::F16, f16::from_le_bytes)?),
                _ => OwnedZeroPoints::U8(elements(&zero, Dtype::U8, |[byte]| byte)?),
            }
        };

        // The canonical form, the same bytes on every machine; `view` checks that its parts fit each other.
        let codes = elements(&codes, Dtype::U8, |[byte]| byte)?;
        let canonical = QuantizedMatrix { rows, cols: k, qtype, group_size, codes, scales, zeros };
        let view = canonical.view().map_err(|e| format!("{name}.weight: {e}"))?;
        if let Some(i) = (0..view.scales().len()).find(|&i| !view.scales().get(i).is_normal()) {
            return Err(format!("{name}.weight_scale: expected a scale, got {} at {i}", view.scales().get(i)).into());
        }
        // Packing arranges it for this CPU. (`PackedMatrix::pack_into` does so from borrowed bytes, a mapped file's say.)
        let weight = PackedMatrix::pack(&canonical, executor)?;

        let bias = match tensor("bias") {
            Ok(bias) => Some(elements(&bias, Dtype::F32, f32::from_le_bytes)?),
            Err(_) => None, // a layer without one
        };
        // `activations=None` in Python is weight-only: float arithmetic.
        let integer = config["activations"] == "qint8";
        Ok(Self { weight, bias, arithmetic: if integer { Arithmetic::Integer } else { Arithmetic::Float } })
    }

    /// `x · Wᵀ + bias` for `rows` rows of x.
    fn forward(&self, x: &[f32], rows: usize, executor: &dyn Executor) -> Result<Vec<f32>> {
        let weight = self.weight.view();
        let mut out = vec![0f32; rows * weight.n()];
        let bias = self.bias.as_deref();
        linear(Floats::F32(x), rows, weight, bias, self.arithmetic, FloatsMut::F32(&mut out), executor)?;
        Ok(out)
    }
}

/// `torch.nn.Sequential(Linear, ReLU, Linear)`.
struct Mlp {
    hidden: Linear,
    output: Linear,
}

impl Mlp {
    /// The network in the bytes of a file that `rquant.save` wrote.
    fn read(bytes: &[u8], features: usize, executor: &dyn Executor) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let metadata = header.metadata().as_ref().and_then(|metadata| metadata.get("rquant"));
        let config: Value = serde_json::from_str(metadata.ok_or("not a file that rquant.save wrote")?)?;
        if config["format"] != 1 {
            return Err(format!("expected format 1, got {}", config["format"]).into());
        }
        let file = SafeTensors::deserialize(bytes)?;
        // A Sequential's layers are named by their place; the ReLU, at 1, has nothing to store.
        let hidden = Linear::read(&file, &config["modules"], "0", features, executor)?;
        let output = Linear::read(&file, &config["modules"], "2", hidden.weight.view().n(), executor)?;
        Ok(Self { hidden, output })
    }

    fn forward(&self, x: &[f32], rows: usize, executor: &dyn Executor) -> Result<Vec<f32>> {
        let mut hidden = self.hidden.forward(x, rows, executor)?;
        hidden.iter_mut().for_each(|v| *v = v.max(0.0));
        self.output.forward(&hidden, rows, executor)
    }
}

/// A tensor's elements. They are copied: in a file they may lie at any address.
fn elements<T, const N: usize>(tensor: &TensorView, dtype: Dtype, from: fn([u8; N]) -> T) -> Result<Vec<T>> {
    if tensor.dtype() != dtype {
        return Err(format!("expected a tensor of {dtype:?}, got {:?}", tensor.dtype()).into());
    }
    Ok(tensor.data().as_chunks::<N>().0.iter().map(|bytes| from(*bytes)).collect())
}

/// Classify the digits of `held_out` with `network`: how many are right, of how many.
///
/// # Errors
/// For a file that is missing, damaged or of another kind, and for an output that is not Python's to the last bit.
pub fn run(network: &Path, held_out: &Path, executor: &dyn Executor) -> Result<(usize, usize)> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let (network_bytes, digits_bytes) = (read(network)?, read(held_out)?);

    let digits = SafeTensors::deserialize(&digits_bytes).map_err(|e| format!("{}: {e}", held_out.display()))?;
    let pixels = digits.tensor("pixels")?;
    let &[rows, features] = pixels.shape() else { return Err("pixels: expected two axes".into()) };
    let labels = elements(&digits.tensor("labels")?, Dtype::U8, |[byte]| byte)?;
    let expected = elements(&digits.tensor("logits")?, Dtype::F32, f32::from_le_bytes)?;
    // the network was trained on pixels in 0..=1; the file has 0..=16
    let x: Vec<f32> = elements(&pixels, Dtype::U8, |[byte]| f32::from(byte) / 16.0)?;

    let mlp = Mlp::read(&network_bytes, features, executor).map_err(|e| format!("{}: {e}", network.display()))?;
    let logits = mlp.forward(&x, rows, executor)?;
    let classes = mlp.output.weight.view().n().max(1);
    if (logits.len(), labels.len()) != (expected.len(), rows) {
        return Err(format!("{}: expected {rows} labels and {} logits", held_out.display(), logits.len()).into());
    }
    if let Some(i) = (0..logits.len()).find(|&i| logits[i] != expected[i]) {
        let (row, class) = (i / classes, i % classes);
        return Err(format!("logits[{row}, {class}]: expected {}, got {}", expected[i], logits[i]).into());
    }
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class);
    let right =
        logits.chunks_exact(classes).zip(&labels).filter(|(row, label)| best(row) == Some(usize::from(**label)));
    Ok((right.count(), rows))
}

fn main() -> Result<()> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let network = arguments.next().unwrap_or_else(|| data.join("digits.safetensors"));
    let held_out = arguments.next().unwrap_or_else(|| data.join("digits-held-out.safetensors"));

    // The crate starts no threads of its own: it runs on what it is given, here a pool for as long as `main` runs.
    let pool = Pool::new(std::thread::available_parallelism()?.get())?;
    let (right, rows) = run(&network, &held_out, &pool)?;
    let percent = 100.0 * right as f64 / rows.max(1) as f64;
    println!("{right} of {rows} digits right ({percent:.1} %), every output as Python's; {}", active_isa()?.name);
    Ok(())
}
