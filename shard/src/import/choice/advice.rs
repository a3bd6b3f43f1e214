//! Hints for refused columns and rows: the options that read them, as they can be typed. Pure.

use trellis_proto::{FieldName, FieldType};

use super::{
    names::{shell, snake_case},
    options::{Checked, mark_name},
    spec::{ImportSpec, Repeats},
};
use crate::import::{
    told::{ImportError, Problem, REPEATED},
    values::{
        BEYOND, Count, Dates, Example, Form, Forms, ISO, Marks, NOT_HELD, OUTSIDE, Seen, Signs, Stamps,
        Trouble, Verdict, Wanted, told as told_when,
    },
};

/// Makes hints from the survey of all files and the caller's options.
pub(crate) struct Advice<'a> {
    pub(crate) spec: &'a ImportSpec,
    pub(crate) checked: &'a Checked,
    pub(crate) seen: &'a [(FieldName, Seen)],
    pub(crate) stamps: &'a Stamps,
    /// Knowledge times that are not ISO 8601.
    pub(crate) known: &'a Dates,
}

/// Alternatives: each has one option or several, and the value that an example then has.
type Choices = Vec<(String, String)>;

impl Advice<'_> {
    /// The error for a column that is refused as a whole.
    pub(crate) fn refusal(&self, name: &FieldName, seen: &Seen, trouble: Trouble) -> ImportError {
        // A column that is kept as text does not change the others.
        let alike = |seen: &Seen| seen.verdict() == Verdict::Refused(trouble);
        let named: Vec<String> = (self.seen.iter())
            .filter(|(other, seen)| other == name || (alike(seen) && !self.checked.types.contains_key(other)))
            .map(|(name, _)| format!("{name}=string"))
            .collect();
        let text = format!("--types {}", named.join(","));
        let cell = |example: Option<&Example>| {
            example.map(|e| format!("{:?} on line {}", e.text, e.line)).unwrap_or_default()
        };
        let (message, hint) = match trouble {
            Trouble::Notation => (
                format!(
                    "the field {name} is written in another notation of numbers: {}",
                    cell(seen.other_example.as_ref())
                ),
                self.notation(seen, &text),
            ),
            Trouble::Dates => (
                format!(
                    "the field {name} has dates that are not written as ISO 8601: {}",
                    cell(seen.dates.example())
                ),
                format!("{}; or keep it as text: {text}", self.forms(&seen.dates)),
            ),
            Trouble::Words => {
                let number =
                    if seen.is_numeric() { format!(" --types {name}=float64") } else { String::new() };
                let words = seen.missing_words();
                (
                    format!(
                        "the field {name} has words that usually stand for a missing value: {}",
                        quoted(&words)
                    ),
                    format!("if they do, say {}{number}; or keep it as text: {text}", nulls(&words)),
                )
            }
            Trouble::Padded | Trouble::Coded | Trouble::Signed => {
                return self.refusal_of_codes(name, seen, trouble, None);
            }
            Trouble::Measures => (
                format!(
                    "the field {name} has numbers with something beside them: {}",
                    cell(seen.odd_text.as_ref())
                ),
                format!("no option reads them; keep it as text: {text}"),
            ),
            Trouble::Hex => (
                format!("the field {name} has integers in base 16: {}", cell(seen.odd_text.as_ref())),
                format!("no option reads them; keep it as text: {text}"),
            ),
        };
        ImportError::options(message, hint)
    }

    /// The error for a column whose numbers may be codes. `have` is the type of a field that exists: it stays a number.
    pub(crate) fn refusal_of_codes(
        &self,
        name: &FieldName,
        seen: &Seen,
        trouble: Trouble,
        have: Option<FieldType>,
    ) -> ImportError {
        let refused = |seen: &Seen| seen.verdict() == Verdict::Refused(trouble);
        let alike: Vec<(&FieldName, &Seen)> = (self.seen.iter())
            .map(|(other, seen)| (other, seen))
            .filter(|(other, seen)| {
                let open = have.is_none() && refused(seen) && !self.checked.types.contains_key(*other);
                *other == name || open
            })
            .collect();
        let typed = |kind: &dyn Fn(&Seen) -> FieldType| {
            let each: Vec<String> =
                alike.iter().map(|(name, seen)| format!("{name}={}", kind(seen).name())).collect();
            format!("--types {}", each.join(","))
        };
        let why = match trouble {
            Trouble::Padded => "leading zeros",
            Trouble::Signed => "a plus sign before every number",
            _ => "cells that are digits and an E",
        };
        let cell = seen.code(trouble).map(|e| format!("{:?} on line {}", e.text, e.line)).unwrap_or_default();
        let hint = match have {
            Some(have) => format!(
                "if they are numbers, say {}; if they are codes, import into a new dataset, where they are text",
                typed(&|_| seen.widen(have))
            ),
            None => format!(
                "if they are numbers, say {}; if they are codes, say {}",
                typed(&Seen::number_type),
                typed(&|_| FieldType::String)
            ),
        };
        ImportError::options(
            format!(
                "the field {name} has {why}, as codes have: {cell}; as numbers they would not be the same"
            ),
            hint,
        )
    }

    /// The options that read a column's numbers. All columns are considered together, because the marks are the same for all.
    fn notation(&self, seen: &Seen, text: &str) -> String {
        let numeric = || self.seen.iter().map(|(_, seen)| seen).filter(|seen| seen.is_numeric());
        let forms = numeric().fold(Forms::ALL, |all, seen| all.both(seen.forms));
        let signs = numeric().fold(self.checked.reading.notation.signs, |all, seen| all.and(seen.signs));
        let (forms, apart) = if forms.is_empty() { (seen.forms, true) } else { (forms, false) };
        let mut words: Vec<String> = Vec::new();
        for word in numeric().flat_map(Seen::missing_words) {
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let example = seen.other_example.as_ref().map_or("", |e| e.text.as_str());
        let null = if words.is_empty() { String::new() } else { format!(" {}", nulls(&words)) };
        let choices: Choices = forms
            .choices(example)
            .into_iter()
            .map(|(marks, value)| (marks_option(marks, signs) + &null, format!("{example} is {value}")))
            .filter(|(option, _)| !option.is_empty())
            .collect();
        if choices.is_empty() {
            return format!(
                "its cells are written in several notations: mend them, or keep it as text: {text}"
            );
        }
        let apart = if apart {
            "; other columns of the file are written with other marks: keep those as text with --types, or leave \
             them out with --fields"
        } else {
            ""
        };
        format!("say {}{apart}; or keep it as text: {text}", told(&choices))
    }

    /// The options that read dates in other forms than ISO 8601, and still the event times.
    pub(crate) fn forms(&self, dates: &Dates) -> String {
        if self.spec.ts_unit.is_some() {
            return "--ts-unit reads numbers: import the column as text".to_owned();
        }
        let mut base: Vec<String> = self.spec.ts_format.clone();
        let groups = self.stamps.dates.options().into_iter().chain(dates.options());
        let mut ambiguous: Choices = Vec::new();
        for group in groups {
            match group.as_slice() {
                [(form, _)] if !base.contains(form) => base.push(form.clone()),
                [_] | [] => {}
                several if ambiguous.is_empty() => ambiguous = several.to_vec(),
                _ => {}
            }
        }
        if self.stamps.has_iso() && !base.iter().any(|form| form == ISO) {
            base.push(ISO.to_owned());
        }
        if self.stamps.has_days() && !base.iter().any(|form| form == "%Y%m%d") {
            base.push("%Y%m%d".to_owned());
        }
        let typed = |form: &str| format!("--ts-format {}", shell(form));
        let other = |form: &String| form.replace("%d", "%_").replace("%m", "%d").replace("%_", "%m");
        if base.iter().any(|form| base.contains(&other(form)) && other(form) != *form) {
            return "some dates have the day first and some the month, and others may be either: mend them, or import \
                    the kinds apart"
                .to_owned();
        }
        let fixed = base.iter().map(|form| typed(form)).collect::<Vec<_>>().join(" ");
        let example = self.stamps.dates.example().or(dates.example()).map_or("", |e| e.text.as_str());
        if ambiguous.is_empty() {
            // Other cells decide how this one is read.
            let decided = base.iter().find_map(|form| {
                let either = other(form) != *form && reading(&other(form), example).is_some();
                reading(form, example).filter(|_| either)
            });
            let decided = decided.map(|when| format!(" ({example} is {when})")).unwrap_or_default();
            return format!("say {fixed}{decided}");
        }
        let with = |form: &str| [typed(form), fixed.clone()].join(" ").trim_end().to_owned();
        let choices: Choices =
            ambiguous.iter().map(|(form, told)| (with(form), format!("{example} is {told}"))).collect();
        format!("say {}", told(&choices))
    }

    /// The hint for bad rows. `fields` are those of the dataset; `new` says which of them this import makes.
    pub(crate) fn rows(
        &self,
        fields: &[Wanted],
        new: &dyn Fn(&FieldName) -> bool,
        problems: &[Problem],
    ) -> String {
        let mut say: Vec<String> = Vec::new();
        self.stamps_hint(&mut say);
        if self.known.cells > 0 && self.spec.ts_unit.is_none() {
            say.push(self.forms(self.known));
        }
        let mut words: Vec<String> = Vec::new();
        let mut notation = None;
        for (name, seen) in self.seen {
            let Some(field) = fields.iter().find(|f| f.spec.name == *name) else { continue };
            let kind = field.spec.data_type;
            let text = |say: &mut Vec<String>| {
                if new(name) {
                    say.push(format!("if {name} is text, say --types {name}=string"));
                }
            };
            let number =
                matches!(kind, FieldType::Float64 | FieldType::Float32 | FieldType::Int64 | FieldType::Int32);
            if kind != FieldType::String {
                words.extend(seen.missing_words());
            }
            if number && seen.other > 0 && notation.is_none() {
                notation = Some(self.notation(seen, &format!("--types {name}=string")));
            }
            if number && (seen.texts > 0 || seen.has_times()) {
                text(&mut say);
            }
            if number && seen.has_times() && new(name) {
                say.push(format!("if {name} is a time, say --types {name}=timestamp"));
            }
            if seen.has_numbers() && (kind == FieldType::Bool || (number && seen.has_bools() && new(name))) {
                say.push(format!("if 1 is true and 0 is false, say --types {name}=bool"));
            }
            if let (FieldType::Float64, Some(example), false) = (kind, &seen.beyond_float64, field.nearest) {
                say.push(format!(
                    "{name} has numbers with more digits than float64 holds ({}): to take the nearest, say --types \
                     {name}=float64{}",
                    example.text,
                    if new(name) { format!("; to keep the digits, --types {name}=string") } else { String::new() }
                ));
            }
            if kind == FieldType::Timestamp && seen.dates.cells > 0 {
                say.push(self.forms(&seen.dates));
            }
            let misfit = kind != FieldType::String && seen.texts > 0 && seen.missing_words().is_empty();
            if !new(name) && (misfit || (number && seen.has_times())) {
                say.push(format!(
                    "{name} is {} in the dataset: import other values into a new dataset{}",
                    kind.name(),
                    self.as_another_field(name)
                ));
            }
            let beyond = |p: &&Problem| {
                p.column.as_deref().is_some_and(|column| snake_case(column) == name.as_str())
                    && (p.reason.contains(NOT_HELD) || p.reason.contains(BEYOND))
            };
            if let Some(p) =
                problems.iter().find(beyond).filter(|_| seen.beyond_float64.is_none() && new(name))
            {
                say.push(format!(
                    "to take the nearest float of {} and the others, say --types {name}=float64",
                    p.value
                ));
            }
        }
        words.sort_unstable();
        words.dedup();
        if !words.is_empty() {
            say.push(format!("if {} means a missing value, say {}", quoted(&words), nulls(&words)));
        }
        say.extend(notation);
        if self.spec.repeats == Repeats::Refuse && problems.iter().any(|p| p.reason.contains(REPEATED)) {
            say.push(
                "of rows of one time the last wins with --repeats last; with --repeats spread each is a row of its own"
                    .to_owned(),
            );
        }
        let mut beyond: Vec<String> = problems
            .iter()
            .filter(|p| p.reason == OUTSIDE && p.column.as_deref().is_some_and(|c| self.is_field(c)))
            .map(|p| p.value.clone())
            .collect();
        beyond.dedup();
        if !beyond.is_empty() {
            say.push(format!("if {} stands for no time, say {}", quoted(&beyond), nulls(&beyond)));
        }
        say.push("mend the rows, or keep the good ones with --quarantine FILE".to_owned());
        say.join("; ")
    }

    /// `, or into another field: --fields ...`, where the fields are named by their columns.
    fn as_another_field(&self, name: &FieldName) -> String {
        if !self.spec.fields.is_empty() || self.spec.wide.is_some() {
            return String::new();
        }
        let each: Vec<String> = (self.seen.iter())
            .map(|(other, _)| if other == name { format!("{name}_2={name}") } else { other.to_string() })
            .collect();
        format!(", or into another field: --fields {}", each.join(","))
    }

    fn is_field(&self, column: &str) -> bool {
        self.seen.iter().any(|(name, _)| snake_case(column) == name.as_str())
    }

    fn stamps_hint(&self, say: &mut Vec<String>) {
        if self.spec.ts_unit.is_some() {
            if self.stamps.has_days() {
                say.push("if the times are dates such as 20160810, leave out --ts-unit".to_owned());
            }
            return;
        }
        let options: Vec<String> = {
            let counts: Vec<Count> = self.stamps.counts().collect();
            let mut options: Vec<String> = counts.iter().filter_map(|count| count.option()).collect();
            options.dedup();
            options
        };
        if let [option] = options.as_slice()
            && self.spec.ts_format.is_empty()
        {
            say.push(format!("say {option}"));
        } else if options.len() > 1 {
            say.push(format!("the times are of several kinds ({}): import them apart", options.join(", ")));
        }
        let odd = self.stamps.dates.cells > 0;
        if odd || (!self.spec.ts_format.is_empty() && (self.stamps.has_iso() || self.stamps.has_days())) {
            say.push(self.forms(&Dates::default()));
        }
    }
}

