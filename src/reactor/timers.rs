//! Timers: a heap ordered by deadline, with removal of any entry.
//!
//! Most timers of a server are timeouts that are cancelled. asyncio leaves a cancelled timer in its heap until it comes up, or
//! until half of the heap is cancelled. Here it is removed at once: its payload is freed, and the heap has pending timers only.
//!
//! Invariant: each node of the heap has a slot, which has the node's position.

/// Children of a node. Four make the tree half as deep as two would.
const ARITY: usize = 4;

/// Names a pending timer. After the timer has gone, the key names no other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerKey {
    slot: u32,
    generation: u32,
}

/// A generation is less than [`u32::MAX`].
#[cfg(Py_GIL_DISABLED)]
impl super::published::Word for Option<TimerKey> {
    fn to_word(self) -> u64 {
        self.map_or(u64::MAX, |key| u64::from(key.generation) << 32 | u64::from(key.slot))
    }

    fn from_word(word: u64) -> Self {
        (word != u64::MAX).then_some(TimerKey { slot: word as u32, generation: (word >> 32) as u32 })
    }
}

#[derive(Clone, Copy)]
struct Node {
    deadline: Deadline,
    /// Timers with equal deadlines fire in the order of insertion.
    sequence: u64,
    slot: u32,
}

impl Node {
    fn before(&self, other: &Node) -> bool {
        self.order() < other.order()
    }

    /// Both as one number, which is compared at once.
    fn order(&self) -> u128 {
        (self.deadline.0 as u128) << 64 | self.sequence as u128
    }
}

/// A time as an integer of the same order. NaN is the earliest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Deadline(u64);

impl Deadline {
    const SIGN: u64 = 1 << 63;

    fn new(time: f64) -> Deadline {
        // Adding 0.0 makes -0.0 equal to 0.0.
        let bits = if time.is_nan() { f64::NEG_INFINITY } else { time + 0.0 }.to_bits();
        Deadline(if bits & Deadline::SIGN == 0 { bits | Deadline::SIGN } else { !bits })
    }

    fn time(self) -> f64 {
        f64::from_bits(if self.0 & Deadline::SIGN == 0 { !self.0 } else { self.0 ^ Deadline::SIGN })
    }
}

struct Slot<T> {
    generation: u32,
    /// Index of the timer's node in the heap.
    position: u32,
    payload: Option<T>,
}

/// Pending timers, each with a payload of type `T`.
pub struct Timers<T> {
    heap: Vec<Node>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    sequence: u64,
    /// Timers for which there is memory.
    room: usize,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Timers { heap: Vec::new(), slots: Vec::new(), free: Vec::new(), sequence: 0, room: 0 }
    }
}

impl<T> Timers<T> {
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// The earliest deadline, in seconds of the caller's clock.
    pub fn next_deadline(&self) -> Option<f64> {
        self.heap.first().map(|node| node.deadline.time())
    }

    /// Makes room for another timer. False if there is no memory.
    #[must_use]
    pub fn reserve(&mut self) -> bool {
        self.heap.len() < self.room || self.make_room()
    }

    #[cold]
    fn make_room(&mut self) -> bool {
        let room = (2 * self.room).max(64).max(self.slots.len() + 1);
        // `heap` and `free` never have more items than `slots`.
        let has_room = self.heap.try_reserve(room - self.heap.len()).is_ok()
            && self.slots.try_reserve(room - self.slots.len()).is_ok()
            && self.free.try_reserve(room - self.free.len()).is_ok();
        if has_room {
            self.room = room;
        }
        has_room
    }

