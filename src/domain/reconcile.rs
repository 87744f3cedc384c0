//! stub
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict { Keep, Cancel, ResumeHere, Restore, ReportAgain, Fenced, Salvage, Forget }
