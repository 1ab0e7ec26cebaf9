"""The presets of a system file: its public functions without arguments that return an Experiment, read from the source text."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from foretoken.core.catalogue import Entry
from foretoken.core.errors import UnknownName
from foretoken.core.names import nearest

if TYPE_CHECKING:
    from foretoken.experiment import Experiment


def presets(file: Path) -> dict[str, str]:
    """Names in the order of the file, each with the first line of its docstring; nothing is imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: (ast.get_docstring(node) or "").split("\n")[0] for node in functions if _is_preset(node)}


def _is_preset(node: ast.FunctionDef) -> bool:
    given = node.args
    takes_nothing = not (given.args or given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg)
    return (
        not node.name.startswith("_")
        and takes_nothing
        and node.returns is not None
        and ast.unparse(node.returns).strip("'\"").split(".")[-1] == "Experiment"
    )


def find_preset(entry: Entry, name: str) -> Callable[[], "Experiment"]:
    """The preset of that name, not yet called. Raises UnknownName with the nearest one."""
    known = presets(entry.file)
    wanted = name.replace("-", "_")
    if wanted not in known:
        raise UnknownName(
            f"{entry.name} has no preset {name!r}{nearest(wanted, known)}; it has {', '.join(known) or 'none'}"
        )
    return getattr(entry.load(), wanted)