/// A date as a form of `--ts-format` reads it.
fn reading(form: &str, text: &str) -> Option<String> {
    Form::parse(form).ok()?.read(text)?.ok().map(told_when)
}

/// `--decimal , --thousands . --notation currency`, without the defaults.
fn marks_option(marks: Marks, signs: Signs) -> String {
    let mut options = Vec::new();
    if marks.decimal != '.' {
        options.push(format!("--decimal {}", mark_name(marks.decimal)));
    }
    if let Some(thousands) = marks.thousands {
        options.push(format!("--thousands {}", mark_name(thousands)));
    }
    if signs.any() {
        options.push(format!("--notation {}", signs.names()));
    }
    options.join(" ")
}

fn told(choices: &Choices) -> String {
    match choices.as_slice() {
        [(option, _)] => option.clone(),
        several => {
            let each: Vec<String> =
                several.iter().map(|(option, example)| format!("{option} ({example})")).collect();
            each.join(" or ")
        }
    }
}

fn nulls(words: &[String]) -> String {
    words.iter().map(|word| null(word)).collect::<Vec<_>>().join(" ")
}

/// Quotes a word for the option; one that begins with a dash would be taken for an option.
fn null(word: &str) -> String {
    if word.starts_with('-') { format!("--null={}", shell(word)) } else { format!("--null {}", shell(word)) }
}

fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}
