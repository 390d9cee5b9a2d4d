//! What the guest knows by number: places in the directory, each with how often the guest has looked it up.
//!
//! Numbers are never used again: a stale or forged one finds nothing.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::host;
use crate::wire::ROOT_ID;

/// A state with larger numbers is not one of ours: nobody has so many descriptors.
pub const MOST_RESTORED: usize = 1 << 24;

/// A place.
#[derive(Debug)]
pub struct Node {
    /// Opened with O_PATH. `None`: it was not found again when a state was loaded.
    pub fd: Option<OwnedFd>,
    /// What it is, on the host: device and inode.
    pub identity: (u64, u64),
    /// What kind of file; an inode's never changes.
    pub kind: FileType,
    /// How often the guest has looked it up and not forgotten it.
    pub lookups: u64,
}

impl Node {
    /// One that was looked up once.
    pub fn new(fd: OwnedFd, stat: &Stat) -> Node {
        Node { fd: Some(fd), identity: identity(stat), kind: host::kind(stat), lookups: 1 }
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// All of them. The root is the first and is never forgotten.
#[derive(Debug, Default)]
pub struct Nodes {
    /// A number is the place here, from 1 on, and above that the generation.
    slots: Vec<Option<(u32, Node)>>,
    free: Vec<u32>,
    by_identity: BTreeMap<(u64, u64), u32>,
    /// Of the next node.
    generation: u32,
}

impl Nodes {
    /// Only the root, or nothing.
    pub fn new(root: Option<Node>) -> Nodes {
        let mut nodes = Nodes::default();
        if let Some(root) = root {
            nodes.by_identity.insert(root.identity, 0);
            nodes.slots.push(Some((0, root)));
            nodes.generation = 1;
        }
        nodes
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The node of this number.
    ///
    /// Errors: ESTALE.
    pub fn get(&self, id: u64) -> Result<&Node, Errno> {
        let (index, generation) = split(id).ok_or(Errno::STALE)?;
        match self.slots.get(index) {
            Some(Some((own, node))) if *own == generation => Ok(node),
            _ => Err(Errno::STALE),
        }
    }

    /// The number of the node that `fd` is, known or new, which counts as looked up once more.
    ///
    /// Errors: ENFILE when it is new and there are `most` already.
    pub fn enter(&mut self, fd: OwnedFd, stat: &Stat, most: usize) -> Result<u64, Errno> {
        if let Some(index) = self.by_identity.get(&identity(stat))
            && let Some(Some((generation, node))) = self.slots.get_mut(*index as usize)
            // The number of an inode that is gone may be another's by now, of another kind.
            && (node.fd.is_some() || node.kind == host::kind(stat))
        {
            node.lookups = node.lookups.saturating_add(1);
            node.fd.get_or_insert(fd);
            return Ok(join(*index, *generation));
        }
        if self.len() >= most { Err(Errno::NFILE) } else { self.add(Node::new(fd, stat)) }
    }

    fn add(&mut self, node: Node) -> Result<u64, Errno> {
        let generation = self.generation;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).ok().filter(|index| *index < u32::MAX);
                self.slots.push(None);
                index.ok_or(Errno::NFILE)?
            }
        };
        self.generation = generation.wrapping_add(1);
        self.by_identity.insert(node.identity, index);
        self.slots[index as usize] = Some((generation, node));
        Ok(join(index, generation))
    }

    /// Takes `count` lookups back. What is not known, or would be below none, is not the server's to mind.
    pub fn forget(&mut self, id: u64, count: u64) {
        let Some((index, generation)) = split(id).filter(|_| id != ROOT_ID) else { return };
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some((own, node)) = slot else { return };
        if *own != generation {
            return;
        }
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0 {
            let identity = node.identity;
            *slot = None;
            let Ok(index) = u32::try_from(index) else { return };
            self.free.push(index);
            if self.by_identity.get(&identity) == Some(&index) {
                self.by_identity.remove(&identity);
            }
        }
    }

    /// Number and node of all.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Node)> {
        self.slots.iter().zip(0..).filter_map(|(slot, index)| {
            let (generation, node) = slot.as_ref()?;
            Some((join(index, *generation), node))
        })
    }

    /// The generation of the next node.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Nodes with the numbers that they had, root included. Of two with one place the first stays.
    pub fn restore(generation: u32, all: impl Iterator<Item = (u64, Node)>) -> Nodes {
        let mut nodes = Nodes { generation, ..Nodes::default() };
        for (id, node) in all {
            let Some((index, own)) = split(id).filter(|(index, _)| *index < MOST_RESTORED) else { continue };
            if nodes.slots.len() <= index {
                nodes.slots.resize_with(index + 1, || None);
            }
            if nodes.slots[index].is_none() {
                nodes.by_identity.entry(node.identity).or_insert((id & 0xffff_ffff) as u32 - 1);
                nodes.slots[index] = Some((own, node));
            }
        }
        nodes.free = nodes.slots.iter().zip(0..).filter(|(slot, _)| slot.is_none()).map(|(_, index)| index).collect();
        nodes
    }
}

fn split(id: u64) -> Option<(usize, u32)> {
    let index = usize::try_from((id & 0xffff_ffff).checked_sub(1)?).ok()?;
    Some((index, (id >> 32) as u32))
}

fn join(index: u32, generation: u32) -> u64 {
    (u64::from(generation) << 32) | (u64::from(index) + 1)
}
