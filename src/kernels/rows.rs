//! Rows of a batch that count, among padding: a kernel is given these alone, one after the other.

use std::ops::Range;

use super::{linear::Results, operands::Activations, scratch::with_scratch};

/// Which rows of an array count.
pub(super) struct Rows {
    /// In ascending order, not empty, with others between them.
    ranges: Vec<Range<usize>>,
    /// All rows.
    pub all: usize,
}

impl Rows {
    /// Of `all` rows `[batch, seq]`, the first ones of each `seq`, as many as `lengths` `[batch]` tells.
    ///
    /// # Errors
    /// Lengths that fit no such array.
    pub fn new(lengths: &[i32], all: usize) -> Result<Self, String> {
        if lengths.is_empty() || !all.is_multiple_of(lengths.len()) {
            return Err(format!("{} lengths of {all} rows", lengths.len()));
        }
        let seq = all / lengths.len();
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (row, &len) in lengths.iter().enumerate() {
            let len = usize::try_from(len).map_err(|_| format!("a length of {len}"))?.min(seq);
            let range = row * seq..row * seq + len;
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ if len > 0 => ranges.push(range),
                _ => {}
            }
        }
        Ok(Self { ranges, all })
    }

    fn count(&self) -> usize {
        self.ranges.iter().map(Range::len).sum()
    }

    /// Whether those that count are the first ones.
    fn come_first(&self) -> bool {
        self.ranges.first().is_none_or(|first| first.start == 0) && self.ranges.len() <= 1
    }

    /// Calls `f` with the rows of `x` `[all, width]` that count.
    pub fn of<R>(&self, x: Activations<'_>, width: usize, f: impl FnOnce(Activations<'_>) -> R) -> R {
        if self.come_first() {
            return f(x.part(0..self.count() * width));
        }
        match x {
            Activations::F32(x) => self.gathered(x, width, |x| f(Activations::F32(x))),
            Activations::Bf16(x) => self.gathered(x, width, |x| f(Activations::Bf16(x))),
        }
    }

    fn gathered<T: bytemuck::Pod, R>(&self, x: &[T], width: usize, f: impl FnOnce(&[T]) -> R) -> R {
        self.with_place(width, |place| {
            let mut at = 0;
            for range in &self.ranges {
                let size = range.len() * width;
                place[at..at + size].copy_from_slice(&x[range.start * width..][..size]);
                at += size;
            }
            f(place)
        })
    }

    /// Has `f` fill the rows of `out` `[all, width]` that count; the others become zeros.
    pub fn put<T: bytemuck::Pod>(&self, out: &mut [T], width: usize, f: impl FnOnce(&mut [T])) {
        self.clear_others(out, width);
        if self.come_first() {
            return f(&mut out[..self.count() * width]);
        }
        self.with_place(width, |place| {
            f(place);
            let mut at = 0;
            for range in &self.ranges {
                let size = range.len() * width;
                out[range.start * width..][..size].copy_from_slice(&place[at..at + size]);
                at += size;
            }
        });
    }

    /// As [`Self::put`].
    pub fn results(&self, out: Results<'_>, width: usize, f: impl FnOnce(Results<'_>)) {
        match out {
            Results::F32(out) => self.put(out, width, |out| f(Results::F32(out))),
            Results::Bf16(out) => self.put(out, width, |out| f(Results::Bf16(out))),
        }
    }

    /// Makes the rows of `out` `[all, width]` zeros that do not count.
    pub fn clear_others<T: bytemuck::Pod>(&self, out: &mut [T], width: usize) {
        let mut at = 0;
        for range in self.ranges.iter().chain([&(self.all..self.all)]) {
            out[at * width..range.start * width].fill(T::zeroed());
            at = range.end;
        }
    }

    /// Memory for those that count.
    fn with_place<T: bytemuck::Pod, R>(&self, width: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
        let len = self.count() * width;
        let numbers = (len * size_of::<T>()).div_ceil(size_of::<f32>());
        with_scratch(numbers, |scratch| f(&mut bytemuck::cast_slice_mut(scratch)[..len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lengths: &[i32], all: usize) -> Vec<usize> {
        Rows::new(lengths, all).unwrap().ranges.into_iter().flatten().collect()
    }

    #[test]
    fn the_first_rows_of_each_sequence_count() {
        assert_eq!(counted(&[2, 0, 3], 9), [0, 1, 6, 7, 8]);
        assert_eq!(counted(&[0, 1, 1, 0], 4), [1, 2]);
        // A sequence's last token stands for it.
        assert_eq!(counted(&[17, 0, 4], 3), [0, 2]);
        assert_eq!(counted(&[0], 8), [] as [usize; 0]);
        assert!(Rows::new(&[-1], 4).is_err() && Rows::new(&[1, 1], 3).is_err() && Rows::new(&[], 0).is_err());
    }

    #[test]
    fn results_stand_where_their_activations_do() {
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        for (lengths, expected) in [
            ([1, 2, 0], [1.0, 2.0, 0.0, 0.0, 5.0, 6.0, 7.0, 8.0, 0.0, 0.0, 0.0, 0.0]),
            ([2, 1, 0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            ([0, 0, 0], [0.0; 12]),
            ([2, 2, 2], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]),
        ] {
            let rows = Rows::new(&lengths, 6).unwrap();
            let mut out = [f32::NAN; 12];
            rows.of(Activations::F32(&x), 2, |x| {
                rows.put(&mut out, 2, |out| (0..out.len()).for_each(|i| out[i] = x.get(i) + 1.0));
            });
            assert_eq!(out, expected, "{lengths:?}");
        }
    }
}
