"""Taking rights away from the process that runs a model. Linux only, needs no root, imports no third party.

Owns the system calls for it. Knows nothing of models. Two calls, because some steps need a process without threads
and others must not come before the libraries are loaded:

isolate(), first thing in the process: no new privileges, death with the parent, small resource limits, a network
(and user, and mount) namespace of its own, Landlock rules that leave only library folders readable.

seal(), when all is imported and before the model is read: memory limit, an empty folder as the root, Landlock
without any rule, no capabilities, a system-call filter.

A step that the kernel or the surrounding sandbox (systemd, a container) does not allow is skipped and named; steps
overlap on purpose, so that the filter still refuses sockets where namespaces are forbidden. The boundary protects
the node from a model, not one tenant's data from another's: all requests of a model share its process.

References: landlock(7), seccomp(2), user_namespaces(7), prctl(2), getrlimit(2); system-call numbers from the
kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

FILES_MAX: Final = 64
"""Open files of a worker; it has about ten."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_CLONE_THREAD: Final = 0x00010000
_CAP_SYS_CHROOT: Final = 1 << 18
_CAPABILITY_VERSION_3: Final = 0x20080522

_LANDLOCK_READ: Final = (1 << 2) | (1 << 3)
_LANDLOCK_FILE: Final = 1 << 2
_LANDLOCK_FS_BITS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""File rights that a Landlock version knows; later versions know as many as 5."""

SYSCALLS: Final[dict[str, tuple[int, int]]] = {
    "accept": (43, 202),
    "accept4": (288, 242),
    "add_key": (248, 217),
    "bind": (49, 200),
    "bpf": (321, 280),
    "chmod": (90, -1),
    "chown": (92, -1),
    "chroot": (161, 51),
    "connect": (42, 203),
    "creat": (85, -1),
    "delete_module": (176, 106),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fchmodat": (268, 53),
    "fchownat": (260, 54),
    "finit_module": (313, 273),
    "fork": (57, -1),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "lchown": (94, -1),
    "link": (86, -1),
    "linkat": (265, 37),
    "listen": (50, 201),
    "lsetxattr": (189, 6),
    "mkdir": (83, -1),
    "mkdirat": (258, 34),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    "mount": (165, 40),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "reboot": (169, 142),
    "rename": (82, -1),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "request_key": (249, 218),
    "rmdir": (84, -1),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setns": (308, 268),
    "setxattr": (188, 5),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "symlink": (88, -1),
    "symlinkat": (266, 36),
    "tkill": (200, 130),
    "truncate": (76, 45),
    "umount2": (166, 39),
    "unlink": (87, -1),
    "unlinkat": (263, 35),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, -1),
}
"""Refused system calls: (x86-64, aarch64), -1 where the machine has none. What a model's arithmetic never needs."""

_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column in the tables here, and the audit architecture the filter must see."""
_SECCOMP: Final = (317, 277)
_CAPSET: Final = (126, 91)
_OPEN: Final = (2, -1)
_OPENAT: Final = (257, 56)
_OPENAT2: Final = (437, 437)
_CLONE: Final = (56, 220)
_CLONE3: Final = (435, 435)
_TGKILL: Final = (234, 131)
_PRLIMIT64: Final = (302, 261)
_LANDLOCK_CREATE: Final = 444
_LANDLOCK_ADD: Final = 445
_LANDLOCK_RESTRICT: Final = 446

_X32_BIT: Final = 0x40000000
_WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_NOT_BELOW: Final = 0x35
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_REFUSE: Final = 0x00050000 | errno.EPERM
_ABSENT: Final = 0x00050000 | errno.ENOSYS
_NUMBER_OFFSET: Final = 0
_ARCHITECTURE_OFFSET: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken away from a process."""

    reached: tuple[str, ...]
    """Names of the steps that hold."""
    missing: tuple[str, ...]
    """Steps that could not be done, each as ``name: reason``."""


def isolate(*, parent: int, readable: Sequence[str]) -> Confinement:
    """Cut the calling process off from network, other processes and most files, before it has a second thread.

    Parameters
    ----------
    parent : int
        Process id of the parent, with which this process is to die.
    readable : sequence of str
        Folders and files that stay readable until seal(): those the process's libraries are in.

    Raises
    ------
    SystemExit
        The parent is gone already.
    """
    steps = _Steps()
    steps.take("no-new-privileges", _forbid_new_privileges)
    steps.take("namespaces", _leave_namespaces)
    # After the namespaces: a change of credentials clears the parent-death signal.
    steps.take("dies-with-parent", lambda: _die_with_parent(parent))
    steps.take("few-capabilities", lambda: _keep_capabilities(_CAP_SYS_CHROOT))
    steps.take("no-file-writes", _limit_files)
    steps.take("landlock-libraries", lambda: _landlock(readable))
    return steps.result()


def seal(*, memory_bytes: int | None, empty_folder: str | None, shared_bytes: int = 0) -> Confinement:
    """Take away what only loading libraries needed. Call before the process starts threads of its own.

    Parameters
    ----------
    memory_bytes : int or None
        Memory the process may take beyond what it has now; None for no limit (drivers of accelerators map
        terabytes of addresses).
    empty_folder : str or None
        Becomes the root folder, and no file can be opened any more; None where drivers still need files.
    shared_bytes : int
        Addresses it may have beside those, for others' memory that it maps.
    """
    steps = _Steps()
    if memory_bytes is not None:
        steps.take("memory-limit", lambda: _limit_memory(memory_bytes, shared_bytes))
    if empty_folder is not None:
        steps.take("no-files", lambda: _leave_files(empty_folder))
        steps.take("landlock-all", lambda: _landlock(()))
    steps.take("no-capabilities", lambda: _keep_capabilities(0))
    steps.take("system-call-filter", _filter_system_calls)
    return steps.result()


