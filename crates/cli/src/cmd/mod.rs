//! One module a command.

pub(crate) mod agent;
pub(crate) mod apply;
pub(crate) mod calibrate;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod emit;
pub(crate) mod explain;
pub(crate) mod fit;
pub(crate) mod gateway;
pub(crate) mod init;
pub(crate) mod key;
pub(crate) mod plan;
pub(crate) mod prove;
mod rehearse;
pub(crate) mod rollback;
pub(crate) mod schema;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod up;
