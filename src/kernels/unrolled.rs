//! Loops that are unrolled before the compiler sees them.

/// Repeats a block for every index below a constant of at most 8.
///
/// The compiler unrolls a `for` loop too late to keep an array that is indexed in it in registers.
macro_rules! unrolled {
    ($i:ident < $end:tt, $body:block) => {
        unrolled!(@ $i, $end, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident, $end:tt, $body:block, $($at:literal)*) => {
        $(if $at < $end {
            const { assert!($end <= 8) };
            let $i = $at;
            $body
        })*
    };
}
