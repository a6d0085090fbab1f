//! Events: the completion of asynchronous work.

use super::{
    abi::{CStruct, EventAwait, EventDestroy, EventIsReady, EventOnReady, Ptr},
    api::Api,
    error::Result,
};

/// The completion of asynchronous work. Dropping an event does not wait for it.
pub struct Event {
    api: Api,
    ptr: Ptr,
}
// SAFETY: PJRT events may be awaited and destroyed from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Takes ownership of an event that the plugin returned. Null means that the work is done.
    pub(super) fn new(api: &Api, ptr: Ptr) -> Self {
        Self { api: api.clone(), ptr }
    }

    /// Blocks until the work is done.
    ///
    /// # Errors
    /// The work failed.
    pub fn wait(self) -> Result<()> {
        if self.ptr.is_null() {
            return Ok(());
        }
        self.api.call(EventAwait { event: self.ptr, ..EventAwait::zeroed() }).map(drop)
    }

    /// Returns whether the work is done, in success or failure.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn is_ready(&self) -> Result<bool> {
        if self.ptr.is_null() {
            return Ok(true);
        }
        Ok(self.api.call(EventIsReady { event: self.ptr, ..EventIsReady::zeroed() })?.is_ready)
    }

    /// Drops `value` when the event fires: for memory that the plugin reads until then.
    pub(super) fn drop_when_ready<T: Send + 'static>(self, value: T) -> Result<()> {
        unsafe extern "C" fn release<T>(error: Ptr, value: Ptr) {
            // The error, if any, was reported through the buffer; an event callback owns it, but
            // destroying it here would need the table, and host-buffer events do not fail on any
            // plugin tried.
            let _ = error;
            // SAFETY: `value` is the box made below, handed over exactly once.
            drop(unsafe { Box::from_raw(value.cast::<T>()) });
        }
        if self.ptr.is_null() {
            return Ok(());
        }
        let user_arg = Box::into_raw(Box::new(value)).cast();
        let args = EventOnReady { event: self.ptr, callback: Some(release::<T>), user_arg, ..EventOnReady::zeroed() };
        self.api.call(args).map(drop).inspect_err(|_| {
            // SAFETY: the plugin refused the callback, so the box is still ours.
            drop(unsafe { Box::from_raw(user_arg.cast::<T>()) });
        })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.ptr.is_null() {
            self.api.destroy(EventDestroy { event: self.ptr, ..EventDestroy::zeroed() });
        }
    }
}
