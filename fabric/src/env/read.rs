//! Reads an environment under one table of variables.

use std::{collections::BTreeMap, fmt, io::ErrorKind, net::SocketAddr, str::FromStr, time::Duration};

use super::{
    log::log_filter,
    problem::{ConfigError, Invalid, Problem},
    size::parse_bytes,
    var::{LOG, LOG_FORMAT, Presence, Var},
};
use crate::task;

/// Prefix of the grid's own variables: an unknown one is a problem.
const PREFIX: &str = "TRELLIS_";

/// Most edits between an unknown name and the name that the message suggests.
const SUGGEST_EDITS_MAX: usize = 4;

/// Longest time of a variable in milliseconds: 30 days. The clock plus a time of millions of years has no number.
const MILLIS_MAX: u64 = 30 * 86_400_000;

/// The environment under one table of variables, and the problems found so far.
#[derive(Debug)]
pub struct Env {
    table: &'static [Var],
    set: BTreeMap<String, String>,
    problems: Vec<Problem>,
    /// Where an ECS task asks who it is.
    task: Option<String>,
}

impl Env {
    /// Reads this process's environment once. Unknown `TRELLIS_*` variables, and values that are not Unicode, are problems.
    pub fn from_process(table: &'static [Var]) -> Self {
        let mut broken = Vec::new();
        let mut set = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            match value.into_string() {
                Ok(value) => set.push((name.to_owned(), value)),
                Err(value) => broken.push(Problem {
                    name: name.to_owned(),
                    value: Some(value.to_string_lossy().into_owned()),
                    expected: "is not valid UTF-8".to_owned(),
                }),
            }
        }
        let mut env = Self::from_pairs(table, set);
        env.problems.extend(broken);
        env.task = std::env::var(task::METADATA).ok().filter(|base| !base.is_empty());
        env
    }

    /// With the metadata endpoint of an ECS task, for tests.
    #[must_use]
    pub fn in_task(self, metadata: impl Into<String>) -> Self {
        Self { task: Some(metadata.into()), ..self }
    }

    /// An environment of given pairs, for tests and for embedding. A later pair replaces an earlier one.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        table: &'static [Var],
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let set: BTreeMap<String, String> = pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        let problems = set
            .iter()
            .filter(|(name, _)| {
                name.starts_with(PREFIX) && !table.iter().any(|var| var.name == name.as_str())
            })
            .map(|(name, value)| Problem {
                name: name.clone(),
                value: Some(value.clone()),
                expected: match nearest(name, table) {
                    Some(known) => format!("is unknown here; did you mean {known}?"),
                    None => "is unknown here; --help lists what is known".to_owned(),
                },
            })
            .collect();
        Self { table, set, problems, task: None }
    }

    /// The value: the one that is set, or the default, or `None`. An empty value counts as unset, because `VAR=` means that in a compose
    /// file and in a task definition.
    fn raw(&self, var: &Var) -> Option<String> {
        debug_assert!(self.table.contains(var), "{} is not in the binary's table", var.name);
        match (self.set.get(var.name), var.presence) {
            (Some(value), _) if !value.is_empty() => Some(value.clone()),
            (_, Presence::Default(default)) => Some(default.to_owned()),
            _ => None,
        }
    }

    /// Whether the variable is set, and not empty.
    pub fn is_set(&self, var: &Var) -> bool {
        self.set.get(var.name).is_some_and(|value| !value.is_empty())
    }

    /// Any string. The variable must be set unless it has a default.
    pub fn string(&mut self, var: &Var) -> Result<String, Invalid> {
        self.with(var, |value| Ok(value.to_owned()))
    }

    /// Any string, or `None` if the variable is not set.
    pub fn optional(&mut self, var: &Var) -> Option<String> {
        self.raw(var)
    }

    /// Any type that parses from a string and says why it does not.
    pub fn parse<T>(&mut self, var: &Var) -> Result<T, Invalid>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.with(var, |value| value.parse().map_err(|error: T::Err| error.to_string()))
    }

    /// One of the given words.
    pub fn one_of<T: Copy>(&mut self, var: &Var, words: &[(&str, T)]) -> Result<T, Invalid> {
        self.with(var, |value| {
            words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                format!("expected one of: {}", known.join(", "))
            })
        })
    }

    /// A whole number of milliseconds, at most 30 days.
    pub fn millis(&mut self, var: &Var) -> Result<Duration, Invalid> {
        self.with(var, |value| {
            value
                .parse()
                .ok()
                .filter(|ms| *ms <= MILLIS_MAX)
                .map(Duration::from_millis)
                .ok_or_else(|| format!("expected a whole number of milliseconds, at most {MILLIS_MAX}"))
        })
    }

    /// A number of bytes, at least `min`: `1048576`, `512MiB`, `4 GiB`, `10GB` (see [`parse_bytes`]).
    pub fn bytes_size(&mut self, var: &Var, min: u64) -> Result<u64, Invalid> {
        self.with(var, |value| match parse_bytes(value) {
            None => Err("expected a size such as 512MiB or 4GiB".to_owned()),
            Some(bytes) if bytes < min => Err(format!("expected at least {min} bytes")),
            Some(bytes) => Ok(bytes),
        })
    }

    /// Any value, with a check of the caller's. If `parse` fails, it returns what would have been right.
    pub fn with<T>(
        &mut self,
        var: &Var,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Invalid> {
        let value = self.raw(var);
        let result = match &value {
            Some(value) => parse(value),
            None => Err(format!("must be set: {}", var.meaning)),
        };
        result.map_err(|expected| {
            self.problems.push(Problem { name: var.name.to_owned(), value, expected });
            Invalid { name: var.name }
        })
    }

    /// Records a problem that shows only from several variables together.
    pub fn refuse(&mut self, var: &Var, expected: impl Into<String>) -> Invalid {
        self.problems.push(Problem {
            name: var.name.to_owned(),
            value: self.raw(var),
            expected: expected.into(),
        });
        Invalid { name: var.name }
    }

    /// A name of a process or unit: `[a-z0-9][a-z0-9_.-]{0,62}`.
    pub fn name(&mut self, var: &Var) -> Result<String, Invalid> {
        self.with(var, plain_name)
    }

    /// Whether [`Env::own_name`] knows a name.
    pub fn has_own_name(&self, var: &Var) -> bool {
        self.is_set(var) || self.task.is_some()
    }

    /// The name of this process in the grid: that of the variable. If it is not set, an ECS task has the name of its service without the
    /// grid's, so that all tasks of a kind share one task definition.
    pub fn own_name(&mut self, var: &Var) -> Result<String, Invalid> {
        match self.task.clone() {
            Some(base) if !self.is_set(var) => match task::name(&base).and_then(|name| plain_name(&name)) {
                Ok(name) => Ok(name),
                Err(why) => Err(self.refuse(var, format!("is not set, and the ECS task has no name: {why}"))),
            },
            _ => self.name(var),
        }
    }

    /// The name of the ECS service whose task this process is.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn service(&self) -> Result<String, String> {
        match &self.task {
            Some(base) => task::service(base)
                .map_err(|why| format!("the metadata endpoint of ECS does not tell the service: {why}")),
            None => Err(format!("this is no task of ECS: {} is not set", task::METADATA)),
        }
    }

    /// Names of processes, with commas. Each is named once.
    pub fn names(&mut self, var: &Var) -> Result<Vec<String>, Invalid> {
        self.with(var, |value| {
            let names: Vec<String> =
                value.split(',').map(|name| plain_name(name.trim())).collect::<Result<_, _>>()?;
            let mut sorted: Vec<&String> = names.iter().collect();
            sorted.sort_unstable();
            match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                Some(twice) => Err(format!("{} is named twice", twice[0])),
                None => Ok(names),
            }
        })
    }

    /// An address that this machine can listen on. A port that is in use now is accepted: the process that has it may be the one
    /// that this process replaces.
    pub fn listen(&mut self, var: &Var) -> Result<SocketAddr, Invalid> {
        self.with(var, |value| {
            let address: SocketAddr =
                value.parse().map_err(|_| "expected ADDRESS:PORT, such as 0.0.0.0:7400".to_owned())?;
            match std::net::TcpListener::bind(address) {
                Err(error) if error.kind() != ErrorKind::AddrInUse => {
                    Err(format!("this process cannot listen on it: {error}"))
                }
                Ok(_) | Err(_) => Ok(address),
            }
        })
    }

    /// Ends the reading. Checks the variables of the log, if the table has them.
    ///
    /// # Errors
    /// All problems, at once.
    pub fn finish(mut self) -> Result<(), ConfigError> {
        if self.table.contains(&LOG) {
            let _ = self.with(&LOG, |filter| {
                log_filter(filter).map(drop).map_err(|error| format!("is no log filter: {error}"))
            });
        }
        if self.table.contains(&LOG_FORMAT) {
            let _ = self.one_of(&LOG_FORMAT, &[("text", ()), ("json", ())]);
        }
        if self.problems.is_empty() { Ok(()) } else { Err(ConfigError { problems: self.problems }) }
    }
}

