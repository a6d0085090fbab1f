//! The loop that runs an engine: submits requests as there is room for them, and passes on what
//! happens to them.

use super::{Engine, Event};
use crate::runtime::Error;

/// Requests, and who wants their events.
pub trait Workload {
    /// What can end the loop.
    type Error: From<Error>;

    /// Submits the next request, or several; false if there are none left.
    ///
    /// # Errors
    /// What ends the loop.
    fn submit(&mut self, engine: &mut Engine) -> Result<bool, Self::Error>;

    /// Takes an event.
    ///
    /// # Errors
    /// What ends the loop.
    fn event(&mut self, engine: &mut Engine, event: Event) -> Result<(), Self::Error>;

    /// Whether to go on; asked before each step.
    fn goes_on(&self) -> bool {
        true
    }
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driven {
    /// All requests are finished.
    Finished,
    /// The workload did not go on.
    Stopped,
}

/// Runs the engine until all requests are finished, or the workload stops. The queue holds as many
/// sequences as there are slots, so that a free slot is filled at once and the order of the
/// requests is kept.
///
/// # Errors
/// The workload's, or the engine's if it cannot go on.
pub fn drive<W: Workload>(engine: &mut Engine, workload: &mut W) -> Result<Driven, W::Error> {
    let mut has_more = true;
    loop {
        while has_more && engine.load().0 < 2 * engine.slots() {
            has_more = workload.submit(engine)?;
        }
        if engine.is_idle() && !has_more {
            return Ok(Driven::Finished);
        }
        if !workload.goes_on() {
            return Ok(Driven::Stopped);
        }
        for event in engine.step()? {
            workload.event(engine, event)?;
        }
    }
}
