//! What a device loads: each module compiled once in a process, and kept on disk for the next.

use super::cache;
use super::error::{Error, Result};
use super::modules::Module;
use super::nvrtc::{Nvrtc, arch_of};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone)]
struct Configuration {
    nvrtc: Option<PathBuf>,
    major: i32,
    cache: Option<PathBuf>,
}

static CONFIGURATION: Mutex<Configuration> = Mutex::new(Configuration { nvrtc: None, major: 0, cache: None });

/// A panic while a lock is held leaves nothing half done here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where NVRTC is (opened only if a kernel is used), the major of CUDA it belongs to, and the folder of compiled modules;
/// without a folder they are kept in memory only.
pub fn configure(nvrtc: Option<PathBuf>, major: i32, cache: Option<PathBuf>) {
    *lock(&CONFIGURATION) = Configuration { nvrtc, major, cache };
}

/// The image of `module` for a GPU of this compute capability, given to `load`: the one that this process has, the one on
/// disk if `load` takes it, else compiled now. Whoever wants the same one meanwhile waits; others do not.
pub(super) fn load<T>(module: &Module, capability: (i32, i32), load: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    type Slot = Arc<Mutex<Option<Vec<u8>>>>;
    static SLOTS: Mutex<Option<HashMap<String, Slot>>> = Mutex::new(None);
    let Configuration { nvrtc, major, cache } = lock(&CONFIGURATION).clone();
    let folder = cache.as_deref();
    let no_nvrtc = || Error::NoNvrtc { module: module.name(), arch: arch_of(capability) };
    let nvrtc = match nvrtc.as_deref().map_or_else(|| Err(no_nvrtc()), Nvrtc::get) {
        Ok(nvrtc) => nvrtc,
        Err(error) => {
            let elsewhere = folder.and_then(|folder| cache::find(folder, module, &arch_of(capability), major));
            return load(&elsewhere.as_deref().and_then(cache::read).ok_or(error)?);
        }
    };
    let arch = nvrtc.target(capability, module)?;
    let name = cache::file_name(module, &arch, nvrtc.version());
    let path = folder.map(|folder| folder.join(&name));
    let slot = lock(&SLOTS).get_or_insert_default().entry(name).or_default().clone();
    let mut image = lock(&slot);
    if let Some(bytes) = &*image {
        return load(bytes);
    }
    if let Some(bytes) = path.as_deref().and_then(cache::read)
        && let Ok(loaded) = load(&bytes)
    {
        *image = Some(bytes);
        return Ok(loaded);
    }
    let bytes = nvrtc.compile(module, &arch)?.bytes;
    if let Some(path) = path {
        let _ = cache::write(&path, &bytes); // a folder that cannot be written costs time only
    }
    load(image.insert(bytes))
}

/// Compile one module for `arch`, as in "sm_90a", into `folder`, where [`configure`] may point later on another machine.
/// Returns the file; what is there already is not compiled again.
pub fn precompile(nvrtc: &Nvrtc, module: &Module, arch: &str, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(cache::file_name(module, arch, nvrtc.version()));
    if cache::read(&path).is_none() {
        let image = nvrtc.compile(module, arch)?;
        cache::write(&path, &image.bytes)
            .map_err(|error| Error::File { path: path.clone(), message: error.to_string() })?;
    }
    Ok(path)
}
