//! Compiled modules on disk, found by a hash of all that went into them.

use super::modules::Module;
use super::nvrtc::Nvrtc;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

const ELF: &[u8] = b"\x7fELF";
/// `e_machine` of NVIDIA's machine code.
const MACHINE: u16 = 190;

/// The file of a module for an architecture, as [`Nvrtc::compile`] takes it, by an NVRTC of this version: a hash of sources,
/// options and this crate's version, without any path.
pub(super) fn file_name(module: &Module, arch: &str, (major, minor): (i32, i32)) -> String {
    let kind = if arch.starts_with("sm_") { "cubin" } else { "ptx" };
    format!("{}{major}.{minor}.{kind}", prefix(module, arch))
}

fn prefix(module: &Module, arch: &str) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(env!("CARGO_PKG_VERSION"));
    add(module.source());
    Module::headers().iter().for_each(|(_, header)| add(header));
    Nvrtc::OPTIONS.iter().for_each(|option| add(option));
    module.defines().iter().for_each(|define| add(define));
    let hash: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}.{arch}.{hash}.cuda", module.name())
}

/// Machine code of any NVRTC of this major (0: of any), the latest: for a machine that has none itself, and runs what was
/// compiled elsewhere.
pub(super) fn find(folder: &Path, module: &Module, arch: &str, major: i32) -> Option<PathBuf> {
    let prefix = prefix(module, arch);
    let version = |path: &Path| -> Option<(i32, i32)> {
        let name = path.file_name()?.to_str()?.strip_prefix(&prefix)?.strip_suffix(".cubin")?;
        let (major, minor) = name.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let fitting = files.filter_map(|path| version(&path).map(|version| (version, path)));
    fitting.filter(|((found, _), _)| major == 0 || *found == major).max().map(|(_, path)| path)
}

/// The bytes of a file, if they look like machine code or PTX: a damaged file is as good as none.
pub(super) fn read(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok().filter(|bytes| is_cubin(bytes) || is_ptx(bytes))
}

/// A text that ends where it should: with the body of a kernel, and a 0.
fn is_ptx(bytes: &[u8]) -> bool {
    let text = bytes.strip_suffix(b"\0").and_then(|text| std::str::from_utf8(text).ok());
    text.is_some_and(|text| text.contains(".version ") && text.trim_end().ends_with('}'))
}

pub(super) fn is_cubin(bytes: &[u8]) -> bool {
    bytes.starts_with(ELF) && bytes.get(18..20) == Some(&MACHINE.to_le_bytes()) && {
        // the table of sections is the last thing in the file: a file cut short lacks it
        let number = |at: usize, len: usize| {
            let mut word = [0; 8];
            word[..len].copy_from_slice(bytes.get(at..at + len)?);
            Some(u64::from_le_bytes(word))
        };
        (|| number(40, 8)?.checked_add(number(58, 2)? * number(60, 2)?))().is_some_and(|end| end <= bytes.len() as u64)
    }
}

/// Write the file whole or not at all: to another name, then renamed.
pub(super) fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let temporary = folder.join(format!(".{}.{number}.tmp", std::process::id()));
    let done = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(sections: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 64 * usize::from(sections)];
        bytes[..4].copy_from_slice(ELF);
        bytes[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        bytes[40] = 64;
        bytes[58] = 64;
        bytes[60..62].copy_from_slice(&sections.to_le_bytes());
        bytes
    }

    #[test]
    fn only_whole_machine_code_is_read() {
        let whole = elf(3);
        assert!(is_cubin(&whole));
        for cut in [0, 3, 19, 40, 63, whole.len() - 1] {
            assert!(!is_cubin(&whole[..cut]), "{cut}");
        }
        let mut other = whole;
        other[18] = 62; // x86-64
        assert!(!is_cubin(&other));
    }

    #[test]
    fn every_module_and_architecture_has_a_file_of_its_own() {
        let mut names: Vec<_> = Module::all()
            .iter()
            .flat_map(|module| {
                [("sm_80", 12), ("sm_90a", 12), ("compute_90", 12), ("sm_90a", 13)]
                    .map(|(arch, major)| file_name(module, arch, (major, 0)))
            })
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn ptx_cut_short_is_not_read() {
        let text = b".version 8.8\n.target sm_90\n.entry k() { ret; }\n\0";
        assert!(is_ptx(text));
        for cut in [0, 1, 20, text.len() - 4, text.len() - 1] {
            assert!(!is_ptx(&text[..cut]), "{cut}");
        }
    }

    #[test]
    fn without_a_compiler_the_latest_of_its_major_is_found() {
        let folder = std::env::temp_dir().join(format!("rquant-found-{}", std::process::id()));
        let module = Module::quantize_rows();
        for (arch, version) in [("sm_80", (12, 9)), ("sm_80", (13, 0)), ("sm_80", (13, 2)), ("sm_90a", (13, 3))] {
            write(&folder.join(file_name(&module, arch, version)), &elf(1)).unwrap();
        }
        let found = |major| find(&folder, &module, "sm_80", major);
        let named = |version| Some(folder.join(file_name(&module, "sm_80", version)));
        assert_eq!((found(12), found(13), found(0), found(11)), (named((12, 9)), named((13, 2)), named((13, 2)), None));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = std::env::temp_dir().join(format!("rquant-cache-{}", std::process::id()));
        let path = folder.join("a.cubin");
        write(&path, b"damaged").unwrap();
        assert_eq!(read(&path), None);
        write(&path, &elf(1)).unwrap();
        assert_eq!(read(&path), Some(elf(1)));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
