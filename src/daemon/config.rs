//! How a daemon is set up. The command line fills this in; nothing here reads flags, the environment or files.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tonic::codegen::http;

use super::agents::Profile;
use crate::runtime::metrics::Exporter;

/// Attempts at once, unless it says otherwise.
pub const DEFAULT_SLOTS: u32 = 4;
/// Attempts at once at most: beyond that a machine does nothing but switch between agents.
pub const MAX_SLOTS: u32 = 1_000;
/// Bytes of a daemon's name or of a label.
const MAX_WORD_BYTES: usize = 200;

/// How a daemon is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the server is.
    pub server: Server,
    /// What the daemon shows it.
    pub key: Key,
    /// Unique among the owner's daemons.
    pub name: String,
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// Attempts it runs at once.
    pub slots: u32,
    /// Whole words; tasks may require them.
    pub labels: Vec<String>,
    /// Over the built-in agent profiles, by name.
    pub profiles: BTreeMap<String, Profile>,
    /// Offered to tasks: URLs are cloned at start, paths are used in place.
    pub repositories: Vec<String>,
    /// Whether tasks may name any path of this machine. `None`: if the server is on this machine too, because then whoever
    /// names a path means this machine.
    pub any_path: Option<bool>,
    /// Free space below which no new work is taken.
    pub disk_floor: DiskFloor,
    /// The sanity check of what is started.
    pub dependency_ordering: DependencyOrdering,
    /// This program, to start shims with; `None`: the running one.
    pub executable: Option<PathBuf>,
    /// How long things take.
    pub times: Times,
    /// Where what is measured is shown, if anybody serves it.
    pub metrics: Exporter,
}

impl Config {
    /// The defaults around what has none.
    pub fn new(server: Server, key: Key, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            server,
            key,
            name: hostname(),
            state_dir: state_dir.into(),
            slots: DEFAULT_SLOTS,
            labels: Vec::new(),
            profiles: BTreeMap::new(),
            repositories: Vec::new(),
            any_path: None,
            disk_floor: DiskFloor::default(),
            dependency_ordering: DependencyOrdering::default(),
            executable: None,
            times: Times::default(),
            metrics: Exporter::default(),
        }
    }

    /// Says what is wrong with it, and what to do.
    pub fn check(&self) -> Result<(), Error> {
        check_name(&self.name)?;
        if let Some(label) = self.labels.iter().find(|label| !is_word(label)) {
            return Err(Error::Label(label.escape_debug().to_string()));
        }
        if self.slots == 0 || self.slots > MAX_SLOTS {
            return Err(Error::Slots(self.slots));
        }
        Ok(())
    }

    /// Tasks may name any path of this machine.
    pub fn any_path(&self) -> bool {
        self.any_path.unwrap_or(self.server.is_loopback())
    }
}

/// Whether a daemon may be called this. A name becomes a directory, so it is checked before a path is made with it.
pub fn check_name(name: &str) -> Result<(), Error> {
    if is_word(name) && !name.contains('/') && !name.starts_with('.') {
        return Ok(());
    }
    Err(Error::Name(name.escape_debug().to_string()))
}

fn is_word(word: &str) -> bool {
    !word.trim().is_empty() && word.len() <= MAX_WORD_BYTES && !word.chars().any(char::is_control)
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server's address.
    #[error("`{address}` is not a server's address: {problem}; write it like http://127.0.0.1:7420")]
    Server {
        /// As given.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// The key.
    #[error("the daemon's key {0}; make one with `makima key create --kind daemon --owner <name>`")]
    Key(&'static str),
    /// The daemon's name.
    #[error(
        "the daemon cannot be called `{0}`: pass a --name of 1 to 200 bytes without `/` and control characters that does not \
         start with a dot"
    )]
    Name(String),
    /// A label.
    #[error("the label `{0}` must have 1 to 200 bytes and no control characters")]
    Label(String),
    /// The number of slots.
    #[error("{0} slots: a daemon has 1 to 1000")]
    Slots(u32),
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    uri: http::Uri,
}

impl Server {
    /// From `http://host:port`; the scheme may be left out.
    pub fn parse(address: &str) -> Result<Self, Error> {
        let wrong = |problem: &str| Error::Server { address: address.to_owned(), problem: problem.to_owned() };
        let address_with_scheme =
            if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let uri: http::Uri = address_with_scheme.parse().map_err(|e: http::uri::InvalidUri| wrong(&e.to_string()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("TLS is not served yet")),
            _ => return Err(wrong("its scheme must be http")),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(wrong("it has no host"));
        }
        Ok(Self { uri })
    }

