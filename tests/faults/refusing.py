"""A disk that is full, and one that cannot be written, without a disk: the kernel refuses what this process asks for.

A filter of system calls (seccomp) needs no rights, holds for every library, and stays until the process ends: install it in a fork.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

X86 = platform.machine() == "x86_64"
WRITE, PWRITE, WRITEV, OPENAT, MKDIRAT, FALLOCATE = (1, 18, 20, 257, 258, 285) if X86 else (64, 68, 66, 56, 34, 47)
MKDIR = (MKDIRAT, 83) if X86 else (MKDIRAT,)
"""numbers of system calls"""

NUMBER, FIRST, THIRD = 0, 16, 32
"""where the filter finds the number of the call and its arguments"""

LOAD, EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def full_disk() -> None:
    """From here on there is no space for anything: ENOSPC for whatever is written to files or sockets, and for new folders."""
    _refuse(errno.ENOSPC, (PWRITE, WRITEV, FALLOCATE, *MKDIR), (WRITE, FIRST, GREATER, 2))


def read_only_disk() -> None:
    """From here on EROFS for files that are opened to write, and for new folders."""
    _refuse(errno.EROFS, MKDIR, (OPENAT, THIRD, ANY_BIT, os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _refuse(error: int, always: tuple[int, ...], where: tuple[int, int, int, int]) -> None:
    """Refuse some calls always, and one where an argument compares with a number in a way."""
    number, argument, how, value = where
    program = [(LOAD, 0, 0, NUMBER), *((EQUAL, 4 + len(always) - i, 0, call) for i, call in enumerate(always))]
    program += [(EQUAL, 1, 0, number), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, argument), (how, 1, 0, value), (RETURN, 0, 0, ALLOW)]
    code = b"".join(struct.pack("HBBI", *line) for line in [*program, (RETURN, 0, 0, REFUSE | error)])
    buffer = ctypes.create_string_buffer(code, len(code))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, filters, 0, 0):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP: SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "no filter of system calls can be installed")
