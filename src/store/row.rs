//! Rows of a statement as native values: what a row type serializes to, taken apart by the columns that the statement declares.
//!
//! ```text
//!   &[TaskRow { id, status, doc, .. }]  ──by columns──>  [Uuid, Text, Json, .. | Uuid, Text, Json, ..]
//! ```
//!
//! A row type is a plain struct whose fields are named as the columns are; what a field is as a value follows from the column's
//! [`Kind`]. A field that is left out, or is nothing, is NULL.

use serde::{
    Serialize, Serializer,
    ser::{Error as _, Impossible, SerializeStruct},
};
use uuid::Uuid;

use super::sql::Kind;

type Result<T> = std::result::Result<T, serde_json::Error>;

/// A value of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<T> {
    Null,
    Uuid(Uuid),
    Text(T),
    Int(i64),
    Bool(bool),
}

impl<T> Value<T> {
    /// An id.
    pub(super) fn uuid(self) -> Option<Uuid> {
        if let Self::Uuid(id) = self { Some(id) } else { None }
    }

    /// A text, or a document.
    pub(super) fn text(self) -> Option<T> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// A number, or a time.
    pub(super) fn int(self) -> Option<i64> {
        if let Self::Int(int) = self { Some(int) } else { None }
    }

    /// A yes or no.
    pub(super) fn bool(self) -> Option<bool> {
        if let Self::Bool(bool) = self { Some(bool) } else { None }
    }
}

/// Where a text begins and ends among all texts.
type Place = (usize, usize);

/// Values, with their texts one after the other in one piece of memory: a batch has some thousand of them.
#[derive(Debug, Default)]
pub(super) struct Values {
    values: Vec<Value<Place>>,
    texts: String,
}

impl Values {
    /// The values from this place on.
    pub(super) fn skip(&self, place: usize) -> impl Iterator<Item = Value<&str>> {
        self.values.iter().skip(place).map(|value| match *value {
            Value::Null => Value::Null,
            Value::Uuid(id) => Value::Uuid(id),
            Value::Text((start, end)) => Value::Text(&self.texts[start..end]),
            Value::Int(int) => Value::Int(int),
            Value::Bool(bool) => Value::Bool(bool),
        })
    }
}

/// The values of all rows, row by row.
pub(super) fn values<T: Serialize>(rows: &[T], columns: &[(&'static str, Kind)]) -> Result<Values> {
    let mut values = vec![Value::Null; rows.len() * columns.len()];
    let has_texts = columns.iter().any(|(_, kind)| matches!(kind, Kind::Text | Kind::Json));
    let mut texts = Vec::with_capacity(if has_texts { (rows.len() * ROW).min(MOST) } else { 0 });
    for (row, values) in rows.iter().zip(values.chunks_exact_mut(columns.len())) {
        row.serialize(Row { columns, values, texts: &mut texts, next: 0 })?;
    }
    let texts = String::from_utf8(texts).map_err(serde_json::Error::custom)?;
    Ok(Values { values, texts })
}

/// Bytes of the texts of most rows at most.
const ROW: usize = 1 << 10;
/// Bytes for which room is made beforehand: a batch may have half a million rows.
const MOST: usize = 1 << 20;

/// Takes a struct apart.
struct Row<'a> {
    columns: &'a [(&'static str, Kind)],
    values: &'a mut [Value<Place>],
    texts: &'a mut Vec<u8>,
    /// Where the next field's column probably is.
    next: usize,
}

