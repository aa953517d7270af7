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


@pytest.mark.parametrize(
    "name, words",
    [
        ("pkg/sub.py", "not a file: write pkg.sub$"),
        ("./pkg/sub", "not a file: write pkg.sub$"),
        ("sub.py", "not a file: write sub$"),
        ("/home/me/sub.py", "not a file: write sub, and put its folder /home/me into PYTHONPATH$"),
        ("../sub.py", r"not a file: write sub, and put its folder \.\. into PYTHONPATH$"),
        (".sub", "such as my_walk or my_package.my_walk: write all of it, without a dot at an end$"),
        ("pkg.", "such as my_walk or my_package.my_walk"),
        ("", "such as my_walk or my_package.my_walk"),
    ],
)
def test_a_file_or_a_part_of_a_name_is_answered_with_what_to_write(name, words):
    with pytest.raises(ValueError, match="^import is '.*'; it must be the name of a module, " + words):
        import_module(name, "import")


def test_a_module_that_is_not_found_is_answered_with_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = rf"there is no such module beside dreamer.py \({ROOT}\), in the folders of PYTHONPATH, or among what is installed"
    with pytest.raises(ValueError, match=f"{words}; put it beside"):
        import_module("module_of_mine", "import")
    own = write(tmp_path / "module_of_mine.py")
    with pytest.raises(ValueError, match=rf"{words} \({own} is in the working directory, which is not searched\); put it beside"):
        import_module("module_of_mine", "import")


def test_a_module_that_calls_exit_is_answered_in_one_line(tmp_path, monkeypatch):
    own = write(tmp_path / "module_of_mine.py", "import sys\nsys.exit('usage')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"^import is .*, but importing it fails: it calls sys.exit\('usage'\) \({own}, line 2\)$"):
        import_module("module_of_mine", "import")


def test_a_long_message_of_an_error_is_shortened():
    try:
        raise ValueError("x" * 100_000)
    except ValueError as error:
        assert describe(error).startswith(f"ValueError: {'x' * 500}... (100,000 characters) (")
    try:
        sys.exit("x" * 100_000)
    except SystemExit as error:
        assert len(describe(error)) < 1000


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
