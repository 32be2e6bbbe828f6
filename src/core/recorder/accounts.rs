//! Accounts: how often, how long and how late the loop runs what has a name.
//!
//! They are kept by the numbers of [`super::Names`]. What the loop does between callbacks has an account of its own.
//!
//! A callback costs one reading of the tick counter, which ends the one before:
//!
//! ```text
//!  begin_iteration    begin         begin         end_iteration       begin_iteration
//!  -----+--------------+-------------+------------------+--------------------+-----> time
//!       | 1st callback | 2nd         | 3rd              | the loop itself, but for waits
//! ```
//!
//! Ticks are added up until they are a millisecond. They are settled then: they become seconds, and the processor time that the thread
//! has used is shared among their accounts.
//!
//! Invariant: the loop's thread writes; what others read is [`Published`]. No Python code runs in here.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::OnceLock;

use super::names::MOST;
use crate::cpython::borrowing::StateCell;
use crate::reactor::clock::{self, Instant, Tick};
use crate::reactor::published::Published;

/// In place of the number of the loop's own account.
pub const LOOP: u32 = u32::MAX;
/// Chains of who awaits whom whose time is counted.
pub const CHAINS: u32 = 1 << 13;

/// Seconds of work after which it is settled.
const SETTLING: f64 = 1e-3;
/// How often the length of a tick is looked for at the start, which takes a millisecond if the process has just begun.
const ATTEMPTS: u32 = 100;
/// Seconds. After a wait that was as long, the processor time is read: what the wait has used is not the callbacks'.
const LONG_WAIT: f64 = 100e-6;
/// A chain is looked up for one of so many steps of a coroutine, which takes some 20 µs; and for more of the first ones.
const LONGEST_GAP: u64 = 1 << 12;
/// Seconds. If steps that are as long have an eighth of a coroutine's time, few steps tell nothing of it: the chain of each is needed.
const LONG: f64 = 100e-6;
/// Seconds. The chains of shorter steps, on average, would take too much of their time.
const SHORT: f64 = 5e-6;

/// What an account is of.
#[derive(Clone, Copy)]
pub enum Kind {
    Callback,
    Task,
    /// A transport's protocol, or another object that waits for events.
    Protocol,
    Loop,
}

/// Seconds and counts of one name.
#[derive(Default)]
pub struct Account {
    pub kind: Published<u8>,
    pub polls: Published<u64>,
    pub seconds: Published<f64>,
    pub processor: Published<f64>,
    /// In ticks.
    longest: Published<u64>,
    pub slow_polls: Published<u64>,
    pub slow_seconds: Published<f64>,
    pub scheduled: Published<f64>,
    /// In ticks.
    longest_scheduled: Published<u64>,
    /// Of tasks, their first steps, and how long these waited.
    pub first_polls: Published<u64>,
    pub first_delay: Published<f64>,
    /// What is not settled yet, in ticks.
    ticks: Cell<u64>,
    scheduled_ticks: Cell<u64>,
    /// Whether it is in the list of those to be settled.
    is_listed: Cell<bool>,
    /// The step for which a chain is looked up, and how many steps that one stands for.
    next_sample: Cell<u64>,
    sample_gap: Cell<u64>,
    /// Ticks of the long steps, and whether the chain of each step is needed.
    long: Cell<u64>,
    needs_chains: Cell<bool>,
}

/// In place of a number.
const NONE: u32 = u32::MAX;

