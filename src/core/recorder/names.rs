//! The names of what a loop runs: of a callback its function's, of a task its coroutine's, of an event the protocol's class.
//!
//! A name has a number, which records and accounts refer to. What is named is not kept alive, only the strings of its name: see
//! [`crate::cpython::identity`]. The loop's owner adds names; any thread reads them.

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Mutex;

use pyo3::prelude::*;

use crate::cpython::borrowing::StateCell;
use crate::cpython::errors::no_memory;
use crate::cpython::getter::{Getter, StepGetters, coroutine_class};
use crate::cpython::identity::{Check, Guard, Identity, Reference, class_of};
use crate::cpython::object::Object;
use crate::imports::imports;
use crate::intern;

/// Names of a loop. What comes later is [`UNNAMED`].
pub const MOST: usize = (1 << 14) - 1;
/// Places of the cache, a power of two.
const CACHED: usize = 256;
/// Known tasks from which on those that are gone are looked for.
const FIRST_SEARCH: usize = 1 << 10;

/// The number of what has no name.
pub const UNNAMED: u32 = 0;

#[derive(Default)]
pub struct Names {
    /// By number, from 1 on: tuples of name, file and line.
    names: Mutex<Vec<Named>>,
    /// By the same number.
    checks: StateCell<Vec<Check>>,
    numbers: StateCell<Map<u32>>,
    /// Names that were looked up last, each at the place that its address has.
    cache: OnceCell<Box<[Cell<Cached>]>>,
    /// By address.
    tasks: StateCell<Map<Task>>,
    /// How many tasks are known when those that are gone are looked for again.
    next_search: Cell<usize>,
    /// How these are got, if not by their names.
    getters: OnceCell<Option<StepGetters>>,
}

struct Named(Object);

// SAFETY: the tuples are used and dropped by threads that are attached to the interpreter, as are those of all that belongs to a loop.
unsafe impl Send for Named {}

#[derive(Clone, Copy)]
struct Cached {
    address: usize,
    number: u32,
    /// Of a guard in `checks`, none of which is dropped before the cache; [`Reference::NONE`] for a definition.
    guard: Reference,
}

struct Task {
    guard: Guard,
    name: u32,
}

type Map<T> = HashMap<usize, T, BuildHasherDefault<AddressHasher>>;

