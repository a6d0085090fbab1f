//! The end of the process, where a plugin is loaded.
//!
//! Plugins register exit handlers that destroy what their own threads may still be using: the
//! process would abort after all its work is done. They cannot be unloaded, and none of their
//! handlers does anything that the kernel does not do when a process ends. So they are not run.

use std::{
    ffi::{c_int, c_void},
    sync::Once,
};

/// Makes the process end without the exit handlers that plugins have registered up to now. What
/// Rust and C have buffered is written before.
pub(super) fn leave_without_handlers_of_plugins() {
    static ONCE: Once = Once::new();
    ONCE.call_once(register);
}

/// Exit handlers run in the opposite order of their registration: this one ends the process before
/// any that is older.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn register() {
    unsafe extern "C" {
        /// Of the GNU C library: as `atexit`, but the handler is told the exit code.
        fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    extern "C" fn leave(code: c_int, _: *mut c_void) {
        // SAFETY: a null pointer stands for all streams; `_exit` takes any code.
        unsafe {
            libc::fflush(std::ptr::null_mut());
            libc::_exit(code)
        }
    }
    // SAFETY: the function is of this program, which stays in memory, and does not use its
    // argument. If there is no memory for the handler, the process ends as it would have without.
    unsafe { on_exit(leave, std::ptr::null_mut()) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn register() {}
