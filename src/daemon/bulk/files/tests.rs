//! What is sent, and when, of a file that does not change.
