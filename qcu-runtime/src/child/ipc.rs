//! The transport between `qcu` and its child: packets with descriptors, and tables in sealed memfds.
//!
//! One side writes a table once, into a memfd, and the other reads it in place. The memfd is sealed, so neither side can change or
//! shrink it while the other reads.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr::{self, NonNull},
    sync::Arc,
};

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::{
    MetadataVersion,
    convert::fb_to_schema,
    reader::{FileDecoder, read_footer_length},
    root_as_footer,
    writer::{FileWriter, IpcWriteOptions},
};
use arrow_schema::{ArrowError, SchemaRef};
use tokio::io::{Interest, unix::AsyncFd};

use super::protocol::MESSAGE_BYTES_MAX;
use crate::unit::INPUTS_MAX;

/// Most descriptors in one packet; the kernel's own limit is 253.
pub(super) const FDS_MAX: usize = INPUTS_MAX;

const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
/// The seals that make a mapping safe to read: nobody can change its bytes or its length.
const SEALS_NEEDED: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE;
/// The magic at the end of an Arrow file and the length before it.
const TRAILER_BYTES: usize = 10;
const WRITE_BUFFER_BYTES: usize = 64 << 10;

pub(crate) fn cvt(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Writes a table into a new sealed memfd, as an Arrow IPC file. Blocks while it copies the table.
///
/// # Errors
/// The kernel's (no memory) or Arrow's (batches of another schema).
pub fn write_table(schema: &SchemaRef, batches: &[RecordBatch]) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a nul-terminated literal; the result is checked before use.
    let fd = cvt(unsafe { libc::memfd_create(c"trellis".as_ptr(), flags) })?;
    // SAFETY: the descriptor was just made and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    // aligned to 64 bytes, so that every reader may use its widest instructions in place
    let options = IpcWriteOptions::try_new(64, false, MetadataVersion::V5).map_err(arrow)?;
    let buffered = BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
    let mut writer = FileWriter::try_new_with_options(buffered, schema, options).map_err(arrow)?;
    for batch in batches {
        writer.write(batch).map_err(arrow)?;
    }
    writer.finish().map_err(arrow)?;
    let mut buffered = writer.into_inner().map_err(arrow)?;
    buffered.flush()?;
    let file = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
    // SAFETY: a plain fcntl on a descriptor that is open.
    cvt(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) })?;
    Ok(file.into())
}

/// Reads a table in place from a sealed memfd. The batches keep the mapping alive. Blocks while it checks the table.
///
/// # Errors
/// `InvalidData` if the descriptor is no sealed memfd, or the memfd holds no Arrow IPC file.
pub fn read_table(fd: &OwnedFd) -> io::Result<(SchemaRef, Vec<RecordBatch>)> {
    decode(&map(fd)?)
}

struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is read-only and, being sealed, never changes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
// Arrow drops it with the last buffer, possibly during a panic; it has no invariant that a panic could break
impl std::panic::RefUnwindSafe for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those that mmap returned, unmapped once, here.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

fn map(fd: &OwnedFd) -> io::Result<Buffer> {
    // SAFETY: a plain fcntl; for what is no memfd it fails.
    let seals = cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) })
        .map_err(|_| invalid("the table is not in a memfd"))?;
    if seals & SEALS_NEEDED != SEALS_NEEDED {
        return Err(invalid("the table's memfd is not sealed"));
    }
    // SAFETY: stat is plain data, for which zeros are valid.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: both the descriptor and the pointer are valid for the call.
    cvt(unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) })?;
    let bytes = usize::try_from(stat.st_size).map_err(|_| invalid("the table has no size"))?;
    if bytes <= TRAILER_BYTES {
        return Err(invalid("the table is too short"));
    }
    // SAFETY: a new read-only mapping at an address of the kernel's choice; the result is checked.
    let address =
        unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let address = NonNull::new(address.cast::<u8>()).ok_or_else(|| invalid("mapped at null"))?;
    let mapping = Arc::new(Mapping { address, bytes });
    // SAFETY: `bytes` bytes at `address` are readable until `mapping` is dropped, which the buffer owns, and cannot change.
    Ok(unsafe { Buffer::from_custom_allocation(address, bytes, mapping) })
}

