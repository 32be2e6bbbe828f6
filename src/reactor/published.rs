//! Cells that one thread writes and any thread may read.
//!
//! With the GIL, a plain Cell. Without (`Py_GIL_DISABLED`), an atomic that is read and written as a plain one is: no reader sees a torn
//! value, and nothing is said of the order of two cells. Two threads that count at once may count once.

#[cfg(not(Py_GIL_DISABLED))]
pub use std::cell::Cell as Published;

#[cfg(Py_GIL_DISABLED)]
pub use atomic::{Published, Word};

#[cfg(Py_GIL_DISABLED)]
mod atomic {
    use std::marker::PhantomData;
    use std::num::NonZeroU64;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// A type whose values are 64 bits at the most.
    pub trait Word: Copy {
        fn to_word(self) -> u64;

        /// `word` is one that `to_word` has returned.
        fn from_word(word: u64) -> Self;
    }

    /// See the module's documentation.
    pub struct Published<T: Word> {
        word: AtomicU64,
        value: PhantomData<T>,
    }

    impl<T: Word> Published<T> {
        pub fn new(value: T) -> Published<T> {
            Published { word: AtomicU64::new(value.to_word()), value: PhantomData }
        }

        #[inline(always)]
        pub fn get(&self) -> T {
            T::from_word(self.word.load(Relaxed))
        }

        #[inline(always)]
        pub fn set(&self, value: T) {
            self.word.store(value.to_word(), Relaxed);
        }

        #[inline(always)]
        pub fn replace(&self, value: T) -> T {
            let former = self.get();
            self.set(value);
            former
        }

        #[inline(always)]
        pub fn take(&self) -> T
        where
            T: Default,
        {
            self.replace(T::default())
        }
    }

    impl<T: Word + Default> Default for Published<T> {
        fn default() -> Self {
            Published::new(T::default())
        }
    }

    macro_rules! integers {
        ($($type:ty),*) => {
            $(
                impl Word for $type {
                    fn to_word(self) -> u64 {
                        self as u64
                    }

                    fn from_word(word: u64) -> Self {
                        word as $type
                    }
                }
            )*
        };
    }

    integers!(u8, u32, u64, usize, i32);

    impl Word for bool {
        fn to_word(self) -> u64 {
            u64::from(self)
        }

        fn from_word(word: u64) -> Self {
            word != 0
        }
    }

    impl Word for f64 {
        fn to_word(self) -> u64 {
            self.to_bits()
        }

        fn from_word(word: u64) -> Self {
            f64::from_bits(word)
        }
    }

    impl Word for Option<NonZeroU64> {
        fn to_word(self) -> u64 {
            self.map_or(0, NonZeroU64::get)
        }

        fn from_word(word: u64) -> Self {
            NonZeroU64::new(word)
        }
    }

    /// None is a NaN that no computation has for its result.
    impl Word for Option<f64> {
        fn to_word(self) -> u64 {
            self.map_or(u64::MAX, f64::to_bits)
        }

        fn from_word(word: u64) -> Self {
            (word != u64::MAX).then(|| f64::from_bits(word))
        }
    }
}
