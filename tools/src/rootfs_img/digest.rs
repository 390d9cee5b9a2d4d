//! SHA-256 of a tree: of everything in it, in the order of its paths, in a form that means one thing only.

use sha2::{Digest, Sha256};

use super::tree::{Body, Inode, Node, ROOT, Tree};
use crate::fault::Result;

/// Hashes attributes, names and links; `body` adds what it wants of a file's body.
pub fn digest(tree: &Tree, mut body: impl FnMut(&Body, &mut Sha256) -> Result<()>) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    put_inode(&mut bytes, &tree.inodes()[ROOT]);
    let mut pending = vec![ROOT];
    while let Some(id) = pending.pop() {
        for (name, child) in tree.names(id) {
            // The numbers of inodes follow the order of names: equal trees have equal ones, and hard links show.
            put_number(&mut bytes, id);
            put_number(&mut bytes, child);
            put_bytes(&mut bytes, name);
            let inode = &tree.inodes()[child];
            put_inode(&mut bytes, inode);
            hash.update(&bytes);
            bytes.clear();
            match &inode.node {
                Node::Directory(_) => pending.push(child),
                Node::File(place, _) => body(place, &mut hash)?,
                _ => {}
            }
        }
    }
    hash.update(&bytes);
    Ok(hash.finalize().into())
}

fn put_inode(bytes: &mut Vec<u8>, inode: &Inode) {
    let meta = &inode.meta;
    bytes.extend(meta.mode.to_le_bytes());
    for number in [meta.uid, meta.gid, meta.mtime.1] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(meta.mtime.0.to_le_bytes());
    put_number(bytes, meta.xattrs.len());
    for (name, value) in &meta.xattrs {
        put_bytes(bytes, name.as_bytes());
        put_bytes(bytes, value);
    }
    let mut device = |kind: u8, major: u32, minor: u32| {
        bytes.push(kind);
        bytes.extend(major.to_le_bytes());
        bytes.extend(minor.to_le_bytes());
    };
    match &inode.node {
        Node::Char(major, minor) => device(b'c', *major, *minor),
        Node::Block(major, minor) => device(b'b', *major, *minor),
        Node::Fifo => bytes.push(b'p'),
        Node::Directory(_) => bytes.push(b'd'),
        Node::File(_, len_bytes) => {
            bytes.push(b'f');
            bytes.extend(len_bytes.to_le_bytes());
        }
        Node::Symlink(target) => {
            bytes.push(b'l');
            put_bytes(bytes, target);
        }
    }
}

fn put_number(bytes: &mut Vec<u8>, number: usize) {
    bytes.extend((number as u64).to_le_bytes());
}

fn put_bytes(bytes: &mut Vec<u8>, text: &[u8]) {
    put_number(bytes, text.len());
    bytes.extend_from_slice(text);
}
