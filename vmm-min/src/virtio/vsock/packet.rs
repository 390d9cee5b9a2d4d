//! The header that every vsock packet starts with.
//!
//! Source: virtio 1.2, 5.10.6, and `include/uapi/linux/virtio_vsock.h` in Linux.

use bitflags::bitflags;

/// Length of a header.
pub const HEADER_BYTES: usize = 44;
/// The same as the driver is told it.
pub const HEADER_WRITTEN: u32 = 44;
/// Where the host is.
pub const HOST_CID: u64 = 2;
/// Where the guest is. A stream ends at a Unix socket of the host's, so nobody else sees this number.
pub const GUEST_CID: u64 = 3;
/// The type of a packet of a stream.
pub const STREAM: u16 = 1;

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks for a connection.
    Request,
    /// There is a connection now.
    Response,
    /// There is no connection (any more).
    Reset,
    /// No more data, in the directions that the flags name.
    Shutdown,
    /// Data.
    Data,
    /// Only the credit that every header carries.
    CreditUpdate,
    /// Asks for a [`Operation::CreditUpdate`].
    CreditRequest,
}

impl Operation {
    /// The operation with this number.
    pub fn from_number(number: u16) -> Option<Operation> {
        Some(match number {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::Data,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            _ => return None,
        })
    }

    /// Its number.
    pub fn number(self) -> u16 {
        match self {
            Operation::Request => 1,
            Operation::Response => 2,
            Operation::Reset => 3,
            Operation::Shutdown => 4,
            Operation::Data => 5,
            Operation::CreditUpdate => 6,
            Operation::CreditRequest => 7,
        }
    }
}

bitflags! {
    /// What the sender of a [`Operation::Shutdown`] will not do any more.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Shut: u32 {
        /// Receive.
        const RECEIVE = 1;
        /// Send.
        const SEND = 2;
    }
}

/// A header. All values are as the sender wrote them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender.
    pub source_cid: u64,
    /// Receiver.
    pub target_cid: u64,
    /// Port of the sender.
    pub source_port: u32,
    /// Port of the receiver.
    pub target_port: u32,
    /// Bytes of data after the header.
    pub bytes: u32,
    /// Type of the connection: [`STREAM`].
    pub kind: u16,
    /// Number of the [`Operation`].
    pub operation: u16,
    /// Of a [`Operation::Shutdown`]: [`Shut`].
    pub flags: u32,
    /// Bytes that the sender can hold for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender's user has taken, ever, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Header {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Header {
            source_cid: long(0),
            target_cid: long(8),
            source_port: word(16),
            target_port: word(20),
            bytes: word(24),
            kind: half(28),
            operation: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    /// The header as it is sent.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.target_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.target_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The answer that there is no such connection.
    pub fn reset_of(&self) -> Header {
        Header {
            source_cid: self.target_cid,
            target_cid: self.source_cid,
            source_port: self.target_port,
            target_port: self.source_port,
            kind: self.kind,
            operation: Operation::Reset.number(),
            ..Header::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_header_survives(bytes in proptest::array::uniform32(0u8..), rest in proptest::array::uniform12(0u8..)) {
            let mut header = [0; HEADER_BYTES];
            header[..32].copy_from_slice(&bytes);
            header[32..].copy_from_slice(&rest);
            prop_assert_eq!(Header::parse(&header).to_bytes(), header);
        }

        #[test]
        fn numbers_are_of_their_operations(number: u16) {
            prop_assert_eq!(Operation::from_number(number).map(Operation::number), (1..=7).contains(&number).then_some(number));
        }
    }

    #[test]
    fn fields_are_where_the_specification_says() {
        let header =
            Header { target_cid: 2, bytes: 0x1234, kind: STREAM, operation: 5, fwd_cnt: 7, ..Header::default() };
        let bytes = header.to_bytes();
        assert_eq!((bytes[8], &bytes[24..26], bytes[28], bytes[30], bytes[40]), (2, &[0x34, 0x12][..], 1, 5, 7));
    }
}
