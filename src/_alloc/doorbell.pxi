# Doorbell: sleeping at a file until another process rings.
#
# It is the kernel's futex(2), on words of the file that count the rings. The kernel alone reads
# and writes them by way of this memory: so a file that is cut off meanwhile makes it refuse, and
# no process die of SIGBUS.

cdef extern from *:
    """
    #include <errno.h>
    #include <linux/futex.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    #ifdef SYS_futex
    typedef long na_seconds;
    #else  /* newer machines of 32 bits have that one alone */
    #define SYS_futex SYS_futex_time64
    typedef int64_t na_seconds;
    #endif
    #define NA_BELLS 2

    static uint32_t *na_map(int fd, long offset) {
        void *found = mmap(NULL, NA_BELLS * 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
        return found == MAP_FAILED ? NULL : (uint32_t *)found;
    }

    static void na_unmap(uint32_t *bells) { munmap(bells, NA_BELLS * 4); }

    /* 0 when it was woken, or else the reason. */
    static int na_sleep(uint32_t *bell, uint32_t seen, double seconds) {
        na_seconds left[2] = {(na_seconds)seconds, 0};
        left[1] = (na_seconds)((seconds - left[0]) * 1e9);
        return syscall(SYS_futex, bell, FUTEX_WAIT, seen, left, NULL, 0) ? errno : 0;
    }

    /* One more, and then one is woken; a second one where the count was -1, once in 2**32. */
    static int na_ring(uint32_t *bell) {
        int more = FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, -1);
        return syscall(SYS_futex, bell, FUTEX_WAKE_OP, 1, (void *)0, bell, more) < 0 ? errno : 0;
    }
    """
    int NA_BELLS
    uint32_t *na_map(int fd, long offset)
    void na_unmap(uint32_t *bells)
    int na_sleep(uint32_t *bell, uint32_t seen, double seconds) nogil
    int na_ring(uint32_t *bell)
    int errno, EAGAIN, EINTR, ETIMEDOUT

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cdef class Doorbell:
    """Two bells at a place of a file, where processes sleep until one is rung."""

    cdef uint32_t *bells

    def __cinit__(self, int fd, long offset, /):
        self.bells = na_map(fd, offset)
        if self.bells is NULL:
            raise OSError(errno, "cannot have the file in memory")

    def __dealloc__(self):
        if self.bells is not NULL:
            na_unmap(self.bells)

    def __reduce__(self):
        raise TypeError("a Doorbell cannot be pickled: it is of a file that is open here")

    cdef uint32_t *of(self, int bell) except NULL:
        if not 0 <= bell < NA_BELLS:
            raise OutOfRangeError(f"{bell} is not in 0 to {NA_BELLS - 1}")
        return self.bells + bell

    def sleep(self, int bell, bytes seen, double seconds, /):
        """Whether it was rung since it was seen like that, or within so many seconds."""
        cdef uint32_t *at = self.of(bell)
        cdef uint32_t count
        cdef int reason
        if len(seen) != <Py_ssize_t>sizeof(count):
            raise OSError("the file is cut off before its bells")
        memcpy(&count, PyBytes_AS_STRING(seen), sizeof(count))
        with nogil:
            reason = na_sleep(at, count, seconds)
        if reason == EINTR:
            PyErr_CheckSignals()
        elif reason not in (0, EAGAIN, ETIMEDOUT):
            raise OSError(reason, "cannot sleep at the file")
        return reason in (0, EAGAIN)

    def ring(self, int bell, /):
        """Wake the one that has slept longest there."""
        cdef int reason = na_ring(self.of(bell))
        if reason:
            raise OSError(reason, "cannot ring at the file")
