//! The Unix socket in an attempt's directory. Its address holds about 100 bytes and a state directory may have a longer path,
//! so a long one is reached through a descriptor of the directory: `/proc/self/fd/<n>/shim.sock`.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// Name in the directory.
pub const NAME: &str = "shim.sock";
/// Bytes of a path that every system takes as an address (macOS has 104 with the final NUL).
const MAX_PATH: usize = 100;

/// Listens in this directory, in place of whoever did before.
pub fn bind(dir: &Path) -> io::Result<UnixListener> {
    let path = dir.join(NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    with_short_path(dir, |path| UnixListener::bind(path))
}

/// Connects to whoever listens in this directory.
pub fn connect(dir: &Path) -> io::Result<UnixStream> {
    with_short_path(dir, |path| UnixStream::connect(path))
}

fn with_short_path<T>(dir: &Path, work: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = dir.join(NAME);
    if path.as_os_str().len() <= MAX_PATH {
        return work(&path);
    }
    let open = File::open(dir)?;
    work(&PathBuf::from(format!("/proc/self/fd/{}/{NAME}", open.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that is too long for an address works all the same, also where an old socket lies.
    #[test]
    fn long_paths_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120));
        std::fs::create_dir(&long).unwrap();
        for dir in [dir.path(), &long] {
            drop(bind(dir).unwrap());
            // Another test's fork has the listener as well, until it becomes its program.
            let begun = std::time::Instant::now();
            while begun.elapsed().as_secs() < 10 && connect(dir).is_ok() {
                std::thread::yield_now();
            }
            assert_eq!(connect(dir).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            let listener = bind(dir).unwrap();
            connect(dir).unwrap();
            listener.accept().unwrap();
        }
    }
}
