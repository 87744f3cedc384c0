//! Where a setting comes from: a flag, else the environment (`MAKIMA_*`), else `config.toml`, else a default.
//!
//! ```text
//!   $XDG_CONFIG_HOME/makima/config.toml   server key_file owner  [server] [daemon]
//!   $XDG_STATE_HOME/makima/server         admin.key owner.key daemon.key, the embedded database, blobs
//!   $XDG_STATE_HOME/makima/daemon/<name>  journal, attempts, worktrees
//! ```
//!
//! The environment is an argument ([`Environment`]), so that a test states it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Deserialize;

use super::error::{Error, Result};
use crate::daemon::{
    agents::Profile,
    config::{DependencyOrdering, DiskFloor},
};

/// Where a server is looked for when nothing says otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:7420";

/// Flags of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct GlobalArgs {
    /// Server to talk to [env: MAKIMA_SERVER] [default: http://127.0.0.1:7420]
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub server: Option<String>,
    /// File with the key [env: MAKIMA_KEY_FILE, or the key itself in MAKIMA_KEY] [default: the key that a server on this machine wrote]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub key_file: Option<PathBuf>,
    /// Owner to act for, with an admin key [env: MAKIMA_OWNER]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub owner: Option<String>,
    /// Configuration file [env: MAKIMA_CONFIG] [default: $XDG_CONFIG_HOME/makima/config.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Write one JSON object a line, for programs
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
}

/// The variables a command may look at.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of the process, but for what is not UTF-8.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// These and no others.
    #[cfg(test)]
    pub fn fixed(variables: &[(&str, &str)]) -> Self {
        Self(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// A variable; one that is empty counts as absent.
    pub fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// The home directory.
    pub fn home(&self) -> Option<PathBuf> {
        self.path("HOME")
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        // The base directory specification says to ignore relative paths.
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

/// `config.toml`. Every key is optional; unknown ones are refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Server to talk to.
    pub server: Option<String>,
    /// File with the key.
    pub key_file: Option<PathBuf>,
    /// Owner to act for, with an admin key.
    pub owner: Option<String>,
    /// What `makima server` takes from here.
    #[serde(default, rename = "server_process")]
    pub server_process: ServerSection,
    /// What `makima daemon run` takes from here.
    #[serde(default)]
    pub daemon: DaemonSection,
}

/// `[server_process]` in `config.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSection {
    /// Address to listen on.
    pub listen: Option<String>,
    /// SQLite file, or postgres:// URL.
    pub database_url: Option<String>,
    /// State directory.
    pub state_dir: Option<PathBuf>,
    /// Listen beyond loopback without TLS.
    pub insecure: Option<bool>,
    /// Address to show metrics on.
    pub metrics_listen: Option<String>,
}

/// `[daemon]` in `config.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonSection {
    /// Its name.
    pub name: Option<String>,
    /// Attempts at once.
    pub slots: Option<u32>,
    /// Labels.
    #[serde(default)]
    pub labels: Vec<String>,
    /// State directory.
    pub state_dir: Option<PathBuf>,
    /// Repositories to have at hand.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// Whether tasks may name any path of this machine.
    pub any_path: Option<bool>,
    /// Free space below which no new work is taken.
    pub disk_floor: Option<DiskFloor>,
    /// Agent profiles over the built-in ones.
    #[serde(default)]
    pub profiles: BTreeMap<String, Profile>,
    /// The sanity check of the order of tasks.
    pub dependency_ordering: Option<DependencyOrdering>,
    /// Address to show metrics on.
    pub metrics_listen: Option<String>,
}

/// What holds for this call of the program.
pub struct Settings {
    /// Where the server is, with a scheme.
    pub server: String,
    /// Owner to act for.
    pub owner: Option<String>,
    /// One JSON object a line.
    pub json: bool,
    /// The configuration file as read.
    pub file: ConfigFile,
    /// The environment it was read in.
    pub environment: Environment,
    key: KeyChoice,
}

/// Which call a key is for; it decides which file of a server on this machine is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUse {
    /// Contracts, tasks and daemons of an owner.
    Owner,
    /// Keys.
    Admin,
    /// Attaching as a daemon.
    Daemon,
}

impl KeyUse {
    fn file_name(self) -> &'static str {
        match self {
            Self::Owner => "owner.key",
            Self::Admin => "admin.key",
            Self::Daemon => "daemon.key",
        }
    }
}

/// A key and where it came from.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText {
    /// `mk_<kind>_<secret>`.
    pub secret: String,
    /// For messages: a path, or the name of a variable.
    pub origin: String,
}

impl std::fmt::Debug for KeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyText({}, secret hidden)", self.origin)
    }
}

#[derive(Clone, Debug)]
enum KeyChoice {
    Secret(String),
    File(PathBuf),
    Local,
}