impl SerializeStruct for Row<'_> {
    type Ok = ();
    type Error = serde_json::Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<()> {
        let is_here = |place: &usize| self.columns.get(*place).is_some_and(|(name, _)| *name == key);
        let anywhere = || self.columns.iter().position(|(name, _)| *name == key);
        // A statement need not ask for all that a row has.
        let Some(place) = Some(self.next).filter(is_here).or_else(anywhere) else { return Ok(()) };
        self.next = place + 1;
        self.values[place] = match self.columns[place].1 {
            Kind::Json => document(value, self.texts)?,
            // Postgres has no place for more.
            Kind::Int => match value.serialize(Scalar(self.texts))? {
                Value::Int(int) => Value::Int(i32::try_from(int).map_err(serde_json::Error::custom)?.into()),
                other => other,
            },
            Kind::Uuid | Kind::Text | Kind::Big | Kind::Bool | Kind::Time => value.serialize(Scalar(self.texts))?,
        };
        Ok(())
    }

    fn end(self) -> Result<()> {
        Ok(())
    }
}

/// The JSON of a value, unless it is nothing.
fn document<T: Serialize + ?Sized>(value: &T, texts: &mut Vec<u8>) -> Result<Value<Place>> {
    let start = texts.len();
    serde_json::to_writer(&mut *texts, value)?;
    if &texts[start..] == b"null" {
        texts.truncate(start);
        return Ok(Value::Null);
    }
    Ok(Value::Text((start, texts.len())))
}

/// What is no struct, where one is needed.
fn no_struct<T>() -> Result<T> {
    Err(serde_json::Error::custom("a row is a struct"))
}

/// What is no plain value, where one is needed.
fn no_scalar<T>() -> Result<T> {
    Err(serde_json::Error::custom("a column has a plain value; declare it as JSON for anything else"))
}

/// The methods of a serializer that all end the same way.
macro_rules! refused {
    ($refused:ident) => {
        type SerializeSeq = Impossible<Self::Ok, Self::Error>;
        type SerializeTuple = Impossible<Self::Ok, Self::Error>;
        type SerializeTupleStruct = Impossible<Self::Ok, Self::Error>;
        type SerializeTupleVariant = Impossible<Self::Ok, Self::Error>;
        type SerializeMap = Impossible<Self::Ok, Self::Error>;
        type SerializeStructVariant = Impossible<Self::Ok, Self::Error>;

        fn serialize_f32(self, _: f32) -> Result<Self::Ok> {
            $refused()
        }
        fn serialize_f64(self, _: f64) -> Result<Self::Ok> {
            $refused()
        }
        fn serialize_char(self, _: char) -> Result<Self::Ok> {
            $refused()
        }
        fn serialize_unit(self) -> Result<Self::Ok> {
            $refused()
        }
        fn serialize_unit_struct(self, _: &'static str) -> Result<Self::Ok> {
            $refused()
        }
        fn serialize_newtype_variant<T: Serialize + ?Sized>(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: &T,
        ) -> Result<Self::Ok> {
            $refused()
        }
        fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq> {
            $refused()
        }
        fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple> {
            $refused()
        }
        fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct> {
            $refused()
        }
        fn serialize_tuple_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeTupleVariant> {
            $refused()
        }
        fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap> {
            $refused()
        }
        fn serialize_struct_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeStructVariant> {
            $refused()
        }
    };
}

/// Methods for values that are each made from one argument.
macro_rules! each {
    ($($name:ident($kind:ty) => $make:expr;)+) => {
        $(fn $name(self, value: $kind) -> Result<Self::Ok> {
            $make(value)
        })+
    };
}

