"""Imports modules of the user's own, and finds out where a module of hDreamer or of Python has the name of theirs."""

import importlib
import importlib.util
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
MOST_SHOWN = 500  # characters of what a user's code says, in messages
STANDARD = pathlib.Path(os.__file__).resolve().parent  # Python's own modules, and below it what is installed


def import_module(name: str, setting: str) -> None:
    """Imports a module that defines environments.

    Args:
        name: the module.
        setting: what names it, for messages.
    Raises:
        ValueError: if there is no such module, another one has its name, or importing it fails.
    """
    if wrong := _no_module_name(name):
        raise ValueError(f"{setting} is {name!r}; it must be the name of a module, {wrong}")
    if clash := _clash(name):
        raise ValueError(f"{setting} is {name!r}, which is {clash[0]} here, and not your own {clash[1]}; rename yours")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # neither the module nor a package that contains it
            reason = f"which needs a module that is not installed: {error}{name_clash(error)}"
            raise ValueError(f"{setting} is {name!r}, {reason}") from error
        here = _file_of(pathlib.Path.cwd(), name)
        unseen = f" ({here} is in the working directory, which is not searched)" if here else ""
        raise ValueError(
            f"{setting} is {name!r}, but there is no such module beside dreamer.py ({ROOT}), in the folders of PYTHONPATH, or among "
            f"what is installed{unseen}; put it beside dreamer.py, or its folder into PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise ValueError(f"{setting} is {name!r}, but importing it fails: {describe(error)}") from error


def _no_module_name(name: str) -> str:
    """What to write instead of a name that is none of a module; "" if it can be one."""
    path = pathlib.PurePath(name)
    if "/" in name or os.sep in name or path.suffix == ".py":
        path = path.with_suffix("") if path.suffix == ".py" else path
        if path.is_absolute() or ".." in path.parts:
            return f"not a file: write {path.name}, and put its folder {path.parent} into PYTHONPATH"
        return f"not a file: write {'.'.join(path.parts)}"
    return "" if all(name.split(".")) else "such as my_walk or my_package.my_walk: write all of it, without a dot at an end"


def shortened(text: str) -> str:
    """A text for one line of a message."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... ({len(text):,} characters)"


def describe(error: BaseException) -> str:
    """Type, message and location of an error in a user's code, and whether two modules have the same name."""
    origin = error
    while origin.__cause__ is not None and origin.__cause__.__traceback__ is not None:  # gymnasium raises errors of constructors again
        origin = origin.__cause__
    at = traceback.extract_tb(origin.__traceback__)[-1]
    # The message of a SyntaxError already has the location.
    where = "" if isinstance(error, SyntaxError) else f" ({at.filename}, line {at.lineno})"
    try:
        message = f": {shortened(' '.join(str(error).split()))}".removesuffix(": ")
    except Exception:  # it may be of a class of the user's own
        message = ": its message cannot be shown"
    kind = f"it calls sys.exit({error.code!r:.{MOST_SHOWN}})" if isinstance(error, SystemExit) else f"{type(error).__name__}{message}"
    return f"{kind}{where}{name_clash(origin)}"


def name_clash(error: BaseException) -> str:
    """What to do if an error comes from a module of hDreamer or of Python that has the name of one of the user's, else ""."""
    if isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
        name = error.obj.__name__
    elif isinstance(error, ImportError) and error.name:
        name = error.name
    else:
        return ""
    clash = _clash(name) or _clash(name.partition(".")[0])
    return f"; {name.partition('.')[0]} is {clash[0]} here, and not {clash[1]}: rename yours" if clash else ""


def _clash(name: str) -> tuple[str, pathlib.Path] | None:
    """The module of hDreamer or of Python that `name` means, and the file of a user's module that it hides; None if it hides none."""
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__
        return None
    imported = pathlib.Path(spec.origin or "") if spec else pathlib.Path()
    own = any(imported == ROOT / file for file in (f"{top}.py", f"{top}/__init__.py"))
    standard = top in sys.stdlib_module_names and (not imported.is_absolute() or STANDARD in imported.parents)
    if not own and not standard:
        return None
    files = (_file_of(folder, name) for folder in _folders())
    theirs = next((file for file in files if file is not None), None)
    return theirs and (str(imported) if imported.is_absolute() else f"a part of Python ({top})", theirs)


def _folders() -> Iterator[pathlib.Path]:
    """Where modules of users may be: the working directory, PYTHONPATH, sys.path."""
    for name in (os.curdir, *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path):
        folder = pathlib.Path(name or os.curdir).resolve()
        if folder != ROOT and STANDARD not in (folder, *folder.parents):
            yield folder


def _file_of(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file of a module by its name with dots, if the folder has it."""
    path = folder.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)
