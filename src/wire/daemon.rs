//! The words between server and daemon: the session, commands, messages, chunks; both directions.
