//! A check that debug builds make: no Python code runs while state of the core is borrowed.
//!
//! Python code can call back into the loop, where a second borrow would panic. [`StateCell`] is a RefCell that counts, in
//! debug builds, how many borrows the thread has; each way into Python asserts that there is none.

use std::cell::{BorrowError, BorrowMutError, Ref, RefCell, RefMut};
use std::ops::{Deref, DerefMut};

#[cfg(debug_assertions)]
thread_local! {
    static BORROWED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Asserts that this thread has borrowed nothing.
pub fn check() {
    #[cfg(debug_assertions)]
    BORROWED.with(|borrowed| {
        assert_eq!(borrowed.get(), 0, "Python code would run while state of the core is borrowed");
    });
}

/// Counts as a borrow while it lives.
struct Counted;

impl Counted {
    fn new() -> Counted {
        #[cfg(debug_assertions)]
        BORROWED.with(|borrowed| borrowed.set(borrowed.get() + 1));
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        BORROWED.with(|borrowed| borrowed.set(borrowed.get() - 1));
    }
}

/// State that Python code must not find borrowed.
#[derive(Default)]
pub struct StateCell<T>(RefCell<T>);

impl<T> StateCell<T> {
    pub const fn new(value: T) -> StateCell<T> {
        StateCell(RefCell::new(value))
    }

    #[track_caller]
    pub fn borrow(&self) -> StateRef<'_, T> {
        StateRef { state: self.0.borrow(), _counted: Counted::new() }
    }

    #[track_caller]
    pub fn borrow_mut(&self) -> StateMut<'_, T> {
        StateMut { state: self.0.borrow_mut(), _counted: Counted::new() }
    }

    /// For the garbage collector, which can come at any time.
    pub fn try_borrow(&self) -> Result<StateRef<'_, T>, BorrowError> {
        Ok(StateRef { state: self.0.try_borrow()?, _counted: Counted::new() })
    }

    pub fn try_borrow_mut(&self) -> Result<StateMut<'_, T>, BorrowMutError> {
        Ok(StateMut { state: self.0.try_borrow_mut()?, _counted: Counted::new() })
    }

    #[track_caller]
    pub fn replace(&self, value: T) -> T {
        self.0.replace(value)
    }

    #[track_caller]
    pub fn take(&self) -> T
    where
        T: Default,
    {
        self.0.take()
    }
}

pub struct StateRef<'a, T> {
    state: Ref<'a, T>,
    _counted: Counted,
}

impl<T> Deref for StateRef<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.state
    }
}

pub struct StateMut<'a, T> {
    state: RefMut<'a, T>,
    _counted: Counted,
}

impl<T> Deref for StateMut<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.state
    }
}

impl<T> DerefMut for StateMut<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.state
    }
}
