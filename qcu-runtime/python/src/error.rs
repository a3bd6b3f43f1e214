//! The grid's errors as Python exceptions. The classes, and the table from codes to classes, are in `trellis/errors.py`; this file only
//! passes the parts of an error.

use pyo3::{prelude::*, sync::PyOnceLock, types::PyString};
use trellis_proto::{Code, Error};

/// The result of a call from Python that can fail before Python is involved.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// The code's name in `error.proto`, without the prefix: `UNKNOWN_FIELD`.
pub(crate) fn name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// The exception for an error of the grid.
pub(crate) fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    static FROM_CODE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let (dataset, symbol, shard) = error.place();
    let made = FROM_CODE.import(py, "trellis.errors", "_from_code").and_then(|from_code| {
        from_code.call1((
            name(error.code()),
            error.message(),
            error.hint_text(),
            dataset,
            symbol,
            shard,
            error.retryable(),
        ))
    });
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(failure) => failure,
    }
}

/// An exception of `trellis.errors` that no grid sends.
pub(crate) fn local(py: Python<'_>, class: &str, message: &str, hint: &str) -> PyErr {
    let made = py.import("trellis.errors").and_then(|module| module.getattr(class)).and_then(|class| {
        let exception = class.call1((message,))?;
        exception.setattr("hint", PyString::new(py, hint))?;
        Ok(exception)
    });
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(failure) => failure,
    }
}

/// Turns results of the grid into results for Python, so that `?` works.
pub(crate) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| to_py(py, &error))
    }
}

/// Every code, with its exit code and whether it is retryable: the test of the table in `errors.py` reads it.
#[pyfunction]
pub(crate) fn error_codes() -> Vec<(String, u8, bool)> {
    Code::ALL.iter().map(|&code| (name(code), code.exit_code(), code.retryable())).collect()
}