/// Addresses differ in all but their lowest bits.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("addresses are hashed as numbers");
    }

    fn write_usize(&mut self, address: usize) {
        self.0 = (address as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Names {
    /// The number of a callable's name. The first time, Python code can run.
    #[inline]
    pub fn of_callable(&self, py: Python<'_>, callable: &Object) -> PyResult<u32> {
        let identity = Identity::of(callable);
        match self.find(identity) {
            Some(number) => Ok(number),
            None => self.name_callable(py, callable, identity),
        }
    }

    /// The number of the name of an object's class.
    #[inline]
    pub fn of_class(&self, py: Python<'_>, object: &Object) -> PyResult<u32> {
        let identity = Identity::of_class(object);
        match self.find(identity) {
            Some(number) => Ok(number),
            None => {
                self.add(py, identity, object, |py| Guard::new(py, &class_of(object)).map(Check::Guarded))
            }
        }
    }

    /// The number of the name of a task's coroutine, if the task is known.
    #[inline(always)]
    pub fn find_task(&self, address: usize) -> Option<u32> {
        let tasks = self.tasks.borrow();
        let known = tasks.get(&address)?;
        known.guard.is_of(address).then_some(known.name)
    }

    /// As [`Names::find_cached`], for the callback of a handle.
    #[inline(always)]
    pub fn find_callback(&self, identity: Option<Identity>) -> Option<u32> {
        self.find_cached(identity?)
    }

    /// The number of the name of what lives and is known by this, if it was looked up lately.
    #[inline(always)]
    pub fn find_cached(&self, identity: Identity) -> Option<u32> {
        let address = identity.address();
        let cached = self.cache.get()?[place(address)].get();
        if cached.address != address {
            return None;
        }
        let is_same = match identity {
            Identity::Definition(_) => self.checks.borrow().get(cached.number as usize - 1)?.holds(identity),
            // SAFETY: guards are not dropped before the cache. What was a definition's address can be a code's by now.
            Identity::Code(_) | Identity::Class(_) => unsafe { cached.guard.is_of(address) },
        };
        is_same.then_some(cached.number)
    }

    /// All tuples of name, file and line, by number from 1 on. For any thread. None without memory for them.
    pub fn all(&self) -> Option<Vec<Object>> {
        let names = self.names.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut all = Vec::new();
        all.try_reserve_exact(names.len()).ok()?;
        all.extend(names.iter().map(|Named(name)| name.clone()));
        Some(all)
    }

    fn find(&self, identity: Identity) -> Option<u32> {
        let found = self.find_cached(identity);
        if found.is_some() {
            return found;
        }
        let address = identity.address();
        let number = *self.numbers.borrow().get(&address)?;
        let checks = self.checks.borrow();
        let check = checks.get(number as usize - 1)?;
        if !check.holds(identity) {
            return None;
        }
        if let Some(cache) = self.cache.get() {
            let guard = match check {
                Check::Guarded(guard) => guard.reference(),
                Check::Named(_) => Reference::NONE,
            };
            cache[place(address)].set(Cached { address, number, guard });
        }
        Some(number)
    }

    #[cold]
    fn name_callable(&self, py: Python<'_>, callable: &Object, identity: Identity) -> PyResult<u32> {
        self.add(py, identity, callable, |py| match identity {
            Identity::Code(_) => {
                let function = callable.bind(py);
                let function = function.getattr_opt(intern!(py, "__func__"))?.unwrap_or(function.to_owned());
                Guard::new(py, &function.getattr(intern!(py, "__code__"))?.into()).map(Check::Guarded)
            }
            Identity::Definition(_) => Check::of_definition(callable).ok_or_else(|| no_memory(py)),
            Identity::Class(_) => Guard::new(py, &class_of(callable)).map(Check::Guarded),
        })
    }

    /// The number of the name of a task's coroutine, if it was looked up lately, and whether the coroutine has started, if it is asked for. The
    /// task need not be known.
    #[inline(always)]
    pub fn find_coroutine(
        &self,
        py: Python<'_>,
        task: &Object,
        asks_start: bool,
    ) -> Option<(u32, Option<bool>)> {
        let (code, has_started) = self.getters.get()?.as_ref()?.read(py, task, asks_start)?;
        Some((self.find_cached(Identity::Code(code))?, has_started))
    }

    /// A hash of the codes of a task's coroutines, each awaited by the one before, and of a number.
    pub fn hash_chain(&self, py: Python<'_>, task: &Object, number: u32) -> u64 {
        let getters = self.getters.get().and_then(Option::as_ref);
        getters.map_or(0, |getters| getters.hash_chain(py, task)) ^ u64::from(number)
    }

    /// The number of the name of a task's coroutine, and whether the coroutine has started. The task is not known thereby.
    pub fn name_coroutine_of(&self, py: Python<'_>, task: &Object) -> PyResult<(u32, bool)> {
        let coroutine = self.coroutine_of(py, task)?;
        let has_started = match coroutine.bind(py).getattr_opt(intern!(py, "cr_suspended"))? {
            Some(is_suspended) => is_suspended.is_truthy()?,
            None => false,
        };
        Ok((self.name_coroutine(py, &coroutine)?, has_started))
    }

    fn coroutine_of(&self, py: Python<'_>, task: &Object) -> PyResult<Object> {
        let getters = match self.getters.get() {
            Some(getters) => getters,
            None => self.find_getters(py)?,
        };
        match getters.as_ref().and_then(|getters| getters.task_coroutine.get(py, task)) {
            Some(coroutine) => coroutine,
            // A subclass, or a class of the program's.
            None => task.call_method(py, intern!(py, "get_coro"), &[]),
        }
    }

    /// The number of the name of a task's coroutine. The task is known from now on.
    pub fn name_task(&self, py: Python<'_>, task: &Object) -> PyResult<u32> {
        let coroutine = self.coroutine_of(py, task)?;
        let name = self.name_coroutine(py, &coroutine)?;
        let new = Task { guard: Guard::of_task(py, task, &imports(py)?.forget_task)?, name };
        let address = task.as_ptr() as usize;
        let mut tasks = self.tasks.borrow_mut();
        let former = match tasks.get_mut(&address) {
            Some(former) => Some(std::mem::replace(former, new)),
            None => {
                if tasks.len() >= self.next_search.get().max(FIRST_SEARCH) {
                    // Weak references, of which dropping runs no Python code.
                    tasks.retain(|_, task| !task.guard.is_dead());
                    self.next_search.set(2 * tasks.len());
                }
                if tasks.try_reserve(1).is_ok() {
                    tasks.insert(address, new);
                }
                None
            }
        };
        drop(tasks);
        drop(former);
        Ok(name)
    }

    #[cold]
    fn find_getters(&self, py: Python<'_>) -> PyResult<&Option<StepGetters>> {
        let coroutine = coroutine_class(py);
        let getters = (
            Getter::new(py, &imports(py)?.c_task, intern!(py, "_coro"))?,
            Getter::new(py, &coroutine, intern!(py, "cr_code"))?,
            Getter::new(py, &coroutine, intern!(py, "cr_suspended"))?,
            Getter::new(py, &coroutine, intern!(py, "cr_await"))?,
        );
        let getters = match getters {
            (
                Some(task_coroutine),
                Some(coroutine_code),
                Some(coroutine_suspended),
                Some(coroutine_await),
            ) => Some(StepGetters { task_coroutine, coroutine_code, coroutine_suspended, coroutine_await }),
            _ => None,
        };
        Ok(self.getters.get_or_init(|| getters))
    }

    /// The number of the name of a coroutine.
    fn name_coroutine(&self, py: Python<'_>, coroutine: &Object) -> PyResult<u32> {
        if let Some(Some(getters)) = self.getters.get()
            && let Some(code) = getters.coroutine_code.get(py, coroutine)
        {
            return self.name_code(py, &code?);
        }
        let bound = coroutine.bind(py);
        for name in [intern!(py, "cr_code"), intern!(py, "gi_code"), intern!(py, "ag_code")] {
            // A socket operation has none.
            let Some(code) = bound.getattr_opt(name)?.filter(|code| !code.is_none()) else { continue };
            return self.name_code(py, &code.into());
        }
        self.of_class(py, coroutine)
    }

    fn name_code(&self, py: Python<'_>, code: &Object) -> PyResult<u32> {
        let identity = Identity::Code(code.as_ptr() as usize);
        match self.find(identity) {
            Some(number) => Ok(number),
            None => self.add(py, identity, code, |py| Guard::new(py, code).map(Check::Guarded)),
        }
    }

    /// Gives a number to what `subject` is called by.
    #[cold]
    fn add(
        &self,
        py: Python<'_>,
        identity: Identity,
        subject: &Object,
        check: impl FnOnce(Python<'_>) -> PyResult<Check>,
    ) -> PyResult<u32> {
        let number = self.checks.borrow().len() + 1;
        if number > MOST {
            return Ok(UNNAMED);
        }
        let name = imports(py)?.name_of.call(py, &[subject])?;
        let check = check(py)?;
        if !check.holds(identity) {
            // Another thread has replaced the function's code.
            return Ok(UNNAMED);
        }
        // A number that Python code has added meanwhile comes first.
        let number = self.checks.borrow().len() + 1;
        let mut names = self.names.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (mut checks, mut numbers) = (self.checks.borrow_mut(), self.numbers.borrow_mut());
        if self.cache.get().is_none() {
            let mut cache = Vec::new();
            if cache.try_reserve_exact(CACHED).is_ok() {
                cache.resize(
                    CACHED,
                    Cell::new(Cached { address: 0, number: UNNAMED, guard: Reference::NONE }),
                );
                let _ = self.cache.set(cache.into());
            }
        }
        let has_room =
            names.try_reserve(1).is_ok() && checks.try_reserve(1).is_ok() && numbers.try_reserve(1).is_ok();
        if !has_room {
            drop((names, checks, numbers));
            return Ok(UNNAMED);
        }
        names.push(Named(name));
        checks.push(check);
        numbers.insert(identity.address(), number as u32);
        Ok(number as u32)
    }
}

fn place(address: usize) -> usize {
    (address >> 4 ^ address >> 12) & (CACHED - 1)
}
