//! Lists come in pages.

use crate::fail::Fail;

/// A page of `limit` from what comes after `token`. The token is the last key of the page before.
pub(crate) fn page<K, V>(
    items: impl Iterator<Item = (K, V)>,
    limit: usize,
    token: impl Fn(&K) -> String,
) -> (Vec<V>, Option<String>) {
    let mut out = Vec::new();
    let mut last = None;
    for (key, value) in items {
        if out.len() == limit {
            return (out, last);
        }
        last = Some(token(&key));
        out.push(value);
    }
    (out, None)
}

/// The size of a page, between 1 and `most`.
pub(crate) fn limit(asked: Option<i64>, default: usize, most: usize) -> Result<usize, Fail> {
    match asked {
        None => Ok(default),
        Some(asked) if (1..=most as i64).contains(&asked) => Ok(asked as usize),
        Some(_) => Err(Fail::invalid(format!("maxResults must be between 1 and {most}."))),
    }
}
