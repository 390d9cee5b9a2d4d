//! Open files and directories by number, each of one node.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::nodes::MOST_RESTORED;

/// What is open.
#[derive(Debug)]
pub enum Open {
    /// A regular file, and the guest's flags for it.
    File(File, u32),
    /// A directory.
    Directory(OwnedFd),
}

impl Open {
    /// Its descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Open::File(file, _) => file.as_fd(),
            Open::Directory(fd) => fd.as_fd(),
        }
    }
}

/// All of them. As with nodes, a number is never used again.
#[derive(Debug, Default)]
pub struct Handles {
    slots: Vec<Option<(u32, u64, Open)>>,
    free: Vec<u32>,
    generation: u32,
}

impl Handles {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds one of `node`; gives its number.
    ///
    /// Errors: ENFILE when there is no number left.
    pub fn add(&mut self, node: u64, open: Open) -> Result<u64, Errno> {
        let generation = self.generation;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).map_err(|_| Errno::NFILE)?;
                self.slots.push(None);
                index
            }
        };
        self.generation = generation.wrapping_add(1);
        self.slots[index as usize] = Some((generation, node, open));
        Ok((u64::from(generation) << 32) | u64::from(index))
    }

    /// What is open under this number, of this node.
    ///
    /// Errors: EBADF.
    pub fn get(&self, id: u64, node: u64) -> Result<&Open, Errno> {
        match self.slots.get((id & 0xffff_ffff) as usize) {
            Some(Some((generation, own, open))) if *generation == (id >> 32) as u32 && *own == node => Ok(open),
            _ => Err(Errno::BADF),
        }
    }

    /// The regular file that is open under this number. Errors as of [`Handles::get`].
    pub fn file(&self, id: u64, node: u64) -> Result<(&File, u32), Errno> {
        match self.get(id, node)? {
            Open::File(file, flags) => Ok((file, *flags)),
            Open::Directory(_) => Err(Errno::BADF),
        }
    }

    /// Closes it. Errors as of [`Handles::get`].
    pub fn remove(&mut self, id: u64, node: u64) -> Result<(), Errno> {
        self.get(id, node)?;
        let index = (id & 0xffff_ffff) as u32;
        self.slots[index as usize] = None;
        self.free.push(index);
        Ok(())
    }

    /// Number, node and what is open, of all.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, &Open)> {
        self.slots.iter().zip(0_u64..).filter_map(|(slot, index)| {
            let (generation, node, open) = slot.as_ref()?;
            Some(((u64::from(*generation) << 32) | index, *node, open))
        })
    }

    /// The generation of the next one.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Handles with the numbers that they had.
    pub fn restore(generation: u32, all: impl Iterator<Item = (u64, u64, Open)>) -> Handles {
        let mut handles = Handles { generation, ..Handles::default() };
        for (id, node, open) in all {
            let index = (id & 0xffff_ffff) as usize;
            if index >= MOST_RESTORED {
                continue;
            }
            if handles.slots.len() <= index {
                handles.slots.resize_with(index + 1, || None);
            }
            handles.slots[index] = Some(((id >> 32) as u32, node, open));
        }
        let empty = handles.slots.iter().zip(0..).filter(|(slot, _)| slot.is_none());
        handles.free = empty.map(|(_, index)| index).collect();
        handles
    }
}
