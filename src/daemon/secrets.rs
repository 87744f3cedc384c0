//! Files that must not be seen, known by their names: nothing of ours commits them or sends them away.

use std::path::Path;

/// Names under which people keep what must not be seen.
pub(super) fn looks_secret(path: &str) -> bool {
    let path = Path::new(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let in_dir = |dir: &str| path.parent().is_some_and(|parent| parent.ends_with(dir));
    if name == ".env" || name.starts_with(".env.") {
        // Samples are meant to be seen.
        return !["example", "sample", "template", "dist", "defaults"].iter().any(|end| name.ends_with(end));
    }
    const NAMES: &[&str] = &[
        ".git-credentials",
        ".htpasswd",
        ".netrc",
        ".npmrc",
        ".pgpass",
        ".pypirc",
        "_netrc",
        "credentials.json",
        "id_dsa",
        "id_ecdsa",
        "id_ed25519",
        "id_rsa",
        "service-account.json",
    ];
    const ENDS: &[&str] = &[".pem", ".key", ".p12", ".pfx", ".jks", ".keystore", ".kdbx", ".ppk"];
    NAMES.contains(&name.as_str())
        || ENDS.iter().any(|end| name.ends_with(end))
        || (name == "credentials" && in_dir(".aws"))
        || (name == "config.json" && in_dir(".docker"))
}

#[cfg(test)]
mod tests {
    use super::looks_secret;

    #[test]
    fn secrets_are_known_by_their_names() {
        for path in [".env", "app/.env.production", "certs/server.pem", ".ssh/id_rsa", "a/.aws/credentials", "x.KEY"] {
            assert!(looks_secret(path), "{path}");
        }
        for path in [".env.example", "environment.ts", "src/keys.rs", "pem.txt", "credentials", "id_rsa.pub"] {
            assert!(!looks_secret(path), "{path}");
        }
    }
}
