"""What one operation changes: records, and the kernel's part. Made in C, as each call needs one."""

from netalloc._alloc import Change

__all__ = ["Change"]
