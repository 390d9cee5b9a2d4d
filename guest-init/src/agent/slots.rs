//! A few things under small numbers, which are used again.

use alloc::vec::Vec;

/// The things; their numbers stay while they are there.
pub struct Slots<T>(Vec<Option<T>>);

impl<T> Slots<T> {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one; returns its number.
    pub fn add(&mut self, thing: T) -> usize {
        if let Some(number) = self.0.iter().position(Option::is_none) {
            self.0[number] = Some(thing);
            return number;
        }
        self.0.push(Some(thing));
        self.0.len() - 1
    }

    /// The one with this number.
    pub fn get(&mut self, number: usize) -> Option<&mut T> {
        self.0.get_mut(number)?.as_mut()
    }

    /// Takes the one with this number away.
    pub fn remove(&mut self, number: usize) -> Option<T> {
        self.0.get_mut(number)?.take()
    }

    /// All of them, with their numbers.
    pub fn iter(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.0.iter_mut().enumerate().filter_map(|(number, thing)| Some((number, thing.as_mut()?)))
    }

    /// The numbers of all, as they are now.
    pub fn numbers(&self) -> Vec<usize> {
        (0..self.0.len()).filter(|number| self.0[*number].is_some()).collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.iter().flatten().count()
    }
}
