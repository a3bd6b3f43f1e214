//! Publishes as commits. A group of publishes becomes one commit; each of them is judged before.
//!
//! | file | subject |
//! | --- | --- |
//! | `group` | a group of publishes as one commit |
//! | `judge` | whether a publish may go into the commit |
//! | `accepted` | a publish that may |
//! | `room` | whether the rows of a publish can be read back in one message |

mod accepted;
mod group;
mod judge;
mod room;
