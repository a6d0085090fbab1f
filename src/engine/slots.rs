//! The slots of a session: what each holds, and which one a sequence gets.

/// What a slot holds and does.
#[derive(Debug)]
pub(super) struct Slot<S> {
    /// Tokens whose keys and values are in the cache; what follows them there is garbage.
    pub held: Vec<u32>,
    /// The sequence that has the slot.
    pub sequence: Option<S>,
    /// When it was last freed: of free slots that hold nothing of use, the one freed first is taken.
    freed: u64,
}

/// All slots, and what they have in common with a prompt.
#[derive(Debug)]
pub(super) struct Slots<S> {
    all: Vec<Slot<S>>,
    /// Of each data row.
    per_row: usize,
    clock: u64,
}

/// Where a sequence is to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub slot: usize,
    /// How many of the prompt's tokens can be used from the cache.
    pub cached: usize,
    /// The slot that has them, if it is another one.
    pub copy_from: Option<usize>,
}

impl<S> Slots<S> {
    pub fn new(slots: usize, per_row: usize) -> Self {
        let empty = || Slot { held: vec![], sequence: None, freed: 0 };
        Self { all: std::iter::repeat_with(empty).take(slots).collect(), per_row, clock: 0 }
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, &Slot<S>)> {
        self.all.iter().enumerate()
    }

    pub fn get_mut(&mut self, slot: usize) -> &mut Slot<S> {
        &mut self.all[slot]
    }

    pub fn get(&self, slot: usize) -> &Slot<S> {
        &self.all[slot]
    }

    /// Takes the sequence out; what the slot holds stays, for others to use.
    pub fn free(&mut self, slot: usize) -> Option<S> {
        self.clock += 1;
        self.all[slot].freed = self.clock;
        self.all[slot].sequence.take()
    }

    /// The free slot to put this prompt in, and what of it is in the cache. Copying a slot costs about as much as reading it once;
    /// computing even a short prompt costs more than that, so the longest common beginning wins wherever it is. At least one
    /// token is left to compute: its logits are needed.
    pub fn place(&self, prompt: &[u32]) -> Option<Place> {
        let most = prompt.len() - 1;
        let common = |slot: usize| common_prefix(&self.all[slot].held, prompt).min(most);
        let in_row = |slot: usize| {
            let row = slot / self.per_row;
            row * self.per_row..(row + 1) * self.per_row
        };
        let free = (0..self.all.len()).filter(|&slot| self.all[slot].sequence.is_none());
        let places = free.map(|slot| {
            let own = common(slot);
            let other = in_row(slot).max_by_key(|&other| (common(other), other == slot)).expect("a row has slots");
            match common(other) {
                cached if cached > own => Place { slot, cached, copy_from: Some(other) },
                _ => Place { slot, cached: own, copy_from: None },
            }
        });
        // Prefers no copy, then a slot whose row is least busy, then one whose content is least lost.
        let busy = |slot: usize| in_row(slot).filter(|&other| self.all[other].sequence.is_some()).count();
        places.min_by_key(|place| {
            let lost = self.all[place.slot].held.len() - common(place.slot);
            (
                std::cmp::Reverse(place.cached),
                place.copy_from.is_some(),
                busy(place.slot),
                (lost > 0, self.all[place.slot].freed),
            )
        })
    }
}

/// How many tokens both begin with.
pub(super) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(held: &[&[u32]], busy: &[usize], per_row: usize) -> Slots<()> {
        let mut slots = Slots::new(held.len(), per_row);
        for (i, held) in held.iter().enumerate() {
            slots.get_mut(i).held = held.to_vec();
            slots.get_mut(i).sequence = busy.contains(&i).then_some(());
        }
        slots
    }

    fn place(slots: &Slots<()>, prompt: &[u32]) -> (usize, usize, Option<usize>) {
        let place = slots.place(prompt).unwrap();
        (place.slot, place.cached, place.copy_from)
    }

    #[test]
    fn the_longest_common_beginning_wins() {
        let all: [&[u32]; 3] = [&[1, 2], &[1, 2, 3, 4], &[]];
        assert_eq!(place(&slots(&all, &[], 3), &[1, 2, 3, 9]), (1, 3, None));
        // One token is always left to compute.
        assert_eq!(place(&slots(&all, &[], 3), &[1, 2, 3, 4]), (1, 3, None));
        // The one that has it is busy: its content is copied, to a slot that loses nothing.
        assert_eq!(place(&slots(&all, &[1], 3), &[1, 2, 3, 9]), (0, 3, Some(1)));
        assert_eq!(place(&slots(&all, &[0, 1], 3), &[1, 2, 3, 9]), (2, 3, Some(1)));
        assert!(slots(&all, &[0, 1, 2], 3).place(&[1]).is_none());
    }

    #[test]
    fn nothing_is_copied_to_other_devices() {
        let all: [&[u32]; 4] = [&[1, 2, 3], &[], &[], &[]];
        assert_eq!(place(&slots(&all, &[0], 2), &[1, 2, 3, 9]), (1, 3, Some(0)));
        assert_eq!(place(&slots(&all, &[0, 1], 2), &[1, 2, 3, 9]), (2, 0, None));
    }

    #[test]
    fn the_slot_that_was_freed_first_is_taken_first() {
        let mut slots = slots(&[&[5], &[6], &[7]], &[0, 1, 2], 3);
        for slot in [1, 0, 2] {
            slots.free(slot);
        }
        assert_eq!(place(&slots, &[1]), (1, 0, None));
    }

    #[test]
    fn sequences_are_spread_over_data_rows() {
        assert_eq!(place(&slots(&[&[][..]; 4], &[0], 2), &[1]).0, 2);
    }
}
