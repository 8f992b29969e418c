//! One dlist value as a tree.

/// A value. Numbers, dates, hex and GUIDs are all `Text`: the syntax carries no types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `NIL`, which is neither `""` nor the text `NIL`.
    Nil,
    /// An atom, a quoted string or a literal; which of them is the printer's choice.
    Text(Vec<u8>),
    /// A system flag, with its backslash: `\Seen`. Printed raw.
    Flag(Vec<u8>),
    /// `( ... )`
    List(Vec<Value>),
    /// `%( KEY value ... )`, in order of arrival; of equal keys the first counts.
    Kv(Vec<(Vec<u8>, Value)>),
}

impl Value {
    /// Text from anything that is bytes.
    pub fn text(bytes: impl AsRef<[u8]>) -> Value {
        Value::Text(bytes.as_ref().to_vec())
    }

    /// A decimal number.
    pub fn num(n: impl std::fmt::Display) -> Value {
        Value::Text(n.to_string().into_bytes())
    }

    /// A key-value list.
    pub fn kv<K: AsRef<[u8]>>(items: impl IntoIterator<Item = (K, Value)>) -> Value {
        Value::Kv(
            items
                .into_iter()
                .map(|(k, v)| (k.as_ref().to_vec(), v))
                .collect(),
        )
    }

    /// The bytes of a text or flag.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Text(b) | Value::Flag(b) => Some(b),
            _ => None,
        }
    }

    /// The text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        self.as_bytes().and_then(|b| std::str::from_utf8(b).ok())
    }

    /// The number, if every byte is a digit and it fits into 64 bits.
    pub fn as_u64(&self) -> Option<u64> {
        let text = self.as_bytes()?;
        if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
            return None;
        }
        std::str::from_utf8(text).ok()?.parse().ok()
    }

    /// The elements of a list.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The items of a key-value list.
    pub fn as_kv(&self) -> Option<&[(Vec<u8>, Value)]> {
        match self {
            Value::Kv(items) => Some(items),
            _ => None,
        }
    }

    /// The first value under `key` of a key-value list.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_kv()?
            .iter()
            .find(|(k, _)| k == key.as_bytes())
            .map(|(_, v)| v)
    }
}
