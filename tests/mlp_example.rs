//! The example: its answer on every instruction set, and files that are damaged.

#[allow(dead_code)] // its `main`
#[path = "../examples/mlp.rs"]
mod mlp;

use rquant::{Pool, Serial, detected_isas};
use std::path::{Path, PathBuf};
use std::process::Command;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data").join(name)
}

#[test]
fn digits_are_read_as_python_reads_them() {
    let found = mlp::run(&data("digits.safetensors"), &data("digits-held-out.safetensors"), &Pool::new(2).unwrap());
    let (right, rows) = found.unwrap();
    assert!(rows == 359 && right * 100 > rows * 95, "{right} of {rows}");
}

#[test]
fn on_every_instruction_set() {
    for isa in detected_isas() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.env("RQUANT_ISA", isa.name).args(["--exact", "digits_are_read_as_python_reads_them"]);
        let done = again.output().unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && text.contains("1 passed"), "{}: {text}", isa.name);
    }
}

#[test]
fn a_damaged_file_is_an_error() {
    let whole = std::fs::read(data("digits.safetensors")).unwrap();
    let path = std::env::temp_dir().join(format!("rquant-mlp-{}.safetensors", std::process::id()));
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        mlp::run(&path, &data("digits-held-out.safetensors"), &Serial).unwrap_err().to_string()
    };
    for len in [0, 7, 8, 100, 1000, whole.len() - 1] {
        assert!(!refused(&whole[..len]).is_empty(), "{len} bytes");
    }
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let text = String::from_utf8(whole[8..header].to_vec()).unwrap();
    // the same length, so that only this is wrong
    for (was, is, says) in [
        ("qint4", "qint2", "codes"),
        (r#"\"group_size\": 32"#, r#"\"group_size\": -2"#, "integral type"),
        (r#"\"group_size\": 32"#, r#"\"group_size\": 00"#, "invalid"),
        (r#"\"group_size\": 32"#, r#"\"group_size\": 16"#, "scale"),
        (r#"\"format\": 1"#, r#"\"format\": 2"#, "format"),
        ("2.weight_scale", "2.weight_Scale", "2.weight_scale"),
        ("\"0.weight_packed\":{\"dtype\":\"U8\"", "\"0.weight_packed\":{\"dtype\":\"I8\"", "U8"),
    ] {
        assert!(text.contains(was), "{was}");
        let damaged = [&whole[..8], text.replace(was, is).as_bytes(), &whole[header..]].concat();
        let error = refused(&damaged);
        assert!(error.contains(says), "{was} -> {is}: {error}");
    }
    for at in (header..whole.len()).step_by(97) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, damaged).unwrap();
        let _ = mlp::run(&path, &data("digits-held-out.safetensors"), &Serial); // an answer or an error, no panic
    }
    std::fs::remove_file(&path).unwrap();
}
