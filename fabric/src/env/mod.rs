//! Configuration from the environment: typed variables, one table per binary, all problems told at once.
//!
//! A binary lists its variables in one `const VARS: &[Var]`. `--help` prints this table. A getter panics in tests if its variable is
//! not in the table. A `TRELLIS_*` variable that is set but not in the table is a problem, and the message names the nearest
//! known variable: otherwise a misspelt limit would be ignored, and noticed only in production. Variables with other
//! prefixes (`OTEL_*`, `AWS_*`) belong to other programs and are ignored.
//!
//! A getter returns `Result<T, Invalid>`, where [`Invalid`] only says that the problem is recorded. Call all getters first, then
//! [`Env::finish`], then use the values.
//!
//! ```
//! use trellis_fabric::env::{Env, Var, ConfigError};
//!
//! const BUDGET: Var = Var::or("TRELLIS_CACHE_BYTES", "512MiB", "memory for cached chunks");
//! const NAME: Var = Var::required("TRELLIS_ID", "this node's name");
//! const VARS: &[Var] = &[NAME, BUDGET];
//!
//! struct Config { name: String, budget: u64 }
//!
//! fn config(mut env: Env) -> Result<Config, ConfigError> {
//!     let name = env.string(&NAME);
//!     let budget = env.bytes_size(&BUDGET, 1);
//!     env.finish()?;
//!     Ok(Config { name: name?, budget: budget? })
//! }
//!
//! let good = config(Env::from_pairs(VARS, [("TRELLIS_ID", "head-0")])).unwrap();
//! assert_eq!((good.name.as_str(), good.budget), ("head-0", 512 << 20));
//!
//! let bad = config(Env::from_pairs(VARS, [("TRELLIS_CACHE_BYTE", "1GiB")])).err().unwrap();
//! assert_eq!(bad.problems().len(), 2); // TRELLIS_ID is missing; TRELLIS_CACHE_BYTE is unknown
//! ```
//!
//! | file | subject |
//! | --- | --- |
//! | `var` | variables: name, default, meaning |
//! | `read` | [`Env`]: typed getters |
//! | `problem` | problems, told at once |
//! | `size` | sizes in bytes as people write them |
//! | `log` | the filter of the log on stderr |
//! | `command_line` | `--help`, `--check`, `--version` |

mod command_line;
mod log;
mod problem;
mod read;
mod size;
mod var;

pub use command_line::{Mode, Question, cli, resolve};
pub(crate) use log::{LOG_FILTER, log_filter};
pub use problem::{ConfigError, Invalid, Problem};
pub use read::Env;
pub use size::{format_bytes, parse_bytes};
pub use var::{DRAIN_MS, ID, LISTEN, LOG, LOG_FORMAT, Presence, Var};
