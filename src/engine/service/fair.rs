//! A queue that is fair among keys: start-time fair queueing (Goyal et al., SIGCOMM 1996), where a
//! key's share is counted in tokens.

use std::collections::{BTreeMap, VecDeque};

/// Items of several keys. The next one is that of the key that was served least, counted from when
/// it had something to wait for.
pub(super) struct FairQueue<T> {
    keys: BTreeMap<String, KeyQueue<T>>,
    /// The share that the last item's key had when it was taken.
    now: u64,
    next_arrival: u64,
}

struct KeyQueue<T> {
    /// Tokens that the key was served, at least those of keys that are served now.
    served: u64,
    /// Items, with the number of their arrival.
    items: VecDeque<(u64, T)>,
}

impl<T> FairQueue<T> {
    pub fn new() -> Self {
        Self { keys: BTreeMap::new(), now: 0, next_arrival: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.keys.values().flat_map(|queue| queue.items.iter().map(|(_, item)| item))
    }

    pub fn push(&mut self, key: &str, item: T) {
        let queue = self.keys.entry(key.to_owned()).or_insert(KeyQueue { served: 0, items: VecDeque::new() });
        if queue.items.is_empty() {
            // Time without anything to wait for earns nothing.
            queue.served = queue.served.max(self.now);
        }
        queue.items.push_back((self.next_arrival, item));
        self.next_arrival += 1;
    }

    /// Takes the next item.
    pub fn pop(&mut self) -> Option<T> {
        let waiting = self.keys.values_mut().filter(|queue| !queue.items.is_empty());
        let next = waiting.min_by_key(|queue| (queue.served, queue.items[0].0))?;
        self.now = next.served;
        let (_, item) = next.items.pop_front()?;
        // Who owes nothing is as good as new.
        self.keys.retain(|_, queue| !queue.items.is_empty() || queue.served > self.now);
        Some(item)
    }

    /// Counts tokens that a key was served.
    pub fn charge(&mut self, key: &str, tokens: u64) {
        let now = self.now;
        let new = || KeyQueue { served: now, items: VecDeque::new() };
        self.keys.entry(key.to_owned()).or_insert_with(new).served += tokens;
    }

    /// Takes out the items that are not to be kept.
    pub fn take_unless(&mut self, keep: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for queue in self.keys.values_mut() {
            let (kept, out): (VecDeque<_>, VecDeque<_>) = queue.items.drain(..).partition(|(_, item)| keep(item));
            queue.items = kept;
            taken.extend(out.into_iter().map(|(_, item)| item));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key floods the queue; another one's single requests pass it.
    #[test]
    fn a_flood_of_one_key_does_not_hold_up_others() {
        let mut queue = FairQueue::new();
        for i in 0..100 {
            queue.push("flood", format!("f{i}"));
        }
        assert_eq!(queue.pop().unwrap(), "f0");
        queue.charge("flood", 500);
        queue.push("other", "o0".to_owned());
        queue.push("other", "o1".to_owned());
        assert_eq!(queue.pop().unwrap(), "o0");
        queue.charge("other", 400);
        assert_eq!(queue.pop().unwrap(), "o1");
        queue.charge("other", 400);
        assert_eq!(queue.pop().unwrap(), "f1");
    }

    #[test]
    fn waiting_for_nothing_earns_nothing() {
        let mut queue = FairQueue::new();
        for i in 0..50 {
            queue.push("busy", i);
            queue.pop();
            queue.charge("busy", 100);
        }
        // The new key is not owed what the other one was served before it came.
        for i in 100..104 {
            queue.push("busy", i);
            queue.push("new", i + 100);
        }
        let mut order = vec![];
        while let Some(item) = queue.pop() {
            queue.charge(if item < 200 { "busy" } else { "new" }, 100);
            order.push(item);
        }
        assert_eq!(order, [200, 100, 201, 101, 202, 102, 203, 103]);
    }

    #[test]
    fn equal_keys_are_first_come_first_served() {
        let mut queue = FairQueue::new();
        for (key, item) in [("b", 0), ("a", 1), ("c", 2)] {
            queue.push(key, item);
        }
        assert_eq!([queue.pop(), queue.pop(), queue.pop(), queue.pop()], [Some(0), Some(1), Some(2), None]);
        assert!(queue.is_empty());
    }

    #[test]
    fn items_can_be_taken_out() {
        let mut queue = FairQueue::new();
        (0..6).for_each(|i| queue.push(if i % 2 == 0 { "a" } else { "b" }, i));
        let mut out = queue.take_unless(|i| *i < 4);
        out.sort();
        assert_eq!(out, [4, 5]);
        assert_eq!(queue.iter().count(), 4);
    }
}
