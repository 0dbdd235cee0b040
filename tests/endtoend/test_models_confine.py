import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import confine

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SCRIPT = """
import ctypes, errno, json, os, resource, signal, socket, sys, tempfile, threading, mmap
import encodings.idna
sys.path.insert(0, sys.argv[1])
from models import confine

folder = tempfile.mkdtemp()
victim = os.path.join(folder, "victim")
with open(victim, "w") as file:
    file.write("secret")
empty = os.path.join(folder, "empty")
os.mkdir(empty)
both = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
shared = os.memfd_create("shared")
os.ftruncate(shared, 4096)

def attempt(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    except MemoryError:
        return "MemoryError"
    return "done"

def thread():
    other = threading.Thread(target=int)
    other.start()
    other.join()

def exchange():
    both[0].send(b"x")
    assert both[1].recv(10) == b"x"

def write_shared():
    with mmap.mmap(shared, 4096) as mapping:
        mapping[:4] = b"data"

def system_call(number, *arguments):
    if ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

isolated = confine.isolate(parent=os.getppid(), readable=["/usr", "/lib", "/lib64", "/proc"])
after_isolate = {
    "read_other": attempt(lambda: open(victim).read()),
    "read_library_folder": attempt(lambda: os.listdir("/usr/lib")),
    "write_file": attempt(lambda: open(victim, "w")),
    "interfaces": open("/proc/net/dev").read().count(":"),
    "connect": attempt(lambda: socket.create_connection(("127.0.0.1", 9), timeout=1)),
}
sealed = confine.seal(memory_bytes=64 << 20, empty_folder=sys.argv[2] or empty)
after_seal = {
    "socket": attempt(socket.socket),
    "unix_socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
    "socketpair": attempt(socket.socketpair),
    "read_file": attempt(lambda: open("/usr/bin/env", "rb")),
    "write_file": attempt(lambda: os.open(victim, os.O_WRONLY)),
    "create_file": attempt(lambda: os.open("new", os.O_CREAT | os.O_WRONLY)),
    "unlink": attempt(lambda: os.unlink(victim)),
    "mkdir": attempt(lambda: os.mkdir("folder")),
    "fork": attempt(os.fork),
    "execute": attempt(lambda: os.execv("/usr/bin/true", ["true"])),
    "kill_parent": attempt(lambda: os.kill(os.getppid(), 0)),
    "ptrace": attempt(lambda: system_call(101 if os.uname().machine == "x86_64" else 117, 16, os.getppid(), 0, 0)),
    "unshare": attempt(lambda: system_call(272 if os.uname().machine == "x86_64" else 97, 0x10000000)),
    "grow_shared": attempt(lambda: os.ftruncate(shared, 8192)),
    "take_256_MiB": attempt(lambda: bytearray(256 << 20)),
    "raise_limit": attempt(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (9, 9))),
    "thread": attempt(thread),
    "exchange_on_open_socket": attempt(exchange),
    "write_shared_memory": attempt(write_shared),
    "take_8_MiB": attempt(lambda: bytearray(8 << 20)),
}
report = {"isolated": isolated.reached, "sealed": sealed.reached, "missing": isolated.missing + sealed.missing,
          "after_isolate": after_isolate, "after_seal": after_seal, "parent": os.getppid()}
sys.stdout.write(json.dumps(report))
sys.stdout.flush()
"""


@functools.cache
def report(root=""):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT), root], capture_output=True, timeout=60, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def needs(step):
    """Skip where this kernel, or the sandbox the tests run in, does not allow a step."""
    missing = [entry for entry in report()["missing"] if entry.startswith(step)]
    if missing:
        pytest.skip(missing[0])


@pytest.mark.parametrize("step", ["no-new-privileges", "dies-with-parent", "no-file-writes"])
def test_steps_that_every_kernel_knows_are_reached(step):
    assert step in report()["isolated"]


def test_every_step_is_either_reached_or_named_with_a_reason():
    seen = report()["isolated"] + report()["sealed"] + [entry.partition(":")[0] for entry in report()["missing"]]
    assert sorted(seen) == sorted(
        [
            "no-new-privileges",
            "namespaces",
            "dies-with-parent",
            "few-capabilities",
            "no-file-writes",
            "landlock-libraries",
            "memory-limit",
            "no-files",
            "landlock-all",
            "no-capabilities",
            "system-call-filter",
        ]
    )


def test_files_outside_of_the_libraries_are_gone_while_libraries_load():
    needs("landlock-libraries")
    assert report()["after_isolate"]["read_other"] == "EACCES"
    assert report()["after_isolate"]["write_file"] == "EACCES"
    assert report()["after_isolate"]["read_library_folder"] == "done"


def test_the_network_is_empty():
    needs("namespaces")
    assert report()["after_isolate"]["interfaces"] <= 1
    assert report()["after_isolate"]["connect"] != "done"


@pytest.mark.parametrize(
    "action",
    [
        "socket",
        "unix_socket",
        "socketpair",
        "write_file",
        "create_file",
        "unlink",
        "mkdir",
        "fork",
        "execute",
        "kill_parent",
        "ptrace",
        "unshare",
        "raise_limit",
    ],
)
def test_the_filter_refuses(action):
    needs("system-call-filter")
    assert report()["after_seal"][action] == "EPERM"


def test_the_root_folder_is_an_empty_one():
    needs("no-files")
    assert report()["after_seal"]["read_file"] != "done"


def test_no_file_can_be_read_after_sealing_wherever_the_root_is():
    needs("landlock-all")
    assert report(root="/")["after_seal"]["read_file"] == "EACCES"


def test_shared_memory_cannot_be_grown():
    assert report()["after_seal"]["grow_shared"] == "EFBIG"


def test_memory_is_bounded():
    needs("memory-limit")
    assert report()["after_seal"]["take_256_MiB"] == "MemoryError"
    assert report()["after_seal"]["take_8_MiB"] == "done"


@pytest.mark.parametrize("action", ["thread", "exchange_on_open_socket", "write_shared_memory"])
def test_what_a_worker_needs_still_works(action):
    assert report()["after_seal"][action] == "done"


def test_the_table_names_each_system_call_once_per_machine():
    for column in (0, 1):
        numbers = [pair[column] for pair in confine.SYSCALLS.values() if pair[column] >= 0]
        assert len(set(numbers)) == len(numbers)
        assert min(numbers) > 0
