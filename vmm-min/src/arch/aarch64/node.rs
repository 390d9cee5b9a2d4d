//! Device trees as data: nodes with properties, to bytes and back.
//!
//! Source: Devicetree Specification 0.4, 5 (the flattened format).

use vm_fdt::{FdtReserveEntry, FdtWriter};

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
/// Nodes within nodes: as deep as [`FdtWriter`] goes.
const MOST_DEPTH: usize = 64;

/// A node and all below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name and unit address; empty at the root.
    pub name: String,
    /// Names and values, in order.
    pub properties: Vec<(String, Vec<u8>)>,
    /// In order.
    pub children: Vec<Node>,
}

impl Node {
    /// A node with a name and nothing else.
    pub fn new(name: impl Into<String>) -> Node {
        Node { name: name.into(), ..Node::default() }
    }

    /// Gives a property a value: bytes.
    pub fn set(&mut self, name: &str, value: Vec<u8>) {
        match self.properties.iter_mut().find(|(own, _)| own == name) {
            Some((_, old)) => *old = value,
            None => self.properties.push((name.into(), value)),
        }
    }

    /// With a property of bytes; without any, it is true by being there.
    pub fn bytes(mut self, name: &str, value: &[u8]) -> Node {
        self.set(name, value.into());
        self
    }

    /// With a property of strings.
    pub fn strings(self, name: &str, values: &[&str]) -> Node {
        let value: Vec<u8> = values.iter().flat_map(|value| value.bytes().chain([0])).collect();
        self.bytes(name, &value)
    }

    /// With a property of 32-bit numbers.
    pub fn cells(self, name: &str, values: &[u32]) -> Node {
        let value: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
        self.bytes(name, &value)
    }

    /// With a property of 64-bit numbers.
    pub fn wide(self, name: &str, values: &[u64]) -> Node {
        let value: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
        self.bytes(name, &value)
    }

    /// With a node in it.
    pub fn child(mut self, child: Node) -> Node {
        self.children.push(child);
        self
    }

    /// Value of a property.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.properties.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_slice())
    }
}

/// A whole device tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Its root.
    pub root: Node,
    /// Memory that the guest's kernel leaves alone: address and length.
    pub reserved: Vec<(u64, u64)>,
}

impl Tree {
    /// The flattened form. Errors: names and sizes that the format does not have.
    pub fn to_bytes(&self) -> Result<Vec<u8>, vm_fdt::Error> {
        let entry = |(address, bytes): &(u64, u64)| FdtReserveEntry::new(*address, *bytes);
        let reserved = self.reserved.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let mut writer = FdtWriter::new_with_mem_reserv(&reserved)?;
        write(&mut writer, &self.root)?;
        writer.finish()
    }

    /// Reads the flattened form. Errors: what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Tree, &'static str> {
        let word = |index: usize| Reader { bytes, at: index * 4 }.word();
        if word(0) != Ok(MAGIC) {
            return Err("it is no flattened device tree");
        }
        let total = offset(word(1)?)?;
        let bytes = bytes.get(..total).ok_or("it is cut off")?;
        let mut reserved = Vec::new();
        let mut reader = Reader { bytes, at: offset(word(4)?)? };
        loop {
            match (reader.long()?, reader.long()?) {
                (0, 0) => break,
                pair => reserved.push(pair),
            }
        }
        let strings = bytes.get(offset(word(3)?)?..).ok_or("its strings lie beyond its end")?;
        let mut reader = Reader { bytes, at: offset(word(2)?)? };
        let mut tokens = Tokens { reader: &mut reader, strings };
        if tokens.next()? != BEGIN_NODE {
            return Err("it has no root");
        }
        Ok(Tree { root: tokens.node(MOST_DEPTH)?, reserved })
    }
}

fn write(writer: &mut FdtWriter, node: &Node) -> Result<(), vm_fdt::Error> {
    let open = writer.begin_node(&node.name)?;
    for (name, value) in &node.properties {
        writer.property(name, value)?;
    }
    for child in &node.children {
        write(writer, child)?;
    }
    writer.end_node(open)
}

