//! Rows of SQLite, as the types that statements answer with: by their serde form, so that a type is declared once for both
//! drivers. A column is a plain value; where a type wants more than that, the column's text is the JSON of it.

use rusqlite::types::ValueRef;
use serde::{
    Deserializer,
    de::{
        DeserializeOwned, Error as _, IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};

type Result<T> = std::result::Result<T, serde_json::Error>;

/// A row as a struct with fields of its columns' names, or as a tuple of its columns.
pub(super) fn read<R: DeserializeOwned>(row: &rusqlite::Row<'_>, names: &[String]) -> Result<R> {
    R::deserialize(Row { row, names })
}

#[derive(Clone, Copy)]
struct Row<'a> {
    row: &'a rusqlite::Row<'a>,
    names: &'a [String],
}

impl<'de> Row<'de> {
    fn cells(self) -> impl Iterator<Item = Cell<'de>> {
        // A column that is not there is nothing, which no type but an option takes.
        (0..self.names.len()).map(move |at| Cell(self.row.get_ref(at).unwrap_or(ValueRef::Null)))
    }
}

impl<'de> Deserializer<'de> for Row<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_seq(SeqDeserializer::new(self.cells()))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let names = self.names.iter().map(String::as_str);
        visitor.visit_map(MapDeserializer::new(names.zip(self.cells())))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

/// One value.
#[derive(Clone, Copy)]
struct Cell<'a>(ValueRef<'a>);

impl<'de> Cell<'de> {
    fn text(self) -> Result<&'de str> {
        self.0.as_str().map_err(serde_json::Error::custom)
    }
}

impl<'de> IntoDeserializer<'de, serde_json::Error> for Cell<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Methods that read the JSON that is in the text.
macro_rules! from_json {
    ($($name:ident($($argument:ident: $kind:ty),*);)+) => {
        $(fn $name<V: Visitor<'de>>(self, $($argument: $kind,)* visitor: V) -> Result<V::Value> {
            serde_json::Deserializer::from_str(self.text()?).$name($($argument,)* visitor)
        })+
    };
}

impl<'de> Deserializer<'de> for Cell<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.0 {
            ValueRef::Null => visitor.visit_unit(),
            ValueRef::Integer(value) => visitor.visit_i64(value),
            ValueRef::Real(value) => visitor.visit_f64(value),
            ValueRef::Text(_) => visitor.visit_borrowed_str(self.text()?),
            ValueRef::Blob(value) => visitor.visit_borrowed_bytes(value),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_bool(self.0.as_i64().map_err(serde_json::Error::custom)? != 0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.0 {
            ValueRef::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    from_json! {
        deserialize_seq();
        deserialize_tuple(len: usize);
        deserialize_map();
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use sqlx::types::Json;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Timestamp, task::TaskStatus};

    #[derive(Debug, PartialEq, Deserialize)]
    struct Sample {
        id: Uuid,
        #[serde(rename = "final")]
        is_final: bool,
        at: Option<Timestamp>,
        doc: Json<Vec<u32>>,
        status: Json<TaskStatus>,
    }

    fn one<R: DeserializeOwned>(sql: &str) -> Result<R> {
        let database = rusqlite::Connection::open_in_memory().unwrap();
        let mut statement = database.prepare(sql).unwrap();
        let names: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
        let mut rows = statement.query([]).unwrap();
        read(rows.next().unwrap().unwrap(), &names)
    }

    /// Columns are found by their names in a struct and by their order in a tuple; a type that is no plain value is JSON.
    #[test]
    fn rows_become_what_a_statement_answers_with() {
        let id = Uuid::from_u128(7);
        let text = "SELECT 1 AS final, x'00000000000000000000000000000007' AS id, '[1,2]' AS doc, 5 AS at, '\"done\"' AS status";
        let sample = Sample {
            id,
            is_final: true,
            at: Some(Timestamp(5)),
            doc: Json(vec![1, 2]),
            status: Json(TaskStatus::Done),
        };
        assert_eq!(one::<Sample>(text).unwrap(), sample);
        let tuple: (i64, Option<String>, Uuid, String) =
            one("SELECT 3, NULL, x'00000000000000000000000000000007', 'x'").unwrap();
        assert_eq!(tuple, (3, None, id, "x".to_owned()));
        assert_eq!(one::<(bool,)>("SELECT 0").unwrap(), (false,));
    }

    /// What is not what the type says is refused, not made up.
    #[test]
    fn a_bad_row_is_refused() {
        assert!(one::<(i64,)>("SELECT 'x'").is_err());
        assert!(one::<(i64,)>("SELECT NULL").is_err());
        assert!(one::<(Uuid,)>("SELECT x'00'").is_err());
        assert!(one::<(Json<Vec<u32>>,)>("SELECT '{}'").is_err());
        assert!(one::<(i32,)>("SELECT 5000000000").is_err());
    }
}
