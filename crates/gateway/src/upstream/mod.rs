//! The way to an engine and back, over HTTP/1.1, by hand: it is what the gateway spends its time on.
//!
//! Requests are written in one piece; what has arrived of an answer is passed on together, whatever chunks the engine
//! made of it; and what became of a request is known exactly, so that it can go to another instance.
//!
//! - [`pool`]: connections of one thread, kept and used again
//! - [`connection`]: one exchange on one connection
//! - [`gather`]: a moment of rest where pieces come in bursts
//! - [`head`]: heads of requests and answers, as bytes
//! - [`chunked`]: the chunked transfer coding, undone
//! - [`relay`]: an answer's body on its way to the client

pub(crate) mod chunked;
pub(crate) mod connection;
pub(crate) mod gather;
pub(crate) mod head;
pub(crate) mod pool;
pub(crate) mod relay;