fn offset(word: u32) -> Result<usize, &'static str> {
    usize::try_from(word).map_err(|_| "it is too large")
}

/// Where in the bytes the reading has come to.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let end = self.at.checked_add(count).ok_or("it is cut off")?;
        let taken = self.bytes.get(self.at..end).ok_or("it is cut off")?;
        self.at = end;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, &'static str> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| "it is cut off")
    }

    fn long(&mut self) -> Result<u64, &'static str> {
        Ok((u64::from(self.word()?) << 32) | u64::from(self.word()?))
    }
}

struct Tokens<'r, 'a> {
    reader: &'r mut Reader<'a>,
    strings: &'a [u8],
}

impl Tokens<'_, '_> {
    fn next(&mut self) -> Result<u32, &'static str> {
        loop {
            match self.reader.word()? {
                NOP => {}
                token => return Ok(token),
            }
        }
    }

    fn align(&mut self) {
        self.reader.at = self.reader.at.next_multiple_of(4);
    }

    /// A node whose first token is read already; nodes in it go `depth` deeper.
    fn node(&mut self, depth: usize) -> Result<Node, &'static str> {
        let depth = depth.checked_sub(1).ok_or("its nodes are too deep")?;
        let name = text(self.reader.bytes.get(self.reader.at..).ok_or("it is cut off")?)?;
        let mut node = Node::new(name);
        self.reader.take(name.len() + 1)?;
        self.align();
        loop {
            match self.next()? {
                BEGIN_NODE => node.children.push(self.node(depth)?),
                END_NODE => return Ok(node),
                PROPERTY => {
                    let (bytes, name) = (offset(self.reader.word()?)?, offset(self.reader.word()?)?);
                    let value = self.reader.take(bytes)?.to_vec();
                    self.align();
                    let name = text(self.strings.get(name..).ok_or("a property has no name")?)?;
                    node.properties.push((name.into(), value));
                }
                END => return Err("it ends in a node"),
                _ => return Err("it has a token that is none"),
            }
        }
    }
}

/// The terminated string that `bytes` begin with.
fn text(bytes: &[u8]) -> Result<&str, &'static str> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or("a name does not end")?;
    std::str::from_utf8(&bytes[..end]).map_err(|_| "a name is not text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, proptest};

    fn tree() -> Tree {
        let inner = Node::new("b@1").strings("compatible", &["x", "y"]).bytes("flag", &[]);
        let root = Node::new("").cells("#size-cells", &[2]).child(Node::new("a").child(inner)).child(Node::new("c"));
        Tree { root, reserved: vec![(0x1000, 0x2000)] }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = tree().to_bytes().expect("a tree");
        assert_eq!(Tree::parse(&bytes), Ok(tree()));
        let longer = [bytes.as_slice(), &[0; 100]].concat();
        assert_eq!(Tree::parse(&longer), Ok(tree()), "a file may be longer");
    }

    #[test]
    fn no_piece_of_it_is_one() {
        let bytes = tree().to_bytes().expect("a tree");
        for end in 0..bytes.len() {
            assert!(Tree::parse(&bytes[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn nodes_end_somewhere() {
        let mut bytes = tree().to_bytes().expect("a tree");
        let start = bytes.len();
        (0..1000).for_each(|_| bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]));
        let (total, start) = (u32::try_from(bytes.len()).expect("small"), u32::try_from(start).expect("small"));
        bytes[4..8].copy_from_slice(&total.to_be_bytes());
        bytes[8..12].copy_from_slice(&start.next_multiple_of(4).to_be_bytes());
        assert!(Tree::parse(&bytes).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn damaged_trees_are_read_or_refused(at in 0usize..200, value in any::<u8>(), more in any::<u8>()) {
            let mut bytes = tree().to_bytes().expect("a tree");
            let length = bytes.len();
            bytes[at % length] = value;
            bytes[(at + 3) % length] = more;
            let _: Result<Tree, &str> = Tree::parse(&bytes);
        }
    }
}
