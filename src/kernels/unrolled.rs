//! Loops that are unrolled before the compiler sees them.

/// Repeats a block for every index below a constant of at most 8, or of at most 16 with
/// `unrolled16`, which takes the compiler longer.
///
/// The compiler unrolls a `for` loop too late to keep an array that is indexed in it in registers.
macro_rules! unrolled {
    ($i:ident < $end:tt, $body:block) => {
        unrolled!(@ $i, $end, 8, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident, $end:tt, $most:literal, $body:block, $($at:literal)*) => {
        $(if $at < $end {
            const { assert!($end <= $most) };
            let $i = $at;
            $body
        })*
    };
}

macro_rules! unrolled16 {
    ($i:ident < $end:tt, $body:block) => {
        unrolled!(@ $i, $end, 16, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
}