fn decode(file: &Buffer) -> io::Result<(SchemaRef, Vec<RecordBatch>)> {
    let end = file.len() - TRAILER_BYTES;
    let trailer: [u8; TRAILER_BYTES] = file[end..].try_into().map_err(|_| invalid("no trailer"))?;
    let length = read_footer_length(trailer).map_err(arrow)?;
    if length > end {
        return Err(invalid("the footer is longer than the table"));
    }
    let footer = root_as_footer(&file[end - length..end]).map_err(|e| invalid(&e.to_string()))?;
    let schema = footer.schema().ok_or_else(|| invalid("the table has no schema"))?;
    let schema: SchemaRef = Arc::new(fb_to_schema(schema));
    let mut decoder = FileDecoder::new(schema.clone(), footer.version());
    let block = |offset: i64, header: i32, body: i64| {
        let offset = usize::try_from(offset).ok()?;
        let bytes = usize::try_from(i64::from(header).checked_add(body)?).ok()?;
        offset.checked_add(bytes).filter(|end| *end <= file.len())?;
        Some(file.slice_with_length(offset, bytes))
    };
    let outside = || invalid("a block lies outside the table");
    for at in footer.dictionaries().iter().flatten() {
        let bytes = block(at.offset(), at.metaDataLength(), at.bodyLength()).ok_or_else(outside)?;
        decoder.read_dictionary(at, &bytes).map_err(arrow)?;
    }
    let mut batches = Vec::new();
    for at in footer.recordBatches().iter().flatten() {
        let bytes = block(at.offset(), at.metaDataLength(), at.bodyLength()).ok_or_else(outside)?;
        batches.extend(decoder.read_record_batch(at, &bytes).map_err(arrow)?);
    }
    Ok((schema, batches))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn arrow(error: ArrowError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Makes a packet socket. Returns both ends; both close on exec.
///
/// # Errors
/// The kernel's: out of descriptors.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for two descriptors.
    cvt(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    // SAFETY: both were just made and nobody else has them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Makes a descriptor awaitable. Call it inside a Tokio runtime.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor from here until `AsyncFd` drops it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// One packet.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) text: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// The parent's end.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: AsyncFd<OwnedFd>,
}

impl Channel {
    /// Takes one end of [`socket_pair`]. Call it inside a Tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watch(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Sends one packet: all of it or nothing. Cancel safe.
    pub(crate) async fn send(&self, text: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        if text.len() > MESSAGE_BYTES_MAX || fds.len() > FDS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a packet beyond the protocol's limits"));
        }
        self.socket.async_io(Interest::WRITABLE, |socket| send(socket.as_raw_fd(), text, fds)).await
    }

    /// Waits for the next packet. `None` if the other side has closed. Cancel safe.
    pub(crate) async fn receive(&self) -> io::Result<Option<Packet>> {
        self.socket.async_io(Interest::READABLE, |socket| receive(socket.as_raw_fd())).await
    }
}

/// Space for the control message with [`FDS_MAX`] descriptors, aligned for its header.
type Control = [u64; 40];
// the header is 16 bytes, and lengths are rounded up to 8
const _: () = assert!(mem::size_of::<Control>() >= 16 + 4 * FDS_MAX + 8);

fn send(socket: RawFd, text: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
    let mut control: Control = [0; 40];
    // SAFETY: msghdr is plain data, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let payload = u32::try_from(mem::size_of_val(fds)).map_err(|_| invalid("too many descriptors"))?;
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: arithmetic on a length.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as _;
        // SAFETY: `control` is aligned and large enough (see the assertion above) for a header and the descriptors, so
        // the first header exists and the writes stay inside.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(payload) as _;
            let data = libc::CMSG_DATA(first).cast::<RawFd>();
            for (i, fd) in fds.iter().enumerate() {
                data.add(i).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the header points at live buffers of the lengths it states.
    let sent = unsafe { libc::sendmsg(socket, &header, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(socket: RawFd) -> io::Result<Option<Packet>> {
    let mut text = vec![0_u8; MESSAGE_BYTES_MAX];
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    let mut control: Control = [0; 40];
    // SAFETY: msghdr is plain data, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = mem::size_of_val(&control) as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the header points at live buffers of the lengths it states.
    let got = unsafe { libc::recvmsg(socket, &mut header, flags) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;

    // take the descriptors first, so that they are closed even if the packet is refused
    let mut fds = Vec::new();
    // SAFETY: the kernel filled `control`; the macros walk only what it says is there, and each descriptor is new and ours.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&header);
        while !next.is_null() {
            if (*next).cmsg_level == libc::SOL_SOCKET && (*next).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*next).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(next).cast::<RawFd>();
                for i in 0..bytes / mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            next = libc::CMSG_NXTHDR(&header, next);
        }
    }
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(invalid("a packet beyond the protocol's limits"));
    }
    if got == 0 && fds.is_empty() {
        return Ok(None);
    }
    text.truncate(got);
    Ok(Some(Packet { text, fds }))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use arrow_array::{Float64Array, Int64Array, RecordBatch};

    use super::*;
    use crate::client::testing::{Row, part};

    #[test]
    fn a_table_is_read_in_place() {
        let batch = RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from_iter_values(0..1000)) as _)])
            .unwrap();
        let fd = write_table(&batch.schema(), std::slice::from_ref(&batch)).unwrap();
        let mapped = map(&fd).unwrap();
        let (schema, back) = decode(&mapped).unwrap();
        assert_eq!((schema, &back[0]), (batch.schema(), &batch));
        let at = back[0].column(0).to_data().buffers()[0].as_ptr() as usize;
        let inside = mapped.as_ptr() as usize..mapped.as_ptr() as usize + mapped.len();
        assert!(inside.contains(&at));
        drop((mapped, fd));
        assert_eq!(back[0], batch, "the batches keep the mapping");
    }

    #[test]
    fn symbols_and_no_rows_travel_too() {
        let rows: Vec<Row> =
            (0..50).map(|i| (format!("S{}", i / 10), i, (i % 3 > 0).then_some(0.5))).collect();
        let answer = part(&rows, 7, &["NONE"]);
        let (schema, back) = read_table(&write_table(&answer.schema, &answer.batches).unwrap()).unwrap();
        assert_eq!((schema, back), (answer.schema.clone(), answer.batches));
        let (schema, back) = read_table(&write_table(&answer.schema, &[]).unwrap()).unwrap();
        assert_eq!((schema, back.len()), (answer.schema, 0));
    }

    #[test]
    fn what_is_not_sealed_not_a_memfd_or_not_arrow_is_refused() {
        // SAFETY: as in write_table.
        let memfd = || unsafe {
            File::from_raw_fd(cvt(libc::memfd_create(c"t".as_ptr(), libc::MFD_ALLOW_SEALING)).unwrap())
        };
        let mut open = memfd();
        open.write_all(&[7; 4096]).unwrap();
        let refused = |fd: OwnedFd| read_table(&fd).unwrap_err().to_string();
        assert!(refused(open.try_clone().unwrap().into()).contains("not sealed"));
        // SAFETY: a plain fcntl.
        unsafe { libc::fcntl(open.as_fd().as_raw_fd(), libc::F_ADD_SEALS, SEALS) };
        assert!(refused(open.into()).contains("footer"));
        assert!(refused(tempfile::tempfile().unwrap().into()).contains("not in a memfd"));
    }

    #[test]
    fn any_damage_to_a_table_is_an_error_or_other_values_but_no_crash() {
        let values = Float64Array::from_iter_values((0..64).map(f64::from));
        let batch = RecordBatch::try_from_iter([("a", Arc::new(values) as _)]).unwrap();
        let whole = map(&write_table(&batch.schema(), &[batch]).unwrap()).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 0x81;
            // Arrow's reader itself may panic on some; the supervisor reads on a thread of its own for that
            let _ = std::panic::catch_unwind(|| decode(&Buffer::from(&bytes[..])).map(|_| ()));
        }
    }

    #[tokio::test]
    async fn packets_keep_their_bounds_and_bring_descriptors() {
        let (a, b) = socket_pair().unwrap();
        let (a, b) = (Channel::new(a).unwrap(), Channel::new(b).unwrap());
        let fds: Vec<OwnedFd> = (0..FDS_MAX).map(|_| tempfile::tempfile().unwrap().into()).collect();
        a.send(b"one", &[]).await.unwrap();
        a.send(&vec![b'x'; MESSAGE_BYTES_MAX], &fds).await.unwrap();
        assert_eq!(b.receive().await.unwrap().unwrap().text, b"one");
        let packet = b.receive().await.unwrap().unwrap();
        assert_eq!((packet.text.len(), packet.fds.len()), (MESSAGE_BYTES_MAX, FDS_MAX));
        assert!(a.send(&vec![0; MESSAGE_BYTES_MAX + 1], &[]).await.is_err());
        drop(a);
        assert!(b.receive().await.unwrap().is_none());
    }
}