impl Settings {
    /// Reads the configuration file and puts everything in order.
    pub fn load(args: &GlobalArgs, environment: Environment) -> Result<Self> {
        let named = args.config.clone().or_else(|| environment.get("MAKIMA_CONFIG").map(PathBuf::from));
        let file = match (&named, config_path(&environment)) {
            (Some(path), _) => read_config(path)?
                .ok_or_else(|| Error::usage(format!("the configuration file {} does not exist", path.display())))?,
            (None, Some(path)) => read_config(&path)?.unwrap_or_default(),
            (None, None) => ConfigFile::default(),
        };
        Self::resolve(args, environment, file)
    }

    /// Puts flags, environment, file and defaults in order.
    pub fn resolve(args: &GlobalArgs, environment: Environment, file: ConfigFile) -> Result<Self> {
        let server = args
            .server
            .clone()
            .or_else(|| environment.get("MAKIMA_SERVER"))
            .or_else(|| file.server.clone())
            .unwrap_or_else(|| DEFAULT_SERVER.to_owned());
        let server = server_url(&server)?;
        let owner = args.owner.clone().or_else(|| environment.get("MAKIMA_OWNER")).or_else(|| file.owner.clone());
        let key = if let Some(path) = &args.key_file {
            KeyChoice::File(path.clone())
        } else if let Some(secret) = environment.get("MAKIMA_KEY") {
            KeyChoice::Secret(secret.trim().to_owned())
        } else if let Some(path) = environment.get("MAKIMA_KEY_FILE") {
            KeyChoice::File(path.into())
        } else if let Some(path) = &file.key_file {
            KeyChoice::File(path.clone())
        } else {
            KeyChoice::Local
        };
        Ok(Self { server, owner, json: args.json, file, environment, key })
    }

    /// The key for a use, or what to do to have one.
    pub fn key(&self, usage: KeyUse) -> Result<KeyText> {
        match &self.key {
            KeyChoice::Secret(secret) => Ok(KeyText { secret: secret.clone(), origin: "MAKIMA_KEY".to_owned() }),
            KeyChoice::File(path) => {
                read_key(path)?.ok_or_else(|| Error::usage(format!("the key file {} does not exist", path.display())))
            }
            KeyChoice::Local => self.local_key(usage),
        }
    }

    /// The key file that [`Settings::key`] would read; `None` when the key itself was given.
    pub fn key_path(&self, usage: KeyUse) -> Option<PathBuf> {
        match &self.key {
            KeyChoice::Secret(_) => None,
            KeyChoice::File(path) => Some(path.clone()),
            KeyChoice::Local => self.server_state_dir().ok().map(|dir| dir.join(usage.file_name())),
        }
    }

    /// Where a server on this machine keeps its state.
    pub fn server_state_dir(&self) -> Result<PathBuf> {
        if let Some(dir) = self.environment.get("MAKIMA_SERVER_STATE_DIR") {
            return Ok(dir.into());
        }
        if let Some(dir) = &self.file.server_process.state_dir {
            return Ok(dir.clone());
        }
        Ok(self.state_home()?.join("server"))
    }

    /// Where a daemon of this name keeps its state; the name has been checked.
    pub fn daemon_state_dir(&self, name: &str) -> Result<PathBuf> {
        if let Some(dir) = self.environment.get("MAKIMA_DAEMON_STATE_DIR") {
            return Ok(dir.into());
        }
        if let Some(dir) = &self.file.daemon.state_dir {
            return Ok(dir.clone());
        }
        Ok(self.state_home()?.join("daemon").join(name))
    }

    /// `$XDG_STATE_HOME/makima`.
    pub fn state_home(&self) -> Result<PathBuf> {
        let base = self
            .environment
            .path("XDG_STATE_HOME")
            .or_else(|| self.environment.home().map(|home| home.join(".local/state")));
        base.map(|base| base.join("makima")).ok_or_else(|| {
            Error::usage("nowhere to keep state: set HOME or XDG_STATE_HOME, or pass --state-dir".to_owned())
        })
    }

    /// The server is on this machine, so its paths are ours.
    pub fn server_is_local(&self) -> bool {
        let host = self.server.split_once("://").map_or(self.server.as_str(), |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default();
        host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("[::1]")
    }

    fn local_key(&self, usage: KeyUse) -> Result<KeyText> {
        let how = "pass --key-file FILE, or set MAKIMA_KEY; `makima up` starts a server here and makes keys";
        let dir = self.server_state_dir().map_err(|_| Error::usage(format!("no key: {how}")))?;
        let path = dir.join(usage.file_name());
        read_key(&path)?.ok_or_else(|| Error::usage(format!("no key: {} does not exist; {how}", path.display())))
    }
}

/// Reads a key file; `None` when there is none.
pub fn read_key(path: &Path) -> Result<Option<KeyText>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("read the key file {}", path.display()))(error)),
    };
    let secret = text.trim().to_owned();
    if secret.is_empty() {
        return Err(Error::usage(format!("the key file {} is empty", path.display())));
    }
    Ok(Some(KeyText { secret, origin: path.display().to_string() }))
}

fn config_path(environment: &Environment) -> Option<PathBuf> {
    let base = environment.path("XDG_CONFIG_HOME").or_else(|| environment.home().map(|home| home.join(".config")))?;
    Some(base.join("makima/config.toml"))
}

