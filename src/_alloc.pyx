# cython: language_level=3, binding=False, always_allow_keywords=False
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, embedsignature.format=clinic, autotestdict=False
# cython: freethreading_compatible=True
"""The core: sets of ordinals and of addresses, and the conversions. No I/O but to look at a path.

`binding=False` and `always_allow_keywords=False` are worth 27 % of a call. Each file of
_alloc/ that is included here is one idea, and the order is that of reading:

    tree                the radix tree of bits: one ordinal at a time, and searching
    tree_few            blocks in which few are set, as lists
    tree_bulk           many ordinals at a time: ranges, buffers, contiguous runs
    tree_codec          the tree as bytes
    values              what callers give: checked, converted, shown in errors
    bitmap              Bitmap: the tree as a Python set of ordinals
    buffers             its methods for many at a time, shared with IPAllocator
    address_objects     IPv4Address and IPv6Address without the cost of their constructors
    conversions         parsing, and the functions ip_to_int to network_size
    subnet              Subnet: which addresses may be given, and the ordinal of each
    cooldown_queue      what cools down, and until when
    allocator           IPAllocator: a Subnet with a Bitmap laid over its ordinals
    allocator_cooldown  a caller's clock, and taking back what has cooled
    allocator_codec     an IPAllocator as bytes
    journaled_bitmap    a Bitmap whose changes are noted, and undone
    record_table        records in memory, by key and by index, with the same journal
    call_objects        what every allocation makes: a record, a change, an interface
    mapping_state       what a port mapping says
    memory_state        a store in memory, and changing it in turns
    rows                a record as a row of a file, with its checksum
    stored_bitmap       of a bitmap in a file, what every call does
    file_place          whether a path still leads to the file that was opened
    file_change         a transaction of a file, its statements, and making it alone
    doorbell            sleeping at a file until another process rings

No method releases the GIL but the one that sleeps: the longest, a million addresses at once,
takes about a millisecond, and giving it up would cost every short call a lock (29 ns on
Python 3.11).
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from operator import index
from os import getpid
from reprlib import Repr
from sys import byteorder as _byteorder
from time import monotonic
from zlib import crc32

from netalloc.errors import (
    ExhaustedError, InUseError, InvalidValueError, NetallocError, NotAllocatedError,
    OutOfRangeError, StoreError,
)

include "_alloc/tree.pxi"
include "_alloc/tree_few.pxi"
include "_alloc/tree_bulk.pxi"
include "_alloc/tree_codec.pxi"
include "_alloc/values.pxi"
include "_alloc/bitmap.pxi"
include "_alloc/buffers.pxi"
include "_alloc/address_objects.pxi"
include "_alloc/conversions.pxi"
include "_alloc/subnet.pxi"
include "_alloc/cooldown_queue.pxi"
include "_alloc/allocator.pxi"
include "_alloc/allocator_cooldown.pxi"
include "_alloc/allocator_codec.pxi"
include "_alloc/journaled_bitmap.pxi"
include "_alloc/record_table.pxi"
include "_alloc/call_objects.pxi"
include "_alloc/mapping_state.pxi"
include "_alloc/memory_state.pxi"
include "_alloc/rows.pxi"
include "_alloc/stored_bitmap.pxi"
include "_alloc/file_place.pxi"
include "_alloc/file_change.pxi"
include "_alloc/doorbell.pxi"
