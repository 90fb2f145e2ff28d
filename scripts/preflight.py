"""Before anything is installed: is what pip cannot bring here? Standard library alone.

One dependency (fastecdsa, of libp2p) has no wheels for Linux and macOS and is compiled: that takes a C compiler,
Python's headers and GMP's. What is missing is named together with the one command that brings it.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

PROBE = "#include <Python.h>\n#include <gmp.h>\nint main(void) { return 0; }\n"
COMMANDS = (
    ("apt-get", "sudo apt-get install -y gcc python{version}-dev libgmp-dev   (or python3-dev)"),
    ("dnf", "sudo dnf install -y gcc python3-devel gmp-devel"),
    ("pacman", "sudo pacman -S gcc python gmp"),
    ("zypper", "sudo zypper install -y gcc python3-devel gmp-devel"),
    ("brew", "brew install gmp   (and `xcode-select --install` for the compiler)"),
)


def main() -> int:
    """0 if the set-up can go on; otherwise what to do, on standard error."""
    problem = _version_problem() or _venv_problem() or _compiler_problem()
    if problem:
        print(f"preflight: {problem}", file=sys.stderr)
        return 1
    return 0


def _version_problem() -> str:
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return ""
    found = ".".join(map(str, sys.version_info[:3]))
    return f"Python {found} is used here; install Python 3.11 or 3.12, or name it: make PYTHON=/path/to/python3.12 …"


def _venv_problem() -> str:
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return f"Python's venv module is missing; install it with: sudo apt-get install -y python{version}-venv"
    return ""


def _compiler_problem() -> str:
    """Compile three lines against Python.h and gmp.h."""
    if sys.platform == "win32":
        return ""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return "there is no C compiler. " + _fix()
    includes = ["-I" + sysconfig.get_paths()["include"], "-I/opt/homebrew/include", "-I/usr/local/include"]
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "probe.c")  # noqa: PTH118
        with open(source, "w") as file:  # noqa: PTH123
            file.write(PROBE)
        command = [*compiler.split(), "-fsyntax-only", *includes, source]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return ""
    missing = [name for name in ("Python.h", "gmp.h") if name in result.stderr] or ["a working C compiler"]
    return f"missing for the build of one dependency: {', '.join(missing)}. " + _fix()


def _fix() -> str:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for tool, command in COMMANDS:
        if shutil.which(tool):
            return "Install it with:\n    " + command.format(version=version)
    return "Install a C compiler, Python's headers and GMP's headers (gmp.h)."


if __name__ == "__main__":
    sys.exit(main())
