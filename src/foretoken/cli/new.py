"""`foretoken new FAMILY NAME`: writes a system file that runs and passes its laws, to be changed piece by piece."""

import importlib
import keyword
import re
from pathlib import Path

from foretoken.cli import results
from foretoken.cli.terminal import Parser
from foretoken.core import catalogue
from foretoken.core.errors import ConfigError, UnknownName
from foretoken.core.names import nearest

FAMILIES = {
    "offline": "sequence models learned from recorded trajectories",
    "value": "sequence models with learned values",
    "incontext": "agents that learn within their context",
    "memory": "agents that must remember",
    "imitation": "behaviour cloned from demonstrations",
    "generalist": "one network for many tasks and bodies",
    "worldmodel": "learned models of the world, and acting in them",
    "search": "planning and search with sequence models",
    "entities": "sets of agents, objects and bodies",
    "language": "acting with language models",
}


def main(argv: list[str]) -> int:
    known = "\n".join(f"  {family:<10}  {line}" for family, line in FAMILIES.items())
    parser = Parser(
        "new",
        "Writes a system file that runs and passes its laws: behaviour cloning, to be changed piece by piece.",
        epilog=f"families:\n{known}",
    )
    parser.add_argument("family", help="the folder it belongs to, see below")
    parser.add_argument("name", help="the system's name as the literature has it, for example my_system")
    parser.add_argument(
        "--into",
        metavar="FOLDER",
        help="the package that holds family folders (default: this checkout's systems, else ./my_systems)",
    )
    options = parser.parse_args(argv)
    name = _checked(options.family, options.name, bool(options.into))
    home = _home()
    package = Path(options.into) if options.into else home or Path("my_systems")
    file = _write(package / options.family, name)
    print(f"wrote {file}\n")
    if package.resolve() != home:
        print(_recipe(package, options.family))
    laws = f"from foretoken.core.catalogue import find; from foretoken.testing import check_system; check_system(find('{name}'))"
    print(f'foretoken show {name}\nforetoken train {name} smoke\npython -c "{laws}"')
    return 0


def _checked(family: str, name: str, free: bool) -> str:
    """The name in the form of a module. Raises where it cannot be one, or is taken, or the family is unknown."""
    entries = catalogue.systems().values()
    families = {*FAMILIES, *(entry.family for entry in entries)}
    if family not in families and not (free and family.isidentifier()):
        raise UnknownName(
            f"no family is called {family!r}{nearest(family, families)}; there are {', '.join(sorted(families))}"
        )
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise ConfigError(
            f"a system's name must be lower-case letters, digits and underscores, beginning with a letter, and no keyword of "
            f"Python, got {name!r}"
        )
    for entry in entries:
        if module in (entry.name, entry.card.key.replace("-", "_")):
            raise ConfigError(f"{name!r} is taken by {entry.file}; choose another name")
    return module


def _home() -> Path | None:
    """The systems folder of the checkout that we are in; None elsewhere."""
    folder = Path(catalogue.__file__).resolve().parents[1] / "systems"
    checkout = results.checkout_of(folder)
    return folder if checkout is not None and Path.cwd().resolve().is_relative_to(checkout) else None


def _write(folder: Path, name: str) -> Path:
    file = folder / f"{name}.py"
    if file.exists():
        raise ConfigError(f"{file} exists; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    for package in (folder, folder.parent):
        if not (package / "__init__.py").exists():
            (package / "__init__.py").write_text(f'"""Systems: {package.name}."""\n', encoding="utf-8")
    file.write_text(skeleton(name), encoding="utf-8")
    importlib.invalidate_caches()
    return file


def skeleton(name: str) -> str:
    """The text of a new system file."""
    words = name.split("_")
    text = Path(__file__).with_name("skeleton.py").read_text(encoding="utf-8")
    title, key, title_class = (
        " ".join(map(str.capitalize, words)),
        name.replace("_", "-"),
        "".join(map(str.capitalize, words)),
    )
    for old, new in (("My System", title), ("MySystem", title_class), ("my-system", key)):
        text = text.replace(old, new)
    return text


def _recipe(package: Path, family: str) -> str:
    """How a package of one's own is found by foretoken."""
    name = package.resolve().name
    return f"""foretoken finds it once its package is installed: beside the folder {package}, put into pyproject.toml

[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name.replace("_", "-")}"
version = "0.1.0"
dependencies = ["foretoken"]

[project.entry-points."foretoken.systems"]
{name} = "{name}"

[tool.setuptools]
packages = ["{name}", "{name}.{family}"]

and run `pip install -e .` there. Then:
"""
