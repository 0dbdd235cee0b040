"""Code pages are handed back and come again; what exists in memory alone is let be."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# In a process of its own: this one's pages are other tests' business. ctypes, ssl and zlib bring libraries with tables
# that the linker has written to.
SCRIPT = """
import ctypes, hashlib, re, ssl, sys, zlib
from pathlib import Path
from models import codepages

def resident_kb():
    return int(re.search(r"^Rss: +([0-9]+)", Path("/proc/self/smaps_rollup").read_text(), re.M)[1])

def mappings():
    kind = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = re.match("([0-9a-f]+)-([0-9a-f]+) ([rwxps-]{4}) [0-9a-f]+ [^ ]+ [0-9]+ *(.*)", line)
        if head:
            kind = head
        elif line.startswith("Anonymous:"):
            yield int(kind[1], 16), kind[3], kind[4], int(line.split()[1])

ranges = codepages.clean_ranges()
starts = {start for start, _ in ranges}
for start, rights, path, own_kb in mappings():
    is_clean = path.startswith("/") and rights in ("r--p", "r-xp") and own_kb == 0
    assert (start in starts) <= is_clean, (rights, path, own_kb)
assert any(rights == "r--p" and own_kb and path.startswith("/") for _, rights, path, own_kb in mappings())
before_kb = resident_kb()
for _ in range(3):
    codepages.give_back(ranges)
    after_kb = resident_kb()
    assert ssl.create_default_context() and zlib.compress(b"x" * 999) and hashlib.sha256(b"x").hexdigest()
print(before_kb, after_kb)
"""


def test_a_process_gives_back_its_code_and_goes_on():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before_kb, after_kb = map(int, done.stdout.split())
    assert after_kb < before_kb - 2000
