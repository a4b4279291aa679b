"""Runs one untrusted program and its tests: `sandbox.py` starts this file in a new interpreter.

It reads a JSON object from the descriptor that its argument names, gives up what the program shall not have,
runs the program, then its tests, and writes the given token if both came to their end.
"""

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
import types

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {  # numbers of refused system calls on x86_64 and aarch64; 0: not there
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, 0),
    "vfork": (58, 0),
    "execve": (59, 221),
    "execveat": (322, 281),
    "unshare": (272, 97),
    "setns": (308, 268),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
}
X32 = (
    0x40000000  # numbers of a second interface of x86_64 begin here, which the filter refuses whole
)
AREAS = "socket", "subprocess", "ctypes", "pty", "signal", "resource", "syslog", "fcntl", "mmap"
CHANGES = "os", "shutil", "tempfile"
HARMLESS = "os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.chdir", "os.putenv", "os.unsetenv"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit(seconds: int, memory: int):
    """Sets the kernel's limits: CPU seconds, bytes of memory, no byte of any file, no further process."""
    for name, most in [
        ("CPU", seconds),
        ("AS", memory),
        ("FSIZE", 0),
        ("NOFILE", 32),
        ("NPROC", 0),
        ("CORE", 0),
    ]:
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            with contextlib.suppress(OSError, ValueError):  # macOS knows no limit of memory
                resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def forbid():
    """Asks Linux to end this process with its parent, and to refuse processes, sockets, signals and changes
    of files from now on. A kernel without one of these filters leaves that one out."""
    if sys.platform != "linux":
        return
    libc, none = ctypes.CDLL(None), ctypes.c_ulong(0)
    libc.prctl(1, ctypes.c_ulong(signal.SIGKILL), none, none, none)  # PR_SET_PDEATHSIG
    libc.prctl(38, ctypes.c_ulong(1), none, none, none)  # PR_SET_NO_NEW_PRIVS
    # Landlock: the rights to execute, write, make and remove files, all but reading, are granted nowhere
    truncating = libc.syscall(444, None, ctypes.c_size_t(0), 1) >= 3  # the kernel's version
    rights = struct.pack("Q", 0x1FFF & ~0b1100 | truncating << 14)
    ruleset = libc.syscall(444, rights, ctypes.c_size_t(8), 0)
    if ruleset >= 0:
        libc.syscall(446, ruleset, 0)
        os.close(ruleset)
    if platform.machine() in MACHINES:
        column = list(MACHINES).index(platform.machine())
        load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
        refuse, kill, allow = 0x00050000 | errno.EPERM, 0x80000000, 0x7FFF0000
        steps = [(load, 0, 0, 4), (equal, 1, 0, MACHINES[platform.machine()])]
        steps += [(give, 0, 0, kill), (load, 0, 0, 0)]
        tests = [(at_least, X32), *((equal, x[column]) for x in CALLS.values() if x[column])]
        for test, number in tests:
            steps += [(test, 0, 1, number), (give, 0, 0, refuse)]
        steps.append((give, 0, 0, allow))
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *x) for x in steps))
        program = struct.pack("HP", len(steps), ctypes.addressof(code))
        libc.prctl(22, ctypes.c_ulong(2), program, none, none)  # PR_SET_SECCOMP


def guard(event: str, args: tuple):
    """Raises PermissionError for what a program may not do; an audit hook (PEP 578), which stays for good."""
    area = event.partition(".")[0]
    if event == "open":
        refused = bool(args[2] & WRITING)
    else:
        refused = area in AREAS or (area in CHANGES and event not in HARMLESS)
    if refused:
        raise PermissionError(f"{event} is not allowed here")


def main(fd: int):
    """Runs the program and the tests that `fd` gives, and answers on it."""
    with open(os.dup(fd), "rb") as stream:
        task = json.load(stream)
    module = types.ModuleType("program")
    sys.modules["program"] = module
    run, write, token, space = exec, os.write, task["token"].encode(), vars(module)
    tests = compile(task["tests"], "<tests>", "exec")
    limit(task["seconds"], task["memory"])
    forbid()
    sys.addaudithook(guard)
    run(compile(task["code"], "<program>", "exec"), space)
    run(tests, space)
    write(fd, token)


if __name__ == "__main__":
    main(int(sys.argv[1]))
