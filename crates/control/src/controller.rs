//! The one actor on a state folder: on this machine, or on a Ray cluster, as the plan in force says.

use std::fs::File;
use std::io;
use std::sync::Arc;

use berth_cluster::local::{StateDir, lock};
use berth_cluster::ray::RayError;
use berth_core::inventory::InstanceId;
use berth_core::plan::Plan;
use berth_core::spec::GatewaySpec;
use tokio::sync::mpsc;

use crate::book::Book;
use crate::clock::now_ms;
use crate::event::Event;
use crate::externals::{ExternalStatus, Externals};
use crate::journal::{Journal, JournalError};
use crate::local::LocalController;
use crate::ray::RayController;
use crate::status::InstanceStatus;
use crate::stops::Patience;

/// Why a turn could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The journal can't be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A lock can't be taken.
    #[error("the state folder can't be locked")]
    Lock(#[source] io::Error),
    /// Ray can't be asked, or says no.
    #[error(transparent)]
    Ray(#[from] RayError),
    /// Another berth looks after the cluster.
    #[error("another berth ({holder}) looks after this cluster for {seconds} s more")]
    Leased {
        /// Whose state folder it has.
        holder: String,
        /// Until its lease ends, if it isn't renewed.
        seconds: u64,
    },
}

/// Requests as the gateway counts them.
pub trait Requests: Send + Sync {
    /// Those in flight on an instance.
    fn in_flight(&self, id: &InstanceId) -> u64;
    /// Those that have ended on an instance since counting began.
    fn ended(&self, id: &InstanceId) -> u64;
    /// Those that wait for room on any instance of a model.
    fn waiting(&self, model: &str) -> u64;
}

/// Whoever counts requests.
pub type InFlight = Arc<dyn Requests>;

/// What a turn came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Whether there is nothing left to do or to wait for.
    pub is_settled: bool,
    /// Every instance of the plan.
    pub instances: Vec<InstanceStatus>,
    /// Servers that somebody else runs.
    pub externals: Vec<ExternalStatus>,
    /// The gateway of the plan in force.
    pub gateway: GatewaySpec,
}

/// Whoever has a state folder's lock, and carries out what its journal says.
pub struct Controller {
    actor: Actor,
    externals: Externals,
}

enum Actor {
    /// With processes of this machine.
    Local(Box<LocalController>),
    /// With applications of Ray Serve's.
    Ray(Box<RayController>),
}

impl Controller {
    /// Takes the state folder for a plan, or says `None` where another controller has it.
    ///
    /// # Errors
    /// Where the folder can't be used.
    pub fn open(
        dir: StateDir,
        plan: Option<&Plan>,
        in_flight: Option<InFlight>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Option<Self>, ControllerError> {
        let lock =
            lock::try_lock_patiently(&dir.controller_lock()).map_err(ControllerError::Lock)?;
        let Some(lock): Option<File> = lock else { return Ok(None) };
        let book = Book::new(Journal::open(&dir.journal())?, events);
        let actor = match plan.and_then(|plan| plan.ray.clone()) {
            Some(ray) => Actor::Ray(Box::new(RayController::new(&ray, book, lock, in_flight)?)),
            None => Actor::Local(Box::new(LocalController::new(dir, book, lock, in_flight)?)),
        };
        Ok(Some(Self { actor, externals: Externals::default() }))
    }

    /// The journal.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.book().journal
    }

    fn book(&mut self) -> &mut Book {
        match &mut self.actor {
            Actor::Local(one) => one.book(),
            Actor::Ray(one) => one.book(),
        }
    }

    /// Takes what is ready for proven, on trial or not: for when nobody will watch any more.
    ///
    /// # Errors
    /// Where the journal can't be written.
    pub fn prove(&mut self) -> Result<(), JournalError> {
        self.book().prove()
    }

    /// How patient stops are from now on.
    pub fn set_patience(&mut self, patience: Patience) {
        match &mut self.actor {
            Actor::Local(one) => one.set_patience(patience),
            Actor::Ray(one) => one.set_patience(patience),
        }
    }

    /// Asks everything that runs to end, without the journal: for when it can't be written. What Ray runs
    /// stays: Ray looks after it.
    pub fn stop_without_journal(&mut self) {
        if let Actor::Local(one) = &mut self.actor {
            one.stop_without_journal();
        }
    }

    /// One turn. Call it again after a moment; nothing is lost between turns, and everything that
    /// matters is in the journal and in what runs.
    ///
    /// # Errors
    /// Where the journal can't be used: nothing is done that could not be noted first. Where Ray refuses.
    pub async fn turn(&mut self) -> Result<Turn, ControllerError> {
        let mut turn = match &mut self.actor {
            Actor::Local(one) => one.turn().await?,
            Actor::Ray(one) => one.turn().await?,
        };
        let all = self.book().external();
        turn.gateway = self.book().gateway();
        turn.externals = self.externals.look(&all, now_ms()).await;
        Ok(turn)
    }
}