fn plain_name(value: &str) -> Result<String, String> {
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = (1..=63).contains(&value.len()) && value.bytes().next().is_some_and(lower);
    if fits && value.bytes().all(|b| lower(b) || b"_.-".contains(&b)) {
        Ok(value.to_owned())
    } else {
        Err("expected a name of 1 to 63 of a-z, 0-9, _ . -, beginning with a letter or digit".to_owned())
    }
}

fn nearest(name: &str, table: &[Var]) -> Option<&'static str> {
    table
        .iter()
        .map(|var| (strsim::osa_distance(name, var.name), var.name))
        .min()
        .filter(|(distance, _)| *distance <= SUGGEST_EDITS_MAX)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: Var = Var::required("TRELLIS_N", "a number");
    const WAIT: Var = Var::or("TRELLIS_WAIT_MS", "10", "a time");
    const NOTE: Var = Var::optional("TRELLIS_NOTE", "a note");
    const SIZE: Var = Var::or("TRELLIS_SIZE", "1MiB", "a size");
    const TABLE: &[Var] = &[N, WAIT, NOTE, SIZE];

    #[test]
    fn every_problem_is_told_at_once_with_name_value_and_what_is_expected() {
        let mut env =
            Env::from_pairs(TABLE, [("TRELLIS_WAIT_MS", "soon"), ("TRELLIS_SIZ", "2MiB"), ("HOME", "/")]);
        assert!(env.parse::<u32>(&N).is_err());
        assert!(env.millis(&WAIT).is_err());
        let told = env.finish().unwrap_err().to_string();
        assert_eq!(
            told,
            "TRELLIS_SIZ=\"2MiB\": is unknown here; did you mean TRELLIS_SIZE?\n\
             TRELLIS_N: must be set: a number\n\
             TRELLIS_WAIT_MS=\"soon\": expected a whole number of milliseconds, at most 2592000000"
        );
    }

    #[test]
    fn an_empty_value_is_an_unset_one() {
        let mut env =
            Env::from_pairs(TABLE, [("TRELLIS_NOTE", ""), ("TRELLIS_WAIT_MS", ""), ("TRELLIS_N", "3")]);
        assert_eq!(env.optional(&NOTE), None);
        assert_eq!(env.millis(&WAIT), Ok(Duration::from_millis(10)));
        assert_eq!(env.parse::<u32>(&N), Ok(3));
        assert_eq!(env.finish(), Ok(()));
    }

    #[test]
    fn a_far_name_gets_no_suggestion() {
        let env = Env::from_pairs(TABLE, [("TRELLIS_COMPLETELY_DIFFERENT", "1")]);
        let problems = env.finish().unwrap_err();
        assert!(problems.to_string().ends_with("--help lists what is known"), "{problems}");
    }

    #[test]
    fn the_log_is_checked_with_the_rest() {
        const TABLE: &[Var] = &[LOG, LOG_FORMAT];
        assert_eq!(Env::from_pairs(TABLE, [("TRELLIS_LOG", "warn,trellis_head=debug")]).finish(), Ok(()));
        let env = Env::from_pairs(TABLE, [("TRELLIS_LOG", "head=loud"), ("TRELLIS_LOG_FORMAT", "xml")]);
        assert_eq!(env.finish().unwrap_err().problems().len(), 2);
    }

    #[test]
    fn names_are_plain() {
        let name = |value: &str| Env::from_pairs(TABLE, [("TRELLIS_NOTE", value)]).name(&NOTE);
        for good in ["a", "head-0", "0.peony_x-1", &"x".repeat(63)] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        for bad in ["", "Head", "-a", ".a", "a b", "kopf-\u{e4}", &"x".repeat(64)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_task_that_is_told_no_name_has_that_of_its_service() {
        let in_task = |pairs: &[(&'static str, &'static str)], service: &str| {
            Env::from_pairs(TABLE, pairs.iter().copied()).in_task(task::tests::task_of(service))
        };
        assert_eq!(in_task(&[], "trellis-head-17").own_name(&NOTE).as_deref(), Ok("head-17"));
        assert_eq!(
            in_task(&[("TRELLIS_NOTE", "")], "trellis-head-17").own_name(&NOTE).as_deref(),
            Ok("head-17")
        );
        assert_eq!(
            in_task(&[("TRELLIS_NOTE", "me")], "trellis-head-17").own_name(&NOTE).as_deref(),
            Ok("me")
        );
        let mut nameless = in_task(&[], "trellis-Head");
        assert!(nameless.own_name(&NOTE).is_err() && nameless.has_own_name(&NOTE));
        assert!(nameless.finish().unwrap_err().to_string().contains("the ECS task has no name"));
        let mut elsewhere = Env::from_pairs(TABLE, [("TRELLIS_WAIT_MS", "1")]);
        assert!(!elsewhere.has_own_name(&NOTE) && elsewhere.own_name(&NOTE).is_err());
    }

    #[test]
    fn words_are_listed_when_none_matches() {
        let mut env = Env::from_pairs(TABLE, [("TRELLIS_NOTE", "xml")]);
        assert!(env.one_of(&NOTE, &[("text", 1), ("json", 2)]).is_err());
        assert!(env.finish().unwrap_err().to_string().contains("expected one of: text, json"));
    }

    #[test]
    fn an_address_is_one_of_this_machine_and_its_port_may_be_taken() {
        let listen = |value: &str| Env::from_pairs(TABLE, [("TRELLIS_NOTE", value)]).listen(&NOTE);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap();
        for good in ["127.0.0.1:0", "0.0.0.0:0", &taken.to_string()] {
            assert_eq!(listen(good), Ok(good.parse().unwrap()));
        }
        // 192.0.2.0/24 is for examples: no machine has it
        for bad in ["7400", "localhost:7400", "127.0.0.1", "127.0.0.1:70000", "192.0.2.1:7400"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_names_each_process_once() {
        let names = |value: &str| Env::from_pairs(TABLE, [("TRELLIS_NOTE", value)]).names(&NOTE);
        assert_eq!(names("a, b"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        for bad in ["a,a", "a,", "a,,b", "a,B", "a, b,a"] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_that_the_clock_cannot_hold_is_refused() {
        let wait = |value: &str| Env::from_pairs(TABLE, [("TRELLIS_WAIT_MS", value)]).millis(&WAIT);
        assert!(wait("2592000000").is_ok());
        assert!(wait("2592000001").is_err() && wait("18446744073709551615").is_err());
    }
}