impl Serializer for Row<'_> {
    type Ok = ();
    type Error = serde_json::Error;
    type SerializeStruct = Self;

    refused!(no_struct);
    each! {
        serialize_bool(bool) => |_| no_struct();
        serialize_i8(i8) => |_| no_struct();
        serialize_i16(i16) => |_| no_struct();
        serialize_i32(i32) => |_| no_struct();
        serialize_i64(i64) => |_| no_struct();
        serialize_u8(u8) => |_| no_struct();
        serialize_u16(u16) => |_| no_struct();
        serialize_u32(u32) => |_| no_struct();
        serialize_u64(u64) => |_| no_struct();
        serialize_str(&str) => |_| no_struct();
        serialize_bytes(&[u8]) => |_| no_struct();
    }

    fn serialize_none(self) -> Result<()> {
        no_struct()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<()> {
        no_struct()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<()> {
        value.serialize(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self> {
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Makes a value of what is one.
struct Scalar<'a>(&'a mut Vec<u8>);

impl Scalar<'_> {
    fn text(self, text: &str) -> Value<Place> {
        let start = self.0.len();
        self.0.extend_from_slice(text.as_bytes());
        Value::Text((start, self.0.len()))
    }
}

impl Serializer for Scalar<'_> {
    type Ok = Value<Place>;
    type Error = serde_json::Error;
    type SerializeStruct = Impossible<Value<Place>, serde_json::Error>;

    refused!(no_scalar);
    each! {
        serialize_bool(bool) => |value| Ok(Value::Bool(value));
        serialize_i8(i8) => |value| Ok(Value::Int(i64::from(value)));
        serialize_i16(i16) => |value| Ok(Value::Int(i64::from(value)));
        serialize_i32(i32) => |value| Ok(Value::Int(i64::from(value)));
        serialize_i64(i64) => |value| Ok(Value::Int(value));
        serialize_u8(u8) => |value| Ok(Value::Int(i64::from(value)));
        serialize_u16(u16) => |value| Ok(Value::Int(i64::from(value)));
        serialize_u32(u32) => |value| Ok(Value::Int(i64::from(value)));
        serialize_u64(u64) => |value| i64::try_from(value).map(Value::Int).map_err(serde_json::Error::custom);
        // An id says its bytes to whoever does not read.
        serialize_bytes(&[u8]) => |value| Uuid::from_slice(value).map(Value::Uuid).map_err(serde_json::Error::custom);
    }

    fn serialize_str(self, value: &str) -> Result<Self::Ok> {
        Ok(self.text(value))
    }

    fn serialize_none(self) -> Result<Self::Ok> {
        Ok(Value::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Self::Ok> {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Self::Ok> {
        Ok(self.text(variant))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<Self::Ok> {
        value.serialize(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeStruct> {
        no_scalar()
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;
    use crate::domain::{TaskId, Timestamp, task::TaskStatus};

    #[derive(Serialize)]
    struct Sample<'a> {
        id: TaskId,
        status: TaskStatus,
        #[serde(rename = "final")]
        is_final: bool,
        wait_until: Option<Timestamp>,
        #[serde(skip_serializing_if = "Option::is_none")]
        spec: Option<&'a [u32]>,
        beside: u8,
    }

    const COLUMNS: &[(&str, Kind)] = &[
        ("id", Kind::Uuid),
        ("spec", Kind::Json),
        ("status", Kind::Text),
        ("final", Kind::Bool),
        ("wait_until", Kind::Time),
    ];

    /// Every field finds its column, whatever the order; what is not there is NULL.
    #[test]
    fn rows_are_taken_apart_by_their_columns() {
        let id = Uuid::from_u128(7);
        let sample = |spec, wait_until| Sample {
            id: TaskId(id),
            status: TaskStatus::Done,
            is_final: true,
            wait_until,
            spec,
            beside: 1,
        };
        let rows = [sample(Some(&[1, 2][..]), None), sample(None, Some(Timestamp(5)))];
        let text = Value::Text;
        assert_eq!(
            values(&rows, COLUMNS).unwrap().skip(0).collect::<Vec<_>>(),
            [
                [Value::Uuid(id), text("[1,2]"), text("done"), Value::Bool(true), Value::Null],
                [Value::Uuid(id), Value::Null, text("done"), Value::Bool(true), Value::Int(5)],
            ]
            .concat()
        );
    }

    /// What is no row, and what is no value of a column, is refused.
    #[test]
    fn only_rows_are_taken_apart() {
        #[derive(Serialize)]
        struct Odd {
            id: Vec<u8>,
        }
        assert!(values(&[5], COLUMNS).is_err());
        assert!(values(&[Odd { id: vec![1] }], COLUMNS).is_err());
    }
}
