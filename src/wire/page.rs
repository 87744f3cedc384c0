//! Opaque tokens: where a list goes on, and where a watch goes on. Both are bound to what they were made for, so that a
//! token given to another list is refused instead of answering nonsense.

use uuid::Uuid;

use super::status::{ApiError, ApiResult, Reason};
use crate::domain::text::{hex, unhex};

/// Items of a page that names no size.
pub const DEFAULT_PAGE: usize = 50;
/// Items of a page at most.
pub const MAX_PAGE: usize = 1_000;

/// Items that a page shall have.
pub fn size(page_size: u32) -> ApiResult<usize> {
    match page_size as usize {
        0 => Ok(DEFAULT_PAGE),
        size if size <= MAX_PAGE => Ok(size),
        size => Err(ApiError::invalid_field("page_size", format!("is {size}; at most {MAX_PAGE} are taken"))),
    }
}

/// The list that a page token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    tag: String,
}

impl List {
    /// The list of this name with these filters: everything in the request but page size and token.
    pub fn new(name: &str, filters: &impl std::fmt::Debug) -> Self {
        let filters = crc32fast::hash(format!("{filters:?}").as_bytes());
        Self { tag: format!("{name}.{filters:08x}.") }
    }

    /// The token of the page that follows `last`; empty when nothing does.
    pub fn token(&self, last: Option<&str>) -> String {
        last.map(|last| hex(format!("{}{last}", self.tag).as_bytes())).unwrap_or_default()
    }

    /// What the next page follows; `None` for the first page.
    pub fn after(&self, token: &str) -> ApiResult<Option<String>> {
        if token.is_empty() {
            return Ok(None);
        }
        unhex(token)
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.strip_prefix(&self.tag).map(str::to_owned))
            .map(Some)
            .ok_or_else(|| {
                ApiError::new(
                    Reason::InvalidPageToken,
                    "page_token does not belong to this list; give back the last answer's next_page_token with the same filters",
                )
            })
    }

    /// The same, as an id.
    pub fn after_id<T: From<Uuid>>(&self, token: &str) -> ApiResult<Option<T>> {
        match self.after(token)? {
            None => Ok(None),
            Some(text) => Uuid::try_parse(&text).map(|id| Some(T::from(id))).map_err(|_| {
                ApiError::new(Reason::InvalidPageToken, "page_token is damaged; list again from the start")
            }),
        }
    }
}

/// The token with which a watch of this thing goes on after this change.
pub fn resume_token(watched: Uuid, sequence: i64) -> String {
    hex(format!("watch.{}.{sequence}", watched.simple()).as_bytes())
}

/// The change after which a watch of this thing goes on; `None` to begin with a snapshot.
pub fn resume_after(watched: Uuid, token: &str) -> ApiResult<Option<i64>> {
    if token.is_empty() {
        return Ok(None);
    }
    unhex(token)
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.strip_prefix(&format!("watch.{}.", watched.simple()))?.parse().ok())
        .filter(|sequence| *sequence >= 0)
        .map(Some)
        .ok_or_else(|| {
            ApiError::new(
                Reason::InvalidResumeToken,
                "resume_token does not belong to this watch; leave it out to begin with a snapshot",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::TaskId;

    #[test]
    fn a_page_token_belongs_to_its_list() {
        let list = List::new("tasks", &("contract", vec![1]));
        let token = list.token(Some("01938f3e-0000-7000-8000-00c0ffee1234"));
        assert_eq!(
            list.after_id::<TaskId>(&token).unwrap().unwrap().to_string(),
            "01938f3e-0000-7000-8000-00c0ffee1234"
        );
        assert_eq!(list.after("").unwrap(), None);
        assert_eq!(list.token(None), "");
        let other = List::new("tasks", &("contract", vec![2]));
        for (list, token) in [(&other, token.as_str()), (&list, "zz"), (&list, "é"), (&list, "abc")] {
            assert_eq!(list.after(token).unwrap_err().reason(), Reason::InvalidPageToken);
        }
        assert_eq!((size(0).unwrap(), size(1_000).unwrap()), (50, 1_000));
        assert!(size(1_001).is_err());
    }

    #[test]
    fn a_resume_token_belongs_to_what_was_watched() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let token = resume_token(one, 42);
        assert_eq!(resume_after(one, &token).unwrap(), Some(42));
        assert_eq!(resume_after(one, "").unwrap(), None);
        assert_eq!(resume_after(other, &token).unwrap_err().reason(), Reason::InvalidResumeToken);
        assert_eq!(resume_after(one, &resume_token(one, -1)).unwrap_err().reason(), Reason::InvalidResumeToken);
    }
}