#[derive(Default)]
pub struct Accounts {
    is_on: Cell<bool>,
    accounts: Table<Account, { (MOST + 1) / PAGE }>,
    own: Account,
    /// Seconds, each multiplied by the steps that it stands for.
    chains: Table<Published<f64>, { CHAINS as usize / PAGE }>,
    /// The account of the callback that runs, or [`NONE`]; when it began, in ticks; and the chain that was looked up for it, or [`NONE`].
    current: Published<u32>,
    /// The identifier of the thread that runs the loop.
    thread: Published<u64>,
    began: Cell<u64>,
    chain: Cell<u32>,
    /// Its ticks that are counted already.
    counted: Cell<u64>,
    /// When the last iteration ended, in ticks, and how long the loop had waited by then, in seconds.
    ended: Cell<u64>,
    idle: Cell<f64>,
    tick: OnceLock<Tick>,
    /// In ticks.
    slow: Cell<u64>,
    long: Cell<u64>,
    settling: Cell<u64>,
    /// Numbers of chains, by the hash of their codes: see [`super::Names::hash_chain`].
    known_chains: StateCell<HashMap<u64, u32>>,
    /// Numbers of accounts with something to settle, and its sum in ticks.
    unsettled: StateCell<Vec<u32>>,
    unsettled_ticks: Cell<u64>,
    /// The last reading of the thread's processor time, and the unsettled ticks by then.
    processor: Cell<f64>,
    ticks_before: Cell<u64>,
    /// Processor seconds until then that are not settled.
    processor_before: Cell<f64>,
    /// Chooses steps that are looked at, so that they are not always the same of a pattern.
    random: Cell<u64>,
}

/// Ticks between two readings. Those of another processor can be earlier.
fn between(began: u64, ended: u64) -> u64 {
    (ended.wrapping_sub(began) as i64).max(0) as u64
}

fn add(sum: &Published<f64>, seconds: f64) {
    sum.set(sum.get() + seconds);
}

