//! Tags as the API takes them.

use serde::Deserialize;

use crate::fail::Fail;
use crate::kept::Tags;

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

/// Tags of one resource at most.
pub(crate) const MOST: usize = 50;

/// Tags as the API allows them.
pub(crate) fn checked(given: Vec<Tag>) -> Result<Tags, Fail> {
    if given.len() > MOST {
        return Err(Fail::invalid("Tags can have at most 50 items."));
    }
    let mut out = Tags::new();
    for tag in given {
        if tag.key.is_empty() || tag.key.chars().count() > 128 || tag.value.chars().count() > 256 {
            return Err(Fail::invalid("Invalid tag: a key has 1 to 128 characters, a value at most 256."));
        }
        if tag.key.to_lowercase().starts_with("aws:") {
            return Err(Fail::invalid("Tag keys that begin with aws: are reserved."));
        }
        let ok = |c: char| c.is_alphanumeric() || c.is_whitespace() || "_.:/=+-@".contains(c);
        if !tag.key.chars().all(ok) || !tag.value.chars().all(ok) {
            return Err(Fail::invalid("Tags contain invalid characters."));
        }
        if out.insert(tag.key, tag.value).is_some() {
            return Err(Fail::invalid("Duplicate tag keys found."));
        }
    }
    Ok(out)
}
