//! How long requests took, from the gateway that counted them to whoever judges by it, and which ones somebody looks at. No I/O, no clock
//! of its own.
//!
//! | module | takes | gives |
//! | --- | --- | --- |
//! | [`counts`] | microseconds | an HdrHistogram that holds only what is in it |
//! | [`filter`] | a text, facts of a request | whether somebody looks at it |
//! | [`flow`] | TCP connections | how many, how long until they were connected, what they carried |
//! | [`store`] | what workers counted, questions | a gateway's answers: counts since it began |
//! | [`window`] | answers of many gateways, time | what happened between two moments, and whom that leaves out |
//! | [`hop`] | what a gateway kept of a slow request | the parts of its time, and the places that have them |
//! | [`rows`] | what happened | requests, success and percentiles by service, cluster and version |
//!
//! A gateway counts from its start on and never forgets; who asks keeps what it was told and subtracts. So any number may ask, each over
//! a time of its own, an answer that is lost loses nothing, and a gateway that begins again is seen by its number (`incarnation`).

pub mod counts;
pub mod filter;
pub mod flow;
pub mod hop;
pub mod key;
pub mod rows;
pub mod store;
pub mod window;

pub use counts::{Counts, Tally};
pub use filter::Filter;
pub use flow::{Flow, FlowKey};
pub use hop::{Hop, Place};
pub use key::{Key, Outcome, Reporter};
pub use store::Store;
pub use window::{Snapshot, Window};
