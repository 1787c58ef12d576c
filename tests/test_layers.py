"""The rooms of the package: who may import whom."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llm_kvbranch"
STATIC = PACKAGE / "web" / "page" / "static"
FILES = sorted(PACKAGE.rglob("*.py"))

# Room -> the rooms that it may import, all of them above it in this table. It holds
# for imports at the top of a file, inside a function and under TYPE_CHECKING.
ROOMS = {
    "errors": "",
    "settings": "errors",
    "engine": "errors",
    "chat": "errors",
    "log": "errors",
    "store": "errors settings engine log",
    "inference": "errors engine chat store",
    "models": "errors settings engine store inference",
    "client": "errors settings chat",
    "console": "",
    "model": "errors settings chat inference models client console",
    "web": "errors settings chat log store inference models client model",
    "cli": "errors settings log store models web",
    "__init__": "model cli",
}
# The same for the rooms of web, which are packages themselves
WEB = {
    "errors": "",
    "compat": "",
    "door": "errors compat",
    "serving": "errors compat door",
    "api": "errors compat door serving",
    "page": "errors compat door serving api",
    "datasette_ui": "compat door serving",
    "routes": "door serving api page",
    "__init__": "compat door api page datasette_ui routes",
}
# Library -> the rooms that may import it
OUTSIDE = {
    "llama_cpp": {"engine"},
    "huggingface_hub": {"models"},
    "datasette": {"web"},
    "uvicorn": {"web"},
    "sqlite3": {"store", "inference", "web", "cli"},
}

# The same for the page's JavaScript: folder of static/ -> the folders it may import.
# "top" is the scripts that a page loads itself. Types in comments count as imports.
JS_ROOMS = {
    # The browser, the server and plain values; knows nothing of conversations
    "core": "",
    # What the page shows: the tree, answers in progress, drafts; draws nothing
    "model": "core",
    # Small elements for any room: icons, badges, menus, dialogs
    "widgets": "core",
    # An answer's text as elements that know their place in it
    "markdown": "core widgets",
    # The map of the tree
    "graph": "core model widgets",
    # Asking the model: fields, requests, answers as they stream in
    "live": "core model widgets",
    # The conversation from the root to the selected response
    "path": "core model widgets markdown live",
    # The dialogs, one a file
    "overlay": "core model widgets",
    # The tree page as a whole: top bar, panes, keys, address, actions
    "page": "core widgets live overlay",
    "top": "core model widgets graph live path overlay page",
}


def module_of(path: Path) -> str:
    "llm_kvbranch/store/index.py as store.index, a package's __init__ as its name"
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    name = ".".join(parts)
    return name.removesuffix(".__init__") if len(parts) > 1 else name


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """What a file imports, as (module, name in it or None for the module itself).

    Modules of ours have their name in this package, others a leading ":".
    """
    package = list(path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield ":" + alias.name.split(".")[0], None
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield ":" + (node.module or "").split(".")[0], None
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            base += (node.module or "").split(".") if node.module else []
            for alias in node.names:
                submodule = ".".join([*base, alias.name])
                if submodule in MODULES:
                    yield submodule, None
                else:
                    yield ".".join(base) or "__init__", alias.name


def js_imports(script: str, source: str) -> set[str]:
    "The scripts that one imports, or names the types of in a comment"
    found = re.findall(r"""\b(?:from|import)\s*\(?\s*["'`](\.[^"'`]*)["'`]""", source)
    return {os.path.normpath(Path(script).parent / name) for name in found}


def js_room(script: str) -> str:
    return script.partition("/")[0] if "/" in script else "top"


SCRIPTS = {
    path.relative_to(STATIC).as_posix(): js_imports(
        path.relative_to(STATIC).as_posix(), path.read_text()
    )
    for path in sorted(STATIC.rglob("*.js"))
}


def circle(graph: dict[str, set[str]]) -> list[str]:
    "The names along a circle, if there is one"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_table_is_an_order_of_few_rooms():
    assert len(ROOMS) <= 14
    seen = set()
    for room, allowed in ROOMS.items():
        assert set(allowed.split()) <= seen, room
        seen.add(room)
    assert {room_of(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_what_the_table_allows(module):
    room = room_of(module)
    for other, _ in imports(MODULES[module]):
        if other.startswith(":"):
            owners = OUTSIDE.get(other[1:])
            assert owners is None or room in owners, f"{module} imports {other[1:]}"
        else:
            assert room_of(other) in {room, *ROOMS[room].split()}, (
                f"{module} may not import {other}"
            )


def test_every_allowed_import_is_used():
    for room, allowed in ROOMS.items():
        used = {
            room_of(other)
            for module, path in MODULES.items()
            if room_of(module) == room
            for other, _ in imports(path)
            if not other.startswith(":")
        }
        assert set(allowed.split()) <= used, room


def web_room_of(module: str) -> str | None:
    "The room of web that a module is in; None outside of web"
    first, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if first == "web" else None


def test_the_rooms_of_web_are_an_order_too():
    seen: set[str] = set()
    for room, allowed in WEB.items():
        assert set(allowed.split()) <= seen, room
        seen.add(room)
    used: dict[str | None, set[str]] = {room: set() for room in WEB}
    for module in filter(web_room_of, MODULES):
        room = web_room_of(module)
        for other, name in imports(MODULES[module]):
            below = web_room_of(other)
            if below == "__init__":  # from .. import errors
                assert name is None, f"{module} imports {name} from web"
            if below in (None, room):
                continue
            used[room].add(below)
            assert below in WEB[room].split(), f"{module} may not import {other}"
            package = PACKAGE / "web" / below / "__init__.py"
            if package.exists():
                wanted = other.split(".", 2)[2] if name is None else name
                past = f"{module} imports past web.{below}: {other}"
                assert name is None or other == f"web.{below}", past
                assert wanted in shown(package), f"web.{below} does not show {wanted}"
    assert used == {room: set(allowed.split()) for room, allowed in WEB.items()}


def test_versions_of_datasette_differ_only_in_compat():
    "Nor is a private name of datasette's used anywhere else"
    differs = re.compile(
        r"hasattr\(datasette|datasette\.(permissions|resources)|add_query\(|root_enabled"
        r"|_metadata_local|_datasette_static|\"_internal\"|TokenInvalid|\.signature\("
    )
    web = {module: path for module, path in MODULES.items() if web_room_of(module)}
    found = {module for module in web if differs.search(web[module].read_text())}
    assert found == {"web.compat"}


def test_no_file_imports_itself_by_way_of_others():
    "A package's __init__ counts as itself, where names are imported from it"
    graph = {
        module: {other for other, _ in imports(path) if other in MODULES} - {module}
        for module, path in MODULES.items()
    }
    assert circle(graph) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_page_imports_what_its_table_allows(script):
    room = js_room(script)
    for other in SCRIPTS[script]:
        assert other in SCRIPTS, f"{script} imports {other}, which is not there"
        assert js_room(other) in {room, *JS_ROOMS[room].split()}, (
            f"{script} may not import {other}"
        )


def test_the_table_of_the_page_is_an_order_and_every_import_is_used():
    seen = set()
    for room, allowed in JS_ROOMS.items():
        assert set(allowed.split()) <= seen, room
        seen.add(room)
        used = {
            js_room(other)
            for script, others in SCRIPTS.items()
            if js_room(script) == room
            for other in others
        }
        assert set(allowed.split()) == used - {room}, room
    assert {js_room(script) for script in SCRIPTS} == seen


def test_the_page_has_no_circle():
    assert circle(SCRIPTS) == []


@pytest.mark.parametrize(
    "code",
    [
        'import "./a.js"',
        'import a from "./a.js"',
        "import a, { b as c } from './a.js'",
        'import * as a from "./a.js"',
        'import {\n  a,\n  b,\n} from "./a.js"',
        'import a from"./a.js"',
        'export * from "./a.js"',
        'export { a } from "./a.js"',
        'const a = await import("./a.js")',
        "import(\n  `./a.js`,\n)",
        '/** @param {import("./a.js").A} a */',
    ],
)
def test_every_form_of_import_counts(code):
    "Also two in a row, of which the first names nothing"
    assert js_imports("page/x.js", code) == {"page/a.js"}
    twice = f'import "../b.js"\n{code}'
    assert js_imports("page/x.js", twice) == {"b.js", "page/a.js"}


def test_every_script_opens_with_what_it_owns_and_stays_small():
    for script in SCRIPTS:
        source = (STATIC / script).read_text()
        assert source.startswith("// "), script
        assert source.count("\n") <= 490, script


@pytest.mark.parametrize("module", MODULES)
def test_what_other_rooms_import_is_shown_by_the_package(module):
    "Names in its __all__; of web, whose rooms are packages themselves, the file"
    for other, name in imports(MODULES[module]):
        room = room_of(other)
        if other.startswith(":") or room in (room_of(module), "web"):
            continue
        package = MODULES[room]
        if package.name != "__init__.py" or room == "cli":
            continue
        wanted = other.split(".", 1)[1] if name is None else name
        assert name is None or other == room, f"{module} imports past {room}: {other}"
        assert wanted in shown(package), f"{room} does not show {wanted}"


def shown(package: Path) -> list[str]:
    "The __all__ of a package"
    for node in ast.parse(package.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def test_no_name_hides_a_module_of_its_package():
    "`from .x import path` in a package with path.py: which one is package.path?"
    for path in FILES:
        if path.name == "__init__.py":
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                    for alias in node.names:
                        name = alias.asname or alias.name
                        assert not (path.parent / f"{name}.py").exists(), path
                        assert not (path.parent / name).exists(), path


def test_every_module_opens_with_its_idea():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_package_says_what_it_owns_and_what_it_does_not_know():
    for path in FILES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            said = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert len(said.split()) >= 20, path
            assert re.search(r"does not|nothing|knows no", said, re.IGNORECASE), path


def test_nothing_grows_out_of_hand():
    "No file much over 400 lines, no function over 60"
    for path in FILES:
        source = path.read_text()
        assert source.count("\n") <= 490, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