    /// For the connection.
    pub fn uri(&self) -> &http::Uri {
        &self.uri
    }

    /// It is on this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri.to_string().trim_end_matches('/'))
    }
}

/// A secret: it is shown to the server, and to nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// From its text, with or without a line end.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Error::Key("is missing"));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::Key("is not one word of plain characters"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text, for the connection and for masking it in output.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Free space below which no new work is taken: below either of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskFloor {
    /// Bytes free.
    pub bytes: u64,
    /// Percent of the disk free.
    pub percent: u8,
}

impl Default for DiskFloor {
    fn default() -> Self {
        Self { bytes: 2 * 1024 * 1024 * 1024, percent: 5 }
    }
}

/// The sanity check of the order in which tasks are started: it warns and never refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DependencyOrdering {
    /// Check at all.
    pub enabled: bool,
    /// Also by what plans and paths say.
    pub auto_detect: bool,
    /// Report what is found to the server; otherwise it is only logged.
    pub warn_on_violation: bool,
}

impl Default for DependencyOrdering {
    fn default() -> Self {
        Self { enabled: true, auto_detect: true, warn_on_violation: true }
    }
}

/// How long things take; tests shorten them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// For a connection to stand, and for the server to say Welcome.
    pub connect: Duration,
    /// The first wait after an attempt to attach failed; it doubles.
    pub reconnect_first: Duration,
    /// The longest wait.
    pub reconnect_limit: Duration,
    /// The wait when the key is refused: only a person can change that.
    pub unauthenticated: Duration,
    /// The shortest time between two reports of an agent's progress.
    pub progress: Duration,
    /// How long output is collected before it is sent.
    pub output: Duration,
    /// For agents to say their versions before the daemon attaches without them for now.
    pub detect: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            reconnect_first: Duration::from_millis(500),
            reconnect_limit: Duration::from_secs(30),
            unauthenticated: Duration::from_secs(60),
            progress: Duration::from_secs(1),
            output: Duration::from_millis(100),
            detect: Duration::from_secs(5),
        }
    }
}

/// The name of this machine.
pub fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood_and_loopback_is_known() {
        for (address, loopback) in [
            ("http://127.0.0.1:7420", true),
            ("localhost:7420", true),
            ("http://[::1]:7420", true),
            ("http://10.0.0.1:7420", false),
            ("server.example:7420", false),
        ] {
            let server = Server::parse(address).unwrap();
            assert_eq!(server.is_loopback(), loopback, "{address}");
            assert!(server.to_string().ends_with(address), "{server}");
        }
        assert!(Server::parse("https://server.example").unwrap_err().to_string().contains("TLS is not served yet"));
        assert!(Server::parse("ftp://server.example").is_err());
        assert!(Server::parse("").is_err());
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = Key::parse("mk_daemon_secret\n").unwrap();
        let config = Config::new(Server::parse("127.0.0.1:1").unwrap(), key, "/state");
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(config.key.secret(), "mk_daemon_secret");
        assert!(Key::parse(" \n").is_err());
        assert!(Key::parse("two words").is_err());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let config = Config::new(Server::parse("127.0.0.1:1").unwrap(), Key::parse("mk_daemon_x").unwrap(), "/state");
        assert_eq!(config.check(), Ok(()));
        assert!(config.any_path());
        assert_eq!(Config { slots: 0, ..config.clone() }.check(), Err(Error::Slots(0)));
        assert!(Config { labels: vec!["a\nb".to_owned()], ..config.clone() }.check().is_err());
        assert!(Config { name: String::new(), ..config }.check().is_err());
    }

    #[test]
    fn a_name_stays_inside_the_directory_it_is_joined_to() {
        let config = Config::new(Server::parse("127.0.0.1:1").unwrap(), Key::parse("mk_daemon_x").unwrap(), "/state");
        let check = |name: &str| Config { name: name.to_owned(), ..config.clone() }.check();
        for name in ["box", "build box 2", "a..b", "b\u{fc}ro.example.org", &"x".repeat(MAX_WORD_BYTES)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        let long = "x".repeat(MAX_WORD_BYTES + 1);
        for name in
            ["", " ", ".", "..", ".hidden", "/", "/etc", "a/b", "bad name/..", "../../up", "a\nb", "a\0b", &long]
        {
            assert_eq!(check(name), Err(Error::Name(name.escape_debug().to_string())), "{name:?}");
        }
    }
}
