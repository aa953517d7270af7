"""Modules of the user's own that have the name of one of hDreamer's or Python's."""

import pathlib
import sys

import pytest

from envs.modules import describe, import_module

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(params=["working directory", "PYTHONPATH", "sys.path"])
def folder(request, tmp_path, monkeypatch):
    """A folder in which the user's modules are, behind those of hDreamer and Python."""
    if request.param == "working directory":
        monkeypatch.chdir(tmp_path)
    elif request.param == "PYTHONPATH":
        monkeypatch.setenv("PYTHONPATH", f"/nowhere:{tmp_path}")
    else:
        monkeypatch.syspath_prepend(tmp_path)
        sys.path.append(sys.path.pop(0))
    return tmp_path


def write(path: pathlib.Path, text: str = "") -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "module, file, other",
    [
        ("tools", "tools.py", f"{ROOT}/tools.py"),
        ("tools", "tools/__init__.py", f"{ROOT}/tools.py"),
        ("envs", "envs.py", f"{ROOT}/envs/__init__.py"),
        ("envs.mine", "envs/mine.py", f"{ROOT}/envs/__init__.py"),
        ("wave", "wave.py", f"{pathlib.Path(pathlib.__file__).resolve().parent}/wave.py"),
        ("math", "math.py", r"(a part of Python \\(math\\)|/.*)"),
    ],
)
def test_a_module_that_another_one_hides_is_named_with_it(module, file, other, folder):
    own = write(folder / file)
    with pytest.raises(ValueError, match=f"^import is '{module}', which is {other} here, and not your own {own}; rename yours$"):
        import_module(module, "import")


@pytest.mark.parametrize(
    "text, file, words",
    [
        (
            "import tools\ntools.helper",
            "tools.py",
            "AttributeError: .*'helper'.*; tools is {root}/tools.py here, and not {own}: rename yours$",
        ),
        (
            "from envs import Mine",
            "envs/__init__.py",
            "ImportError: .*; envs is {root}/envs/__init__.py here, and not {own}: rename yours$",
        ),
        (
            "import envs.mine",
            "envs/mine.py",
            "No module named 'envs.mine'; envs is {root}/envs/__init__.py here, and not {own}: rename yours$",
        ),
    ],
)
def test_a_module_that_imports_one_that_another_one_hides_is_told_both(text, file, words, folder, monkeypatch):
    own = write(folder / file)
    write(folder / "modules" / "module_of_mine.py", text)
    monkeypatch.syspath_prepend(folder / "modules")
    with pytest.raises(ValueError, match=words.format(root=ROOT, own=own)):
        import_module("module_of_mine", "import")
    assert "module_of_mine" not in sys.modules


def test_modules_that_nothing_hides_are_imported(folder, monkeypatch):
    for module in ("benchmarks.synthetic", "tools"):  # of hDreamer, and there is no other
        import_module(module, "import")
    write(folder / "benchmarks" / "other.py")  # which another one of that folder's name does not hide
    import_module("benchmarks.synthetic", "import")
    write(folder / "module_of_mine.py", "VALUE = 3")
    monkeypatch.syspath_prepend(folder)
    import_module("module_of_mine", "import")
    assert sys.modules.pop("module_of_mine").VALUE == 3


def test_an_error_tells_where_it_began_and_nothing_of_modules_that_have_names_of_their_own():
    try:
        try:
            {}["a"]
        except KeyError as error:
            raise TypeError("two\nlines") from error
    except TypeError as error:
        line = error.__cause__.__traceback__.tb_lineno
        assert describe(error) == f"TypeError: two lines ({__file__}, line {line})"
    for code in ("import not_there", "import sys; sys.not_there", "raise AssertionError"):
        with pytest.raises((ImportError, AttributeError, AssertionError)) as caught:
            exec(code)
        assert "rename" not in describe(caught.value)
    assert describe(caught.value) == "AssertionError (<string>, line 1)"
