"""Compiles the decision core and the simulator, for long experiments. Usage: .venv/bin/python packaging/accelerate.py

Makes .venv/accelerated: a copy of the five packages in which the modules of scheduler and simulator are compiled by
mypyc, from the very same source, and a command .venv/bin/gridnode-accelerated that runs it. Results are the same to
the last digit; only a C compiler is needed besides the environment for development. Daemons never use it: devices have
no compiler, and what a compiled daemon would save was measured (docs/adr/0009-daemons-are-not-compiled.md).

Records (msgspec.Struct) stay as they are: msgspec builds their classes itself.
"""

import ast
import hashlib
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / ".venv" / "accelerated"
COMMAND = ROOT / ".venv" / "bin" / "gridnode-accelerated"
PACKAGES = ("gridnode", "scheduler", "transport", "models", "simulator")
COMPILED = ("scheduler", "simulator")

SCRIPT = '''#!{python} -P
"""The gridnode command on the compiled copy of its packages; made by packaging/accelerate.py."""
import sys

sys.path.insert(0, {root!r} + "/packaging")
import accelerate

if accelerate.fingerprint(accelerate.ROOT) != (accelerate.TARGET / "fingerprint").read_text():
    raise SystemExit("error: the sources have changed since they were compiled; run 'make accelerated' again")
sys.path[0] = {target!r}
import os

# Processes that a sweep starts are to find the same copy.
os.environ["PYTHONPATH"] = {target!r}
from gridnode.cli.main import main

raise SystemExit(main())
'''


def fingerprint(root):
    """Return a digest of all sources."""
    state = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            state.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


def is_record_module(path):
    """Return whether a module defines records, which msgspec's metaclass has to build."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            is_struct = any(ast.unparse(base) == "msgspec.Struct" for base in node.bases)
            if is_struct or any(keyword.arg == "frozen" for keyword in node.keywords):
                return True
    return False


def may_be_floats(value):
    """Return whether an expression may be a tuple of nothing but floats."""
    if isinstance(value, ast.BinOp):
        return may_be_floats(value.left) or may_be_floats(value.right)
    if not isinstance(value, ast.Tuple):
        return False
    return all(
        isinstance(each, ast.Name | ast.Attribute | ast.BinOp)
        or (isinstance(each, ast.Constant) and isinstance(each.value, float))
        for each in value.elts
    )


def caught(function):
    """Return, by the name that it is bound to, what a function catches."""
    types = {}
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name:
            types.setdefault(node.name, set()).add(ast.unparse(node.type))
    return types


def traps(source):
    """Return what mypyc (2.4) compiles without a word to something else than it says, as "line: what and remedy"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "Final" and may_be_floats(node.value):
            found.append(f"{node.lineno}: a constant tuple of floats reads as not set; say Final[tuple[float, ...]]")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name, types in caught(node).items():
                if len(types) > 1:
                    message = f"{node.lineno}: all that is caught as {name!r} has to be of the first one's type"
                    found.append(f"{message}; give each its name")
    return found


def modules():
    """Return the modules to compile, relative to the root."""
    paths = [path for package in COMPILED for path in sorted((ROOT / package).rglob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in paths if path.name != "__init__.py" and not is_record_module(path)]


def main():
    """Copy, compile, and write the command."""
    chosen = modules()
    wrong = [f"{name}:{trap}" for name in chosen for trap in traps((ROOT / name).read_text())]
    if wrong:
        raise SystemExit("error: this would not do the same when compiled:\n" + "\n".join(wrong))
    shutil.rmtree(TARGET, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, TARGET / package, ignore=shutil.ignore_patterns("__pycache__"))
    (TARGET / "mypy.ini").write_text("[mypy]\nexplicit_package_bases = True\nmypy_path = .\n")
    sys.stderr.write(f"compiling {len(chosen)} modules of {' and '.join(COMPILED)}, about a minute\n")
    mypyc = [sys.executable, "-m", "mypyc", "--config-file", "mypy.ini", *chosen]
    done = subprocess.run(mypyc, cwd=TARGET, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-4000:])
        raise SystemExit("error: compiling failed; is there a C compiler (apt install gcc)? The plain command works")
    shutil.rmtree(TARGET / "build", ignore_errors=True)
    (TARGET / "fingerprint").write_text(fingerprint(ROOT))
    COMMAND.write_text(SCRIPT.format(python=sys.executable, root=str(ROOT), target=str(TARGET)))
    COMMAND.chmod(0o755)
    sys.stderr.write(f"made {COMMAND.relative_to(ROOT)}; use it in place of gridnode\n")


if __name__ == "__main__":
    main()
