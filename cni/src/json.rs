//! Reading JSON objects the way Go's decoder does, with errors that name the key.
//!
//! Callers and users write configurations for Go plugins: keys match whatever
//! their case (containerd sends `HostPort` for `hostPort`) and `null` stands for
//! an absent key.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::{Code, Error};

/// A JSON object and where it stands in the document, for error messages.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Object<'a> {
    /// The object at the top of a document.
    pub fn root(map: &'a Map<String, Value>) -> Self {
        Self { map, path: String::new() }
    }

    /// `value` as an object; `path` names it in errors.
    pub fn of(value: &'a Value, path: String) -> Result<Self, Error> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(expected("an object", &path, other)),
        }
    }

    /// The keys, as they are written.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The value of `key`: the exact key first, else one that differs in case
    /// alone. `null` is absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.get_or_null(key).filter(|value| !value.is_null())
    }

    /// As [`Self::get`], for the few keys where `null` says something that an
    /// absent key does not.
    pub fn get_or_null(&self, key: &str) -> Option<&'a Value> {
        let exact = self.map.get(key);
        exact.or_else(|| self.map.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v))
    }

    /// `key` as errors call it: with the path of the object around it.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A string; the empty string is a value.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A string that must not be empty where the key is given; `""` is absent,
    /// as Go programs write unset strings so.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        Ok(self.string(key)?.filter(|text| !text.is_empty()))
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A whole number from `low` to `high`.
    pub fn integer(&self, key: &str, low: u64, high: u64) -> Result<Option<u64>, Error> {
        let what = format!("a whole number from {low} to {high}");
        self.typed(key, &what, |value| value.as_u64().filter(|n| (low..=high).contains(n)))
    }

    /// A string that parses as `T`; `what` names the type in the error. `""` is absent.
    pub fn parse<T: FromStr>(&self, key: &str, what: &str) -> Result<Option<T>, Error> {
        match self.text(key)? {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(parsed) => Ok(Some(parsed)),
                Err(_) => Err(invalid(self.path_of(key), format_args!("{text:?} is not {what}"))),
            },
        }
    }

    /// An object.
    pub fn object(&self, key: &str) -> Result<Option<Object<'a>>, Error> {
        self.get(key).map(|value| Object::of(value, self.path_of(key))).transpose()
    }

    /// A list of strings.
    pub fn strings(&self, key: &str) -> Result<Vec<&'a str>, Error> {
        self.list(key, |item, path| match item {
            Value::String(text) => Ok(text.as_str()),
            other => Err(expected("a string", &path, other)),
        })
    }

    /// Each item of a list, read by `item`, which gets the value and its path
    /// (`ranges[0]`). An absent key is an empty list.
    pub fn list<T>(
        &self,
        key: &str,
        mut item: impl FnMut(&'a Value, String) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let path = self.path_of(key);
        let Value::Array(items) = value else { return Err(expected("a list", &path, value)) };
        items.iter().enumerate().map(|(i, v)| item(v, format!("{path}[{i}]"))).collect()
    }

    fn typed<T>(
        &self,
        key: &str,
        what: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(expected(what, &self.path_of(key), value)),
        }
    }
}

fn expected(what: &str, path: &str, found: &Value) -> Error {
    invalid(path.to_owned(), format_args!("must be {what}, not {found}"))
}

fn invalid(path: String, problem: impl Display) -> Error {
    Error::new(Code::InvalidConfig, format!("{path}: {problem}"))
}
