"""`atoll sandboxer new NAME`: a project of one's own controller, which runs and passes the conformance kit as it is."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path
from string import Template

from atoll import __version__, errors
from atoll.cli import sandboxer_project

NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
MAX_LENGTH = 40
TAKEN = frozenset({"atoll", "tests", "test", "pytest"})


def new(name: str, parent: Path) -> int:
    """Write the project to `<parent>/<name>` and say what to do with it.

    Raises `InvalidArgument` for a name that a package or a unit cannot have, `AlreadyExists` where something is there.
    """
    package = package_of(name)
    target = parent / name
    words = {
        "name": name,
        "package": package,
        "controller": "".join(part.capitalize() for part in name.split("-")) + "Controller",
        "atoll": __version__,
    }
    try:
        parent.mkdir(parents=True, exist_ok=True)
        target.mkdir()
    except FileExistsError:
        raise errors.AlreadyExists(f"{target}: is there already; choose another name or --in another folder") from None
    except OSError as error:
        raise errors.FailedPrecondition(f"{target}: cannot be made: {error.strerror}") from error
    for path, text in sandboxer_project.FILES.items():
        file = target / Template(path).substitute(words)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(text).substitute(words))
    print(f"{target}: a sandboxer that runs; try it, as root:")
    print(f"  cd {target} && python -m pip install -e '.[dev]' && python -m pytest")
    print(f"  python -m {package} unix:///run/{name}.sock")
    return 0


def package_of(name: str) -> str:
    """The Python package of a project; raises `InvalidArgument` for a name that cannot be one."""
    if not NAME.fullmatch(name) or len(name) > MAX_LENGTH:
        raise errors.InvalidArgument(
            f"name {name[: MAX_LENGTH + 1]!r}: must be at most {MAX_LENGTH} small letters and digits, "
            "a letter first, in parts joined by single '-'"
        )
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or package in TAKEN:
        raise errors.InvalidArgument(f"name {name!r}: Python has a word or a module of that name; choose another")
    return package
