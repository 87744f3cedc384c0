//! What the kernel tells of files and directories: inotify on Linux, nothing elsewhere.

pub use system::Notices;

use std::collections::BTreeSet;

/// What is of interest at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory that is deleted or moved; nothing of what is in it.
    Itself,
    /// A file that is written, linked, deleted or moved.
    File,
}

/// Where something has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// At these, as `listen` named them.
    pub at: BTreeSet<i32>,
    /// Something was not kept, so it may have been anywhere.
    pub lost: bool,
}

#[cfg(target_os = "linux")]
mod system {
    use std::{io, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

    use rustix::{
        fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
        io::Errno,
    };
    use tokio::io::{Interest, unix::AsyncFd};

    use super::{Heard, What};

    /// Bytes read at once: a hundred notices with long names, a thousand with none.
    const BUFFER: usize = 32 * 1024;

    /// One inotify instance.
    #[derive(Debug)]
    pub struct Notices(AsyncFd<OwnedFd>);

    impl Notices {
        /// In a runtime that waits for files. Fails where the user has too many already.
        #[expect(
            deprecated,
            reason = "it is unsound for types that may name another descriptor later, which this one never does; its \
                      successor is unsafe"
        )]
        pub fn new() -> io::Result<Self> {
            let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            Ok(Self(AsyncFd::with_interest(fd, Interest::READABLE)?))
        }

        /// Listens at a path; the same file or directory always has the same number. Fails where the user listens at too
        /// many already.
        pub fn listen(&self, path: &Path, what: What) -> io::Result<i32> {
            let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            let flags = match what {
                What::Itself => itself | WatchFlags::ONLYDIR,
                // A file that somebody has open is deleted only later, but loses its link (ATTRIB) at once.
                What::File => itself | WatchFlags::MODIFY | WatchFlags::ATTRIB,
            };
            // What others want to hear of the same directory stays.
            Ok(inotify::add_watch(self.0.get_ref(), path, flags | WatchFlags::MASK_ADD)?)
        }

        /// Listens there no more.
        pub fn leave(&self, at: i32) {
            // It may have gone by itself, with its file.
            let _ = inotify::remove_watch(self.0.get_ref(), at);
        }

        /// Waits for something to happen. Takes what is there at once; given up in between it loses nothing.
        pub async fn hear(&self) -> io::Result<Heard> {
            loop {
                let mut ready = self.0.readable().await?;
                // An error here only says that it was nothing after all.
                if let Ok(heard) = ready.try_io(|fd| take(fd.get_ref())) {
                    return heard;
                }
            }
        }
    }

    /// One buffer full: what is left makes the descriptor ready again.
    fn take(fd: &OwnedFd) -> io::Result<Heard> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(fd, &mut buffer);
        let mut heard = Heard::default();
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => heard.lost = true,
                Ok(event) => drop(heard.at.insert(event.wd())),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if reader.is_buffer_empty() {
                return Ok(heard);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::{convert::Infallible, io, path::Path};

    use super::{Heard, What};

    /// There are none.
    #[derive(Debug)]
    pub struct Notices(Infallible);

    impl Notices {
        pub fn new() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub fn listen(&self, _: &Path, _: What) -> io::Result<i32> {
            match self.0 {}
        }

        pub fn leave(&self, _: i32) {
            match self.0 {}
        }

        pub async fn hear(&self) -> io::Result<Heard> {
            match self.0 {}
        }
    }
}