fn read_config(path: &Path) -> Result<Option<ConfigFile>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::io(format!("read {}", path.display()))(error)),
    };
    parse_config(&text).map(Some).map_err(|problem| Error::usage(format!("{}: {problem}", path.display())))
}

fn parse_config(text: &str) -> std::result::Result<ConfigFile, String> {
    toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
}

/// `host:port` means `http://host:port`; TLS is not spoken yet.
fn server_url(text: &str) -> Result<String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = url.trim_end_matches('/').to_owned();
    match url.split_once("://") {
        Some(("http", host)) if !host.is_empty() => Ok(url),
        Some(("https", _)) => {
            Err(Error::usage(format!("{text}: TLS is not spoken yet; use http:// over a tunnel or a trusted network")))
        }
        _ => Err(Error::usage(format!("{text} is not a server address; write http://HOST:PORT"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(args: &GlobalArgs, env: &[(&str, &str)], file: &str) -> Settings {
        Settings::resolve(args, Environment::fixed(env), parse_config(file).unwrap()).unwrap()
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let flag = GlobalArgs { server: Some("flag:1".to_owned()), ..GlobalArgs::default() };
        let none = GlobalArgs::default();
        let env = [("MAKIMA_SERVER", "http://env:2/")];
        let file = "server = 'http://file:3'";
        assert_eq!(settings(&flag, &env, file).server, "http://flag:1");
        assert_eq!(settings(&none, &env, file).server, "http://env:2");
        assert_eq!(settings(&none, &[("MAKIMA_SERVER", "")], file).server, "http://file:3");
        assert_eq!(settings(&none, &[], "").server, DEFAULT_SERVER);
    }

    #[test]
    fn keys_are_found_in_the_promised_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let flag_file = write("flag.key", "mk_owner_flag\n");
        let env_file = write("env.key", "mk_owner_envfile\n");
        let config_file = write("config.key", "mk_owner_config\n");
        write("makima/server/owner.key", "mk_owner_local\n");
        write("makima/server/admin.key", "mk_admin_local\n");
        let state = dir.path().to_str().unwrap();
        let config = format!("key_file = '{}'", config_file.display());
        let with_flag = GlobalArgs { key_file: Some(flag_file), ..GlobalArgs::default() };
        let none = GlobalArgs::default();
        let env = [("MAKIMA_KEY", "mk_owner_env"), ("MAKIMA_KEY_FILE", env_file.to_str().unwrap())];

        let secret = |settings: Settings, usage| settings.key(usage).unwrap().secret;
        assert_eq!(secret(settings(&with_flag, &env, &config), KeyUse::Owner), "mk_owner_flag");
        assert_eq!(secret(settings(&none, &env, &config), KeyUse::Owner), "mk_owner_env");
        assert_eq!(secret(settings(&none, &env[1..], &config), KeyUse::Owner), "mk_owner_envfile");
        assert_eq!(secret(settings(&none, &[], &config), KeyUse::Owner), "mk_owner_config");
        let local = [("XDG_STATE_HOME", state)];
        assert_eq!(secret(settings(&none, &local, ""), KeyUse::Owner), "mk_owner_local");
        assert_eq!(secret(settings(&none, &local, ""), KeyUse::Admin), "mk_admin_local");
        let missing = settings(&none, &local, "").key(KeyUse::Daemon).unwrap_err();
        assert_eq!(missing.exit_code(), 2);
        assert!(missing.to_string().contains("daemon.key does not exist"), "{missing}");
    }

    #[test]
    fn without_a_home_the_message_says_what_to_set() {
        let settings = settings(&GlobalArgs::default(), &[("HOME", "")], "");
        insta::assert_snapshot!(
            settings.state_home().unwrap_err(),
            @"nowhere to keep state: set HOME or XDG_STATE_HOME, or pass --state-dir"
        );
        insta::assert_snapshot!(
            settings.key(KeyUse::Owner).unwrap_err(),
            @"no key: pass --key-file FILE, or set MAKIMA_KEY; `makima up` starts a server here and makes keys"
        );
    }

    #[test]
    fn unknown_keys_are_named_with_the_allowed_ones() {
        insta::assert_snapshot!(parse_config("servr = 'x'").unwrap_err(), @r"
        TOML parse error at line 1, column 1
          |
        1 | servr = 'x'
          | ^^^^^
        unknown field `servr`, expected one of `server`, `key_file`, `owner`, `server_process`, `daemon`
        ");
    }

    #[test]
    fn server_addresses_are_checked() {
        assert_eq!(server_url("host:7420").unwrap(), "http://host:7420");
        assert!(server_url("https://host").unwrap_err().to_string().contains("TLS"));
        assert!(server_url("ftp://host").is_err());
        let local = |url: &str| {
            settings(&GlobalArgs { server: Some(url.to_owned()), ..GlobalArgs::default() }, &[], "").server_is_local()
        };
        assert!(local("127.0.0.1:7420") && local("http://localhost:1") && local("http://[::1]:7420"));
        assert!(!local("http://build-server:7420"));
    }
}