impl Accounts {
    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.is_on.get()
    }

    /// Starts with empty accounts. Callbacks are slow that take as many seconds as `slow`.
    pub fn start(&self, slow: f64, idle: f64, thread: u64) {
        self.own.clear();
        self.own.kind.set(Kind::Loop as u8);
        self.accounts.each(|_, account| account.clear());
        self.chains.each(|_, seconds| seconds.set(0.0));
        let tick = self.tick();
        for _ in 0..ATTEMPTS {
            if tick.find_out() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        self.slow.set(tick.ticks(slow));
        self.long.set(tick.ticks(slow.min(LONG)));
        self.known_chains.borrow_mut().clear();
        self.settling.set(tick.ticks(SETTLING));
        self.unsettled.borrow_mut().clear();
        self.unsettled_ticks.set(0);
        self.current.set(NONE);
        self.random.set(clock::ticks() | 1);
        self.is_on.set(true);
        self.begin_run(idle, thread);
    }

    pub fn stop(&self) {
        if self.is_on() {
            self.settle(None);
            self.is_on.set(false);
        }
    }

    fn tick(&self) -> &Tick {
        self.tick.get_or_init(Tick::default)
    }

    /// A run begins, maybe in another thread than the last.
    pub fn begin_run(&self, idle: f64, thread: u64) {
        if self.is_on() && self.current.get() == NONE {
            self.thread.set(thread);
            self.processor.set(clock::processor_time());
            self.ticks_before.set(self.unsettled_ticks.get());
            self.processor_before.set(0.0);
            self.ended.set(clock::ticks());
            self.idle.set(idle);
        }
    }

    /// Makes all that was counted until now readable, if the calling thread runs the loop.
    pub fn catch_up(&self, thread: u64) {
        let current = self.current.get();
        if self.is_on() && current != NONE && self.thread.get() == thread {
            let ticks = between(self.began.get(), clock::ticks());
            if let Some(account) = self.accounts.get(current) {
                let new = ticks.saturating_sub(self.counted.replace(ticks));
                self.add_ticks(current, account, new);
                self.settle(Some((current, new)));
            }
        }
    }

    /// A run has ended: what is counted can be read in full.
    pub fn end_run(&self) {
        if self.is_on() && self.current.get() == NONE {
            self.settle(None);
        }
    }

    /// A wait has ended that took so many seconds.
    pub fn waited(&self, seconds: f64) {
        if seconds >= LONG_WAIT {
            let used = clock::processor_time();
            let unsettled = self.unsettled_ticks.get();
            let worked = unsettled.saturating_sub(self.ticks_before.replace(unsettled));
            // What the wait itself has used is not counted.
            let used = (used - self.processor.replace(used)).clamp(0.0, self.tick().seconds(worked));
            self.processor_before.set(self.processor_before.get() + used);
        }
    }

    /// An iteration begins. Returns the number of the callback that has called for it, if it is one within another.
    #[inline(always)]
    pub fn begin_iteration(&self, now: u64, idle: f64) -> Option<u32> {
        let outer = self.current.get();
        if outer != NONE {
            self.close(now);
            return Some(outer);
        }
        let mut ticks = between(self.ended.get(), now);
        if idle != self.idle.get() {
            let before = self.idle.get();
            // It falls when the metrics are reset.
            let waited = if idle < before { idle } else { idle - before };
            ticks = ticks.saturating_sub(self.tick().ticks(waited));
        }
        self.own.polls.set(self.own.polls.get() + 1);
        self.own.ticks.set(self.own.ticks.get() + ticks);
        self.unsettled_ticks.set(self.unsettled_ticks.get() + ticks);
        None
    }

    #[inline(always)]
    pub fn end_iteration(&self, now: u64, idle: f64, outer: Option<u32>) {
        self.close(now);
        match outer {
            Some(number) => {
                self.current.set(number);
                self.began.set(now);
            }
            None => {
                self.ended.set(now);
                self.idle.set(idle);
            }
        }
    }

    /// A callback begins, which was ready for as many ticks as `delay`. The one before has ended.
    #[inline(always)]
    pub fn begin(&self, now: u64, delay: u64, number: u32, kind: Kind, is_first_of_task: bool) {
        self.close(now);
        if let Some(account) = self.accounts.get(number) {
            self.begin_account(account, now, delay, number, kind, is_first_of_task);
        }
    }

    /// As [`Accounts::begin`], for a step of a task. False if a chain is to be looked up for it.
    #[inline(always)]
    pub fn begin_step(&self, now: u64, delay: u64, number: u32, is_first_of_task: bool) -> bool {
        let Some(account) = self.accounts.get(number) else { return false };
        if account.polls.get() >= account.next_sample.get() || account.needs_chains.get() {
            return false;
        }
        self.close(now);
        self.begin_account(account, now, delay, number, Kind::Task, is_first_of_task);
        true
    }

    #[inline(always)]
    fn begin_account(
        &self,
        account: &Account,
        now: u64,
        delay: u64,
        number: u32,
        kind: Kind,
        is_first_of_task: bool,
    ) {
        account.kind.set(kind as u8);
        account.polls.set(account.polls.get() + 1);
        let delay = between(0, delay);
        account.scheduled_ticks.set(account.scheduled_ticks.get() + delay);
        if delay > account.longest_scheduled.get() {
            account.longest_scheduled.set(delay);
        }
        if is_first_of_task {
            account.first_polls.set(account.first_polls.get() + 1);
            add(&account.first_delay, self.tick().seconds(delay));
        }
        self.current.set(number);
        self.began.set(now);
    }

    /// Whether a chain is needed for the coroutine's next step.
    #[inline(always)]
    pub fn wants_chain(&self, number: u32) -> bool {
        let is_wanted = |account: &Account| {
            account.polls.get() >= account.next_sample.get() || account.needs_chains.get()
        };
        self.is_on() && self.accounts.get(number).is_some_and(is_wanted)
    }

    /// The step that has begun has the chain of this hash. False if it has to be looked up.
    pub fn set_known_chain(&self, hash: u64) -> bool {
        let Some(account) = self.accounts.find(self.current.get()) else { return true };
        // Tasks of the same coroutines can be awaited by others.
        if account.polls.get() > account.next_sample.get() {
            return false;
        }
        match self.known_chains.borrow().get(&hash) {
            Some(chain) => self.chain.set(*chain),
            None => return false,
        }
        account.sample_gap.set(1);
        true
    }

    /// The callback that has begun has this chain. It begins now: looking that up took its time.
    pub fn set_chain(&self, hash: u64, chain: Option<u32>) {
        let number = self.current.get();
        if number == NONE {
            return;
        }
        let Some(account) = self.accounts.get(number) else { return };
        let now = clock::ticks();
        let ticks = between(self.began.replace(now), now);
        self.own.ticks.set(self.own.ticks.get() + ticks);
        self.unsettled_ticks.set(self.unsettled_ticks.get() + ticks);
        self.chain.set(chain.unwrap_or(NONE));
        if let Some(chain) = chain {
            let mut known = self.known_chains.borrow_mut();
            if known.try_reserve(1).is_ok() {
                known.insert(hash, chain);
            }
        }
        let polls = account.polls.get();
        let gap = (polls / 4).min(LONGEST_GAP);
        let gap = 1 + gap / 2 + self.random_below(gap + 1);
        account.next_sample.set(polls - 1 + gap);
        account.sample_gap.set(if account.needs_chains.get() { 1 } else { gap });
    }

    /// By xorshift.
    fn random_below(&self, end: u64) -> u64 {
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.random.set(random);
        random % end
    }

    /// The callback that runs ends here.
    #[inline(always)]
    fn close(&self, now: u64) {
        let number = self.current.replace(NONE);
        if number == NONE {
            return;
        }
        let Some(account) = self.accounts.get(number) else { return };
        let ticks = between(self.began.get(), now);
        if ticks > account.longest.get() {
            account.longest.set(ticks);
        }
        let new = ticks.saturating_sub(self.counted.take());
        let unsettled = self.add_ticks(number, account, new);
        if unsettled >= self.settling.get() || ticks >= self.long.get() || self.chain.get() != NONE {
            self.close_rarely(number, account, ticks, new);
        }
    }

    #[inline(always)]
    fn add_ticks(&self, number: u32, account: &Account, ticks: u64) -> u64 {
        if !account.is_listed.get() {
            self.list(number, account);
        }
        account.ticks.set(account.ticks.get() + ticks);
        let unsettled = self.unsettled_ticks.get() + ticks;
        self.unsettled_ticks.set(unsettled);
        unsettled
    }

    #[inline(never)]
    fn close_rarely(&self, number: u32, account: &Account, ticks: u64, new: u64) {
        if ticks >= self.slow.get() {
            account.slow_polls.set(account.slow_polls.get() + 1);
            add(&account.slow_seconds, self.tick().seconds(ticks));
        }
        if ticks >= self.long.get() {
            account.long.set(account.long.get() + ticks);
        }
        let chain = self.chain.replace(NONE);
        if chain != NONE
            && let Some(sum) = self.chains.get(chain)
        {
            add(sum, self.tick().seconds(ticks) * account.sample_gap.get() as f64);
        }
        if self.unsettled_ticks.get() >= self.settling.get() {
            self.settle(Some((number, new)));
        }
    }

    /// Without memory it is not settled until there is some.
    #[cold]
    fn list(&self, number: u32, account: &Account) {
        let mut unsettled = self.unsettled.borrow_mut();
        if unsettled.try_reserve(1).is_ok() {
            unsettled.push(number);
            account.is_listed.set(true);
        }
    }

    /// Ticks become seconds. If what has ended just now was long, the others are taken to have used the processor all the time, and it has
    /// used the rest.
    #[inline(never)]
    fn settle(&self, last: Option<(u32, u64)>) {
        let tick = self.tick();
        tick.learn(Instant::now());
        let used = clock::processor_time();
        let used = (used - self.processor.replace(used)).max(0.0);
        let before = self.processor_before.take();
        let last = last.filter(|(_, ticks)| *ticks >= self.settling.get());
        let last_ticks = last.map_or(0, |(_, ticks)| ticks);
        let all = self.unsettled_ticks.take();
        let since = all.saturating_sub(self.ticks_before.take());
        let used_by_others = used.min(tick.seconds(since.saturating_sub(last_ticks)));
        let used_by_last = (used - used_by_others).min(tick.seconds(last_ticks));
        let others = tick.seconds(all.saturating_sub(last_ticks));
        let share = if others > 0.0 { ((before + used_by_others) / others).min(1.0) } else { 0.0 };
        let own = tick.seconds(self.own.ticks.take());
        add(&self.own.seconds, own);
        add(&self.own.processor, own * share);
        let mut unsettled = self.unsettled.borrow_mut();
        for number in unsettled.drain(..) {
            let Some(account) = self.accounts.get(number) else { continue };
            account.is_listed.set(false);
            let mut ticks = account.ticks.take();
            add(&account.seconds, tick.seconds(ticks));
            let seconds = account.seconds.get();
            let are_few = seconds > account.polls.get() as f64 * SHORT;
            account.needs_chains.set(are_few && tick.seconds(account.long.get()) * 8.0 > seconds);
            add(&account.scheduled, tick.seconds(account.scheduled_ticks.take()));
            if last.is_some_and(|(last, _)| last == number) {
                ticks = ticks.saturating_sub(last_ticks);
                add(&account.processor, used_by_last);
            }
            add(&account.processor, tick.seconds(ticks) * share);
        }
    }

    /// The accounts with a step, by number. For any thread. None without memory for them.
    pub fn all(&self) -> Option<Vec<(u32, &Account)>> {
        let mut all = Vec::new();
        let mut has_memory = all.try_reserve(1).is_ok();
        if has_memory {
            all.push((LOOP, &self.own));
        }
        self.accounts.each(|number, account| {
            if account.polls.get() > 0 {
                has_memory = has_memory && all.try_reserve(1).is_ok();
                if has_memory {
                    all.push((number as u32, account));
                }
            }
        });
        has_memory.then_some(all)
    }

    /// The seconds of the chains from 0 on that are looked up, each as many times as the steps for which it stands. For any thread.
    pub fn chain_seconds(&self, count: usize) -> impl Iterator<Item = f64> {
        (0..count as u32).map(|chain| self.chains.find(chain).map_or(0.0, |seconds| seconds.get()))
    }

    pub fn seconds(&self, ticks: u64) -> f64 {
        self.tick.get().map_or(0.0, |tick| tick.seconds(ticks))
    }
}

