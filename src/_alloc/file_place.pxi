# FilePlace: whether a path still leads to the file that was opened. os.stat() makes an object of
# ten times the cost of the call, and every change asks twice.

cdef extern from "<sys/stat.h>":
    ctypedef unsigned long dev_t
    ctypedef unsigned long ino_t
    struct stat_buffer "stat":
        dev_t st_dev
        ino_t st_ino
    int stat_path "stat"(const char *path, stat_buffer *) noexcept

cdef extern from "<errno.h>":
    int errno
    int ENOENT

cdef extern from "Python.h":
    object PyErr_SetFromErrnoWithFilename(object kind, const char *name)


@cython.final
cdef class FilePlace:
    """A path, and the file that it led to: its device and inode."""

    cdef bytes path
    cdef dev_t device
    cdef ino_t inode

    def __init__(self, bytes path not None, device, inode):
        self.path = path
        self.device = device
        self.inode = inode

    def is_there(self):
        """Whether the path leads to that file now. Raises OSError where it cannot be told."""
        cdef stat_buffer now
        if stat_path(PyBytes_AS_STRING(self.path), &now):
            if errno == ENOENT:
                return False
            PyErr_SetFromErrnoWithFilename(OSError, PyBytes_AS_STRING(self.path))
        return now.st_ino == self.inode and now.st_dev == self.device
