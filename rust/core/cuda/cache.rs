//! Compiled modules on disk, found by a hash of all that went into them.

use super::error::{Error, Result};
use super::modules::Module;
use super::nvrtc::Nvrtc;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

const ELF: &[u8] = b"\x7fELF";
/// `e_machine` of NVIDIA's machine code.
const MACHINE: u16 = 190;

/// The file of a module: sources, options, this crate's version and the major of CUDA, without any path.
///
/// The minor is left out, so that what was compiled elsewhere by a compiler of the same major is found.
pub(super) fn file_name(module: &Module, arch: &str, major: i32) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(env!("CARGO_PKG_VERSION"));
    add(&major.to_string());
    add(module.source());
    Module::headers().iter().for_each(|(_, header)| add(header));
    Nvrtc::OPTIONS.iter().for_each(|option| add(option));
    module.defines().iter().for_each(|define| add(define));
    let hash: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}.{arch}.{hash}.cubin", module.name())
}

/// The bytes of a file, if they look like machine code: a damaged file is as good as none.
pub(super) fn read(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok().filter(|bytes| is_cubin(bytes))
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

/// Compile one module for `arch`, as in "sm_90a", into `folder`, where [`configure`](super::configure) may point later on
/// another machine. Returns the file; what is there already is not compiled again.
pub fn precompile(nvrtc: &Nvrtc, module: &Module, arch: &str, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(file_name(module, arch, nvrtc.version().0));
    if read(&path).is_none() {
        let cubin = nvrtc.compile(&module.file(), module.source(), &module.defines(), arch)?;
        write(&path, &cubin.bytes).map_err(|error| Error::File { path: path.clone(), message: error.to_string() })?;
    }
    Ok(path)
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
            .flat_map(|module| [("sm_80", 12), ("sm_90a", 12), ("sm_90a", 13)].map(|(a, v)| file_name(module, a, v)))
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
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