    /// Adds a timer. NaN as deadline is due at once.
    pub fn insert(&mut self, deadline: f64, payload: T) -> TimerKey {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize].payload = Some(payload);
                slot
            }
            None => {
                self.slots.push(Slot { generation: 0, position: 0, payload: Some(payload) });
                (self.slots.len() - 1) as u32
            }
        };
        self.sequence += 1;
        let node = Node { deadline: Deadline::new(deadline), sequence: self.sequence, slot };
        self.heap.push(node);
        self.sift_up(self.heap.len() - 1, node);
        TimerKey { slot, generation: self.slots[slot as usize].generation }
    }

    /// Removes a pending timer and returns its payload; None if it fired or was removed before.
    pub fn remove(&mut self, key: TimerKey) -> Option<T> {
        let slot = self.slots.get(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let position = slot.position as usize;
        Some(self.take(position))
    }

    /// Removes the earliest timer if it is due at `now`. At NaN all timers are due, as in asyncio.
    pub fn pop_due(&mut self, now: f64) -> Option<T> {
        match self.heap.first() {
            Some(node) if node.deadline.time() > now => None,
            Some(_) => Some(self.take(0)),
            None => None,
        }
    }

    /// Removes any timer, in constant time and without memory.
    pub fn pop_any(&mut self) -> Option<T> {
        let node = self.heap.pop()?;
        Some(self.release(node.slot))
    }

    /// The payloads of all pending timers.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.payload.as_ref())
    }

    /// Removes the node at `position`, keeping the heap in order.
    fn take(&mut self, position: usize) -> T {
        let removed = self.heap.swap_remove(position);
        if position < self.heap.len() {
            let moved = self.heap[position];
            let position = if moved.before(&removed) { position } else { self.sink(position) };
            self.sift_up(position, moved);
        }
        self.release(removed.slot)
    }

    fn release(&mut self, slot: u32) -> T {
        self.free.push(slot);
        let slot = &mut self.slots[slot as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.payload.take().expect("a slot in the heap has a payload")
    }

    fn place(&mut self, position: usize, node: Node) {
        self.heap[position] = node;
        self.slots[node.slot as usize].position = position as u32;
    }

    fn sift_up(&mut self, mut position: usize, node: Node) {
        while position > 0 {
            let parent = (position - 1) / ARITY;
            if !node.before(&self.heap[parent]) {
                break;
            }
            self.place(position, self.heap[parent]);
            position = parent;
        }
        self.place(position, node);
    }

    /// Moves the hole down to a leaf, along the least children, and returns its position. The node that fills it was a leaf, and
    /// rarely has to go up again, so that comparing it on the way down does not pay.
    fn sink(&mut self, mut hole: usize) -> usize {
        loop {
            let first = hole * ARITY + 1;
            let last = (first + ARITY).min(self.heap.len());
            let Some(children) = self.heap.get(first..last) else { return hole };
            let lesser = |a: usize, b: usize| if children[b].before(&children[a]) { b } else { a };
            let least = match children.len() {
                0 => return hole,
                ARITY => lesser(lesser(0, 1), lesser(2, 3)),
                some => (1..some).fold(0, lesser),
            };
            let least = first + least;
            self.place(hole, self.heap[least]);
            hole = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain_due(timers: &mut Timers<u32>, now: f64) -> Vec<u32> {
        std::iter::from_fn(|| timers.pop_due(now)).collect()
    }

    #[test]
    fn fires_in_order_of_deadline_then_of_insertion() {
        let mut timers = Timers::default();
        for (payload, deadline) in [(0, 3.0), (1, 1.0), (2, 2.0), (3, 1.0), (4, 1.0)] {
            timers.insert(deadline, payload);
        }
        assert_eq!(timers.next_deadline(), Some(1.0));
        assert_eq!(drain_due(&mut timers, 2.5), [1, 3, 4, 2]);
        assert!(drain_due(&mut timers, 2.9).is_empty());
        assert_eq!(drain_due(&mut timers, 3.0), [0]);
        assert!(timers.is_empty());
    }

    #[test]
    fn a_key_names_one_timer_only() {
        let mut timers = Timers::default();
        let first = timers.insert(1.0, 1);
        assert_eq!(timers.remove(first), Some(1));
        assert_eq!(timers.remove(first), None);
        let second = timers.insert(1.0, 2);
        assert_eq!(timers.remove(first), None, "the slot is reused, but not the key");
        assert_eq!(timers.pop_due(1.0), Some(2));
        assert_eq!(timers.remove(second), None);
    }

    #[test]
    fn deadlines_are_ordered_as_times_are() {
        let times = [f64::NEG_INFINITY, -1e300, -1.5, -0.0, 1e-300, 1.5, 1e300, f64::INFINITY];
        for pair in times.windows(2) {
            assert!(Deadline::new(pair[0]) < Deadline::new(pair[1]), "{pair:?}");
        }
        for time in times {
            assert_eq!(Deadline::new(time).time(), time);
        }
        assert!(Deadline::new(-0.0) == Deadline::new(0.0));
    }

    #[test]
    fn not_a_number_is_due_at_once_and_infinity_never() {
        let mut timers = Timers::default();
        timers.insert(f64::INFINITY, 1);
        timers.insert(f64::NAN, 2);
        assert_eq!(drain_due(&mut timers, 1e300), [2]);
        assert_eq!(timers.len(), 1);
        assert_eq!(timers.pop_any(), Some(1));
        assert_eq!(timers.pop_any(), None);
    }

    #[test]
    fn all_are_due_at_what_is_not_a_number() {
        let mut timers = Timers::default();
        timers.insert(2.0, 2);
        timers.insert(1.0, 1);
        assert_eq!(drain_due(&mut timers, f64::NAN), [1, 2]);
    }

    #[test]
    fn agrees_with_a_sorted_list_under_random_insertions_and_removals() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        let mut timers = Timers::default();
        let mut model: Vec<(u64, u32, TimerKey)> = Vec::new();
        for payload in 0..20_000 {
            match random(10) {
                0..=5 => {
                    let deadline = random(500);
                    let key = timers.insert(deadline as f64, payload);
                    model.push((deadline, payload, key));
                }
                6..=7 if !model.is_empty() => {
                    let (_, expected, key) = model.swap_remove(random(model.len() as u64) as usize);
                    assert_eq!(timers.remove(key), Some(expected));
                }
                _ => {
                    let now = random(500);
                    let mut due: Vec<_> =
                        model.iter().filter(|(d, ..)| *d <= now).map(|(d, p, _)| (*d, *p)).collect();
                    due.sort_unstable();
                    model.retain(|(d, ..)| *d > now);
                    let expected: Vec<u32> = due.into_iter().map(|(_, p)| p).collect();
                    assert_eq!(drain_due(&mut timers, now as f64), expected);
                }
            }
            assert_eq!(timers.len(), model.len());
            assert_eq!(timers.iter().count(), model.len());
        }
    }
}