impl Account {
    pub fn longest(&self) -> u64 {
        self.longest.get()
    }

    pub fn longest_scheduled(&self) -> u64 {
        self.longest_scheduled.get()
    }

    fn clear(&self) {
        let Account { kind, polls, seconds, processor, longest, slow_polls, slow_seconds, .. } = self;
        kind.set(0);
        for count in [polls, longest, slow_polls, &self.longest_scheduled, &self.first_polls] {
            count.set(0);
        }
        for sum in [seconds, processor, slow_seconds, &self.scheduled, &self.first_delay] {
            sum.set(0.0);
        }
        for count in [&self.ticks, &self.scheduled_ticks, &self.next_sample, &self.sample_gap, &self.long] {
            count.set(0);
        }
        self.is_listed.set(false);
        self.needs_chains.set(false);
    }
}

/// Places in a page of a [`Table`].
const PAGE: usize = 256;

/// Places in pages that are made when one of theirs is needed, and stay.
struct Table<T, const PAGES: usize> {
    pages: [OnceLock<Box<[T; PAGE]>>; PAGES],
}

impl<T, const PAGES: usize> Default for Table<T, PAGES> {
    fn default() -> Self {
        Table { pages: [const { OnceLock::new() }; PAGES] }
    }
}

impl<T: Default, const PAGES: usize> Table<T, PAGES> {
    #[inline(always)]
    fn find(&self, number: u32) -> Option<&T> {
        let page = self.pages.get(number as usize / PAGE)?.get()?;
        Some(&page[number as usize % PAGE])
    }

    /// None without memory for its page. Called by the loop's thread.
    #[inline(always)]
    fn get(&self, number: u32) -> Option<&T> {
        self.find(number).or_else(|| self.make(number))
    }

    #[cold]
    fn make(&self, number: u32) -> Option<&T> {
        let page = self.pages.get(number as usize / PAGE)?;
        if page.get().is_none() {
            let _ = page.set(defaults(PAGE)?.try_into().ok()?);
        }
        Some(&page.get()?[number as usize % PAGE])
    }

    /// Calls `f` with each place of the pages that are made, and its number.
    fn each<'a>(&'a self, mut f: impl FnMut(usize, &'a T)) {
        for (index, page) in self.pages.iter().enumerate() {
            for (place, value) in page.get().into_iter().flat_map(|page| page.iter()).enumerate() {
                f(index * PAGE + place, value);
            }
        }
    }
}

/// None without memory.
fn defaults<T: Default>(count: usize) -> Option<Box<[T]>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).ok()?;
    values.resize_with(count, T::default);
    Some(values.into())
}