class _Steps:
    """Takes steps and notes which held."""

    def __init__(self) -> None:
        self._reached: list[str] = []
        self._missing: list[str] = []

    def take(self, name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            self._missing.append(f"{name}: {error.strerror or error}")
        else:
            self._reached.append(name)

    def result(self) -> Confinement:
        return Confinement(reached=tuple(self._reached), missing=tuple(self._missing))


def _checked(result: int) -> int:
    """Turn the -1 of a C call into OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _column() -> int:
    """Return this machine's column in the tables; raises OSError where there is none."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOTSUP, f"machine {machine} is not in the tables")
    return _ARCHITECTURES[machine][0]


def _forbid_new_privileges() -> None:
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _die_with_parent(parent: int) -> None:
    """Ask for SIGKILL at the parent's end, and leave at once where it has ended before we could ask."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


def _leave_namespaces() -> None:
    """Get a network without interfaces; as an ordinary user this takes a user namespace too."""
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS) != 0:
        _checked(_libc.unshare(_CLONE_NEWNET))


def _keep_capabilities(kept: int) -> None:
    """Drop all capabilities but these; the kernel ignores those we do not hold."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    for mask in (kept, 0):
        data = struct.pack("=6I", mask, mask, 0, 0, 0, 0)
        if _libc.syscall(_CAPSET[_column()], header, data) == 0:
            return
    _checked(-1)


def _limit_files() -> None:
    """No core dumps, no bytes written to any file, few descriptors. Sockets and shared memory stay usable."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_NOFILE, FILES_MAX)


def _limit_memory(memory_bytes: int, shared_bytes: int) -> None:
    """Bound private memory (RLIMIT_DATA), and addresses (RLIMIT_AS) with as much again for mere reservations.

    Others' memory is mapped for reading only, so that it does not count as private.
    """
    # Bytes, because a codec would be a module to load, and modules may be out of reach by now.
    fields = Path("/proc/self/statm").read_bytes().split()
    page = resource.getpagesize()
    _lower(resource.RLIMIT_DATA, int(fields[5]) * page + memory_bytes)
    _lower(resource.RLIMIT_AS, int(fields[0]) * page + 2 * memory_bytes + shared_bytes)


def _lower(limit: int, value: int) -> None:
    """Lower a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(limit)
    wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(limit, (wanted, wanted))
    except ValueError as error:
        # How Python reports EPERM here: a sandbox around us forbids the call.
        raise OSError(errno.EPERM, str(error)) from error


def _leave_files(empty_folder: str) -> None:
    os.chroot(empty_folder)
    os.chdir("/")


def _landlock(readable: Sequence[str]) -> None:
    """Deny every file right, TCP and signals to outsiders, save reading beneath these paths."""
    version = _checked(_libc.syscall(_LANDLOCK_CREATE, None, 0, 1))
    rights = (1 << _LANDLOCK_FS_BITS.get(version, 16)) - 1
    # Version 4 knows TCP bind and connect, version 6 abstract sockets and signals outside of the sandbox.
    fields = [rights] + ([0b11] if version >= 4 else []) + ([0b11] if version >= 6 else [])
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _checked(_libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0))
    try:
        for path in readable:
            _landlock_allow(ruleset, path)
        _checked(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)


def _landlock_allow(ruleset: int, path: str) -> None:
    """Let a folder's files, or one file, be read; what does not exist is left out."""
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = _LANDLOCK_READ if Path(path).is_dir() else _LANDLOCK_FILE
        _checked(_libc.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, target), 0))
    finally:
        os.close(target)


def _filter_system_calls() -> None:
    """Install the filter in all threads of the process."""
    column = _column()
    program = b"".join(struct.pack("=HBBI", *step) for step in _filter_program(column, os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _checked(_libc.syscall(_SECCOMP[column], 1, 1, described))


def _filter_program(column: int, pid: int) -> list[tuple[int, int, int, int]]:
    """Return the filter as classic BPF: (operation, jump if true, jump if false, constant) each.

    Everything is allowed but SYSCALLS, other machines' system calls, opening for writing, new processes (threads
    are fine), signals to others and limits of others.
    """
    architecture = next(audit for place, audit in _ARCHITECTURES.values() if place == column)
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_JUMP_NOT_BELOW, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for numbers in SYSCALLS.values():
        if numbers[column] >= 0:
            steps += [(_JUMP_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _REFUSE)]
    for number in (_CLONE3[column], _OPENAT2[column]):
        # Their flags lie behind a pointer, out of a filter's sight; libraries fall back to the older call.
        steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ABSENT)]
    steps += _judge(_CLONE[column], 0, (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD))
    steps += _judge(_OPENAT[column], 2, (_JUMP_ANY_BIT, 1, 0, _WRITE_FLAGS))
    if _OPEN[column] >= 0:
        steps += _judge(_OPEN[column], 1, (_JUMP_ANY_BIT, 1, 0, _WRITE_FLAGS))
    steps += _judge(_TGKILL[column], 0, (_JUMP_EQUAL, 0, 1, pid))
    steps += _judge(_PRLIMIT64[column], 0, (_JUMP_EQUAL, 0, 1, 0))
    return [*steps, (_RETURN, 0, 0, _ALLOW)]


def _judge(number: int, argument: int, test: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """Allow one system call where the low half of an argument passes a test (jump 0), else refuse it (jump 1)."""
    return [
        (_JUMP_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, 16 + 8 * argument),
        test,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
