//! Libraries that panic on files that are damaged, or made to do harm. Their panics become errors
//! of the file.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    static SHIELDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a library's reader on contents that come from elsewhere.
///
/// # Errors
/// It panics. The message is the panic's.
pub fn shielded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    let before = SHIELDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    SHIELDED.set(before);
    result.map_err(|panic| format!("its contents make no sense ({})", panic_message(&*panic)))
}

/// Returns whether a panic of this thread becomes an error, and so is no defect to report.
pub fn is_shielded() -> bool {
    SHIELDED.get()
}

/// Returns the message of a panic, in one line.
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("unknown reason").lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_shield_ends() {
        assert_eq!(shielded(|| (is_shielded(), 7)), Ok((true, 7)));
        let nested = shielded(|| shielded(|| panic!("no {}\nhere", "column")).map_err(|e| (is_shielded(), e)));
        assert_eq!(nested, Ok(Err::<(), _>((true, "its contents make no sense (no column here)".to_owned()))));
        assert!(!is_shielded());
    }
}
