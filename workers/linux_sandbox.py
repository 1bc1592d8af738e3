"""What the Linux kernel offers to confine the calling process; each call raises OSError if refused.

Thin wrappers of system calls, by numbers of their own where the C library has no function: network
namespaces (unshare), capabilities (capset), Landlock (landlock(7)), seccomp filters (seccomp(2)),
and two process flags (prctl(2)). All of it holds for the calling thread and what it starts, so call
it while there is one thread only. No permission is ever given back.
"""

import ctypes
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_AF_INET, _AF_INET6, _AF_NETLINK, _NETLINK_ROUTE = 2, 10, 16, 0
_CAPABILITY_VERSION_3 = 0x20080522

# The same numbers on every architecture.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# Files, folders, links and pipes are made and removed; devices and sockets are not.
_MAKE_DEVICES = 1 << 6 | 1 << 11
_FIRST_RIGHTS = (1 << 13) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_TCP = 1 | 2  # bind, connect
_SCOPES = 1 | 2  # abstract sockets, signals to processes outside
_RULE = struct.Struct("=Qi")

_SECCOMP_FILTER, _SPEC_ALLOW = 1, 4
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOWED, _REFUSED = 0x7FFF0000, 0x00050000 | 13  # EACCES
_INSTRUCTION = struct.Struct("=HBBI")
_ARGUMENTS = 16
"""Where in `seccomp_data` the arguments of a call begin, of eight bytes each (little-endian)."""
_X32 = 0x40000000


@dataclass(frozen=True)
class _Architecture:
    """How a processor architecture numbers what is used here."""

    audit: int
    seccomp: int
    refused: tuple[int, ...]


_ARCHITECTURES: Mapping[str, _Architecture] = {
    # socket, ptrace, process_vm_readv and _writev, io_uring_setup (which opens sockets as well),
    # unshare, setns, mount, open_by_handle_at, bpf, add_key, request_key, keyctl, perf_event_open,
    # userfaultfd: the engine uses none of them.
    "x86_64": _Architecture(
        0xC000003E,
        317,
        (41, 101, 310, 311, 425, 272, 308, 165, 304, 321, 248, 249, 250, 298, 323),
    ),
    "aarch64": _Architecture(
        0xC00000B7,
        277,
        (198, 117, 270, 271, 425, 97, 268, 40, 265, 280, 217, 218, 219, 241, 282),
    ),
}

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: int | bytes | None) -> int:
    as_long = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    return _checked(int(_libc.syscall(ctypes.c_long(number), *as_long)))


def _prctl(option: int, *values: int) -> None:
    given = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    _checked(int(_libc.prctl(option, *given)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def leave_network() -> None:
    """Move to a network namespace of its own, without any interface that is up; needs privilege."""
    _checked(int(_libc.unshare(_CLONE_NEWNET)))


def raise_loopback() -> None:
    """Bring up the loopback interface of this process's own network namespace; needs privilege."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", _IFF_UP)
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def forbid_dumps() -> None:
    """Let no process without privilege read this one's memory or environment, or trace it."""
    _prctl(_PR_SET_DUMPABLE, 0)


def forbid_privileges() -> None:
    """Let no program that is started gain privileges (set-user-ID, file capabilities)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability, also as root."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked(int(_libc.capset(header, bytes(24))))


def landlock_version() -> int:
    """Return the version of Landlock that this kernel offers. Raises: OSError where it has none."""
    return _call(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)


def restrict_files(
    *,
    readable: Iterable[Path],
    usable: Iterable[Path],
    writable: Iterable[Path],
    may_connect: bool = False,
) -> None:
    """Let this process open nothing but these files, and what lies below these folders.

    `readable` is read and executed, `usable` (devices) is read and written, in `writable` files are
    made and removed as well; what does not exist is left out. Where the kernel knows how, TCP, and
    signals and abstract sockets that lead to processes outside, are refused too; TCP is not with
    `may_connect`, for a process in a network namespace of its own.
    """
    version = landlock_version()
    handled = _FIRST_RIGHTS | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", 0 if may_connect else _TCP)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    rules = _call(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    try:
        read = _EXECUTE | _READ_FILE | _READ_DIR
        for paths, rights in (
            (readable, read),
            (usable, (_OF_FILES & ~_EXECUTE) | _READ_DIR),
            (writable, handled & ~_MAKE_DEVICES),
        ):
            for path in paths:
                _allow(rules, path, rights & handled)
        _call(_LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # not there, or closed to this user anyway
        return
    try:
        is_folder = path.is_dir()
        rule = _RULE.pack(rights if is_folder else rights & _OF_FILES, opened)
        _call(_LANDLOCK_ADD, rules, _LANDLOCK_PATH_BENEATH, rule, 0)
    finally:
        os.close(opened)


def filter_calls(*, may_connect: bool = False) -> None:
    """Refuse sockets, tracing and other system calls that the engine does not use, with EACCES.

    With `may_connect`, sockets of the internet protocols are allowed, and those by which a process
    lists its interfaces; those of the file system, and all others, stay refused.
    Raises: OSError also on a processor architecture whose numbers are not known here.
    """
    machine = _ARCHITECTURES.get(platform.machine())
    if machine is None:
        raise OSError(f"the numbers of system calls of {platform.machine()} are not known")
    program = _program(machine, may_connect=may_connect)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    # Without the flag, older kernels would switch speculation off, which costs speed.
    _call(machine.seccomp, _SECCOMP_FILTER, _SPEC_ALLOW, header)


def _program(machine: _Architecture, *, may_connect: bool = False) -> bytes:
    """Return the filter as classic BPF: load a field of `seccomp_data`, compare, jump, return."""
    # The first number is that of `socket`.
    numbers = machine.refused[1:] if may_connect else machine.refused
    # Relative jumps: from instruction i to the refusal, which is the last one.
    last = len(numbers) + 5
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 0, last - 2, machine.audit), (_LOAD, 0, 0, 0)]
    lines.append((_AT_LEAST, last - 4, 0, _X32))
    for place, number in enumerate(numbers, start=4):
        lines.append((_EQUAL, last - place - 1, 0, number))
    lines += [(_RETURN, 0, 0, _ALLOWED), (_RETURN, 0, 0, _REFUSED)]
    if may_connect:
        # Before all that: of `socket`, the family is argument 0, and the protocol argument 2.
        check = [
            (_LOAD, 0, 0, 0),
            (_EQUAL, 0, 9, machine.refused[0]),
            (_LOAD, 0, 0, _ARGUMENTS),
            (_EQUAL, 6, 0, _AF_INET),
            (_EQUAL, 5, 0, _AF_INET6),
            (_EQUAL, 0, 3, _AF_NETLINK),
            (_LOAD, 0, 0, _ARGUMENTS + 16),
            (_EQUAL, 0, 1, _NETLINK_ROUTE),
            (_RETURN, 0, 0, _ALLOWED),
            (_RETURN, 0, 0, _REFUSED),
            (_RETURN, 0, 0, _ALLOWED),
        ]
        # After the check of the architecture, whose numbers these are.
        lines[2:2] = check
        lines[1] = (_EQUAL, 0, lines[1][2] + len(check), machine.audit)
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)
