//! dlist values as JSON, for every place where the program prints some.
//!
//! What is no UTF-8 becomes `{"base64": "..."}`: nothing is lost.

use super::Value as Dlist;
use base64ct::{Base64, Encoding};
use serde_json::{Map, Value, json};

/// Bytes for JSON.
pub fn bytes_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": Base64::encode_string(bytes) }),
    }
}

/// A dlist value for JSON, without types: numbers stay text. Of equal keys the first counts.
pub fn dlist_json(value: &Dlist) -> Value {
    match value {
        Dlist::Nil => Value::Null,
        Dlist::Text(bytes) | Dlist::Flag(bytes) => bytes_json(bytes),
        Dlist::List(items) => items.iter().map(dlist_json).collect(),
        Dlist::Kv(items) => {
            let mut map = Map::new();
            for (key, value) in items {
                map.entry(String::from_utf8_lossy(key))
                    .or_insert_with(|| dlist_json(value));
            }
            map.into()
        }
    }
}

/// A dlist text that should be a number, as a number if it is one.
pub fn dlist_number(value: Option<&Dlist>) -> Value {
    let text = value.and_then(Dlist::as_str);
    match (text.and_then(|t| t.parse::<i64>().ok()), value) {
        (Some(n), _) => n.into(),
        (None, Some(value)) => match value.as_u64() {
            Some(n) => n.into(),
            None => dlist_json(value),
        },
        (None, None) => Value::Null,
    }
}

/// An ANNOTATIONS list as rows of entry, userid, value.
pub fn annotations_json(list: &[Dlist]) -> Value {
    let part = |a: &Dlist, key| a.get(key).map_or(Value::Null, dlist_json);
    list.iter()
        .map(|a| {
            json!({
                "entry": part(a, "ENTRY"),
                "userid": part(a, "USERID"),
                "value": part(a, "VALUE"),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_lose_nothing() {
        assert_eq!(bytes_json("\u{fc}".as_bytes()), json!("\u{fc}"));
        assert_eq!(bytes_json(b"\xff\0"), json!({"base64": "/wA="}));
        let v = Dlist::kv([
            ("A", Dlist::Nil),
            ("B", Dlist::List(vec![Dlist::num(1)])),
            ("A", Dlist::num(2)),
        ]);
        assert_eq!(dlist_json(&v), json!({"A": null, "B": ["1"]}));
        let n = |t: &str| dlist_number(Some(&Dlist::text(t)));
        assert_eq!(n("-1"), json!(-1));
        assert_eq!(n("18446744073709551615"), json!(u64::MAX));
        assert_eq!(n("x"), json!("x"));
    }
}
