//! STS: keys that name their account.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fail::Fail;
use crate::time::{Ctx, iso, mix};

/// Seconds that keys of an assumed role may live, and those of a caller that does not say.
const LIFE: std::ops::RangeInclusive<u64> = 900..=43_200;
const LIFE_DEFAULT: u64 = 3600;

/// The account in an access key: `ASIA`, its 12 digits, 4 more.
pub(crate) fn account(key: &str) -> Option<&str> {
    let rest = key.strip_prefix("ASIA")?;
    (rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_digit())).then(|| &rest[..12])
}

/// Answers a call. `form` is the decoded body.
pub(crate) fn handle(
    ctx: &mut Ctx,
    account: &str,
    key: &str,
    op: &str,
    form: &BTreeMap<String, String>,
) -> Result<String, Fail> {
    let get = |name: &str| form.get(name).map(String::as_str);
    match op {
        "GetCallerIdentity" => Ok(format!(
            "<Arn>arn:aws:sts::{account}:assumed-role/fake/session</Arn><UserId>AROAFAKE:{key}</UserId><Account>{account}</Account>"
        )),
        "AssumeRole" => {
            let missing =
                |name: &str| Fail::new("ValidationError", 400, format!("{name} is missing or malformed"));
            let arn = get("RoleArn").unwrap_or_default();
            let session = get("RoleSessionName")
                .filter(|name| name.len() >= 2)
                .ok_or_else(|| missing("RoleSessionName"))?;
            let rest = arn.strip_prefix("arn:aws:iam::").ok_or_else(|| missing("RoleArn"))?;
            let (target, role) = rest.split_once(":role/").ok_or_else(|| missing("RoleArn"))?;
            if target.len() != 12 || !target.bytes().all(|byte| byte.is_ascii_digit()) || role.is_empty() {
                return Err(missing("RoleArn"));
            }
            let seconds = get("DurationSeconds")
                .map_or(Ok(LIFE_DEFAULT), str::parse)
                .map_err(|_| missing("DurationSeconds"))?;
            if !LIFE.contains(&seconds) {
                return Err(Fail::new(
                    "ValidationError",
                    400,
                    "DurationSeconds must be between 900 and 43200",
                ));
            }
            let serial = ctx.serial();
            let ends = ctx.now + Duration::from_secs(seconds);
            let until = iso(Duration::from_secs(ctx.set.epoch) + ends);
            let new = format!("ASIA{target}{:04}", serial % 10_000);
            ctx.keys.insert(new.clone(), ends);
            let name = role.rsplit('/').next().unwrap_or(role);
            ctx.changed = true;
            Ok(format!(
                "<AssumedRoleUser><AssumedRoleId>AROA{:016X}:{session}</AssumedRoleId>\
                 <Arn>arn:aws:sts::{target}:assumed-role/{name}/{session}</Arn></AssumedRoleUser>\
                 <Credentials><AccessKeyId>{new}</AccessKeyId><SecretAccessKey>{:032x}</SecretAccessKey>\
                 <SessionToken>{:032x}</SessionToken><Expiration>{until}</Expiration></Credentials>",
                mix(serial),
                mix(serial ^ 1),
                mix(serial ^ 2),
            ))
        }
        _ => Err(Fail::not_faked(format!("STS {op}"))),
    }
}

/// `a=b&c=d%20e` as a map.
pub(crate) fn form(body: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_account() {
        assert_eq!(account("ASIA2222222222220007"), Some("222222222222"));
        assert_eq!(account("AKIAIOSFODNN7EXAMPLE"), None);
    }
}
