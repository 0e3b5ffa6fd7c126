# cython: language_level=3, binding=False, always_allow_keywords=False
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, embedsignature.format=clinic, freethreading_compatible=True
"""Methods that do nothing, with the signatures and the compiler directives of the core's.

What they cost is what Python asks for the call, the least that the core's could cost.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t


cdef class Empty:
    """Holds numbers as large as the ones that the core returns."""

    cdef uint64_t ordinal
    cdef uint32_t address

    def __cinit__(self):
        self.ordinal = 2**24 - 12345
        self.address = 0x0A000000 + 12345

    @cython.critical_section
    def acquire(self):
        """Bitmap.acquire."""
        return self.ordinal

    @cython.critical_section
    def acquire_int(self, *, allow_cooling=False):
        """IPAllocator.acquire_int."""
        return self.address

    @cython.critical_section
    def release(self, uint64_t i):
        """Bitmap.release."""
        self.ordinal = i
