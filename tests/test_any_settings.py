"""Settings of any kind, as a generator of examples finds them: what is valid comes back, what is not is refused by name."""

import copy
import fractions
import io
import math

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import settings
from settings import files, levels, loading, names

pytestmark = pytest.mark.slow

TASK = "gym_CartPole-v1"
DEFAULTS = settings.flatten(settings.plain(settings.load_config([], {"task": TASK})))
SECTIONS = files.sections()
COUNTS, CLASSES = levels.COUNTS, levels.CLASSES  # sizes of latent levels, which may be relative
# What has few values, or values that depend on others.
CHOICES = {"task", "size", "grad_heads", "agc", "warmup", "critic.replay_scale", "replay_context", *COUNTS, *CLASSES}
CHOICES |= {name for name in DEFAULTS if name.endswith(("_keys", "import", "kernel_size")) or name.rpartition(".")[2] in loading.CHOICES}
ONE_OF = [
    (name, word)
    for name in ("norm", "decoder.norm", "encoder.symlog_inputs", "precision")
    for word in loading.CHOICES[name.rpartition(".")[2]]
]
NUMBERS = [name for name, value in DEFAULTS.items() if type(value) in (int, float) and name not in CHOICES]
NAMES = [name for name, value in DEFAULTS.items() if type(value) in (str, type(None)) and name not in CHOICES]
BOOLEANS = [name for name, value in DEFAULTS.items() if type(value) is bool]
SHARES = st.tuples(st.integers(1, 999_999_999), st.integers(1, 999_999_999)).map(lambda share: f"{share[0]}/{share[1]}")
WORDS = st.from_regex(r"[A-Za-z][A-Za-z0-9_./-]{0,20}", fullmatch=True).filter(lambda text: text not in ("None", "null"))


@pytest.fixture(autouse=True, scope="module")
def sections_are_read_once():
    patch = pytest.MonkeyPatch()
    patch.setattr(loading, "sections", lambda: copy.deepcopy(SECTIONS))
    yield
    patch.undo()


def load(name: str, value) -> object:
    return settings.flatten(settings.load_config([], {"task": TASK, name: value}))[name]


def bounds(name: str) -> tuple[float, float, bool]:
    """Least and greatest value of a number, and whether the least is excluded."""
    return loading.AT_LEAST.get(name, 0), loading.AT_MOST.get(name, math.inf), name in loading.ABOVE_ZERO


@st.composite
def numbers(draw) -> tuple[str, object]:
    """A number and a value that it may have."""
    name = draw(st.sampled_from(NUMBERS))
    least, most, excluded = bounds(name)
    if type(DEFAULTS[name]) is int:
        return name, draw(st.integers(int(least), int(min(most, 10**15))))
    return name, draw(st.floats(least, min(most, 1e300), exclude_min=excluded, allow_subnormal=False))


@st.composite
def valid(draw) -> tuple[str, object]:
    """A setting and a value that it may have."""
    return draw(
        st.one_of(
            numbers(),
            st.tuples(st.sampled_from(NAMES), WORDS),
            st.tuples(st.sampled_from(BOOLEANS), st.booleans()),
            st.sampled_from(ONE_OF),
            st.tuples(st.just("size"), st.lists(st.integers(1, 64).map(lambda side: 16 * side), min_size=2, max_size=2)),
            st.tuples(st.just("grad_heads"), st.lists(WORDS, min_size=1, max_size=4)),
            st.tuples(st.sampled_from(COUNTS), st.one_of(st.integers(1, 10**15), SHARES)),
            st.tuples(st.sampled_from(CLASSES), st.one_of(st.integers(0, 10**15), st.none())),
        )
    )


def written(value, draw) -> list[str]:
    """The words that stand for a value on a command line, in one of the ways that people write them."""
    if isinstance(value, bool):
        return [draw(st.sampled_from([str(value), str(value).lower(), str(value).upper()]))]
    if isinstance(value, list):
        words = list(map(str, value))
        return draw(st.sampled_from([words, [f"[{', '.join(words)}]"], [f"({','.join(words)})"], [",".join(words)]]))
    if type(value) is int:
        return [draw(st.sampled_from([str(value), f"{value:_}"]))]
    if value is None:
        return [draw(st.sampled_from(["None", "null"]))]
    return [repr(value) if isinstance(value, float) else value]


def broken_shares(flat: dict) -> bool:
    """Whether a level that is read would have a fraction of a latent."""
    shares = [fractions.Fraction(flat[name]) * flat["dyn_stoch"] for name in COUNTS if flat["hierarchical_mode"]]
    return any(share.denominator > 1 for share in shares)


@examples(max_examples=100, deadline=None)
@given(st.lists(valid(), min_size=1, max_size=6, unique_by=lambda pair: pair[0]), st.data())
def test_flags_in_any_order_and_spelling_give_their_values(pairs, data):
    words = ["--task", TASK]
    for name, value in pairs:
        spelled = written(value, data.draw)
        words += [f"--{name}={spelled[0]}"] if len(spelled) == 1 and data.draw(st.booleans()) else [f"--{name}", *spelled]
    presets, flags = settings.parse_flags(words)
    if broken_shares({**DEFAULTS, **dict(pairs)}):
        with pytest.raises(ValueError, match="which is no whole number"):
            settings.load_config(presets, flags)
        return
    config = settings.load_config(presets, flags)
    found = settings.flatten(settings.plain(config))
    assert found == {**DEFAULTS, **dict(pairs)}
    assert all(type(found[name]) is type(value) for name, value in pairs)


@examples(max_examples=100, deadline=None)
@given(st.sampled_from(NUMBERS), st.one_of(st.integers(-(10**400), 10**400), st.floats()))
def test_numbers_are_taken_within_their_range_and_refused_outside(name, value):
    least, most, excluded = bounds(name)
    whole = type(DEFAULTS[name]) is int
    try:
        allowed = least <= value <= most and not (excluded and value == 0) and math.isfinite(float(value))
    except OverflowError:
        allowed = whole and least <= value <= most
    if allowed and not (whole and value != int(value)):
        assert load(name, value) == (value if whole else float(value))
    else:
        with pytest.raises(ValueError, match=f"setting '{name}' is"):
            load(name, value)


@examples(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(DEFAULTS)), st.one_of(st.text(max_size=20), st.text("[]{}()&*!|>'\"%@`:,-?#0123456789.eE \n", max_size=30)))
def test_any_text_is_a_value_of_the_right_type_or_refused_by_the_name_of_its_setting(name, text):
    try:
        found = load(name, text)
    except ValueError as error:
        assert name in str(error)
    else:
        default = DEFAULTS[name]
        if name in COUNTS + CLASSES:
            assert type(found) is int or found == (levels.read_share(found) if name in COUNTS else None)
            return
        assert type(found) is type(default) or (default is None and type(found) is str)


@examples(max_examples=150, deadline=None)
@given(st.text(min_size=1, max_size=20).filter(lambda name: name not in {*DEFAULTS, *names.RENAMED, *names.IGNORED}))
def test_unknown_names_are_always_refused(name):
    with pytest.raises(ValueError, match="unknown setting"):
        load(name, "1")
    config = settings.load_config([], {"task": TASK})
    if name not in config:
        with pytest.raises(AttributeError, match="unknown setting"):
            setattr(config, name, 1)


@examples(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(["--", "--configs", "--seed", "--a=b", "=", "--=", "-x"])), max_size=8))
def test_a_command_line_is_split_without_loss_or_refused(words):
    try:
        presets, flags = settings.parse_flags(words)
    except ValueError as error:
        assert "unexpected word" in str(error) or "has no value" in str(error)
        return
    values = [part for value in flags.values() for part in (value if isinstance(value, list) else [value])]
    given_words = [part for word in words for part in ([word[2:].partition("=")[2]] if word.startswith("--") and "=" in word else [word])]
    assert all(value in given_words for value in values)
    if words and not words[0].startswith("-"):
        assert "--logdir" in words or any(word.startswith("--logdir=") for word in words) or flags.pop("logdir", "") == words[0]
    assert all(f"--{name}" in words or any(word.startswith(f"--{name}=") for word in words) for name in flags)
    assert all(preset in given_words for preset in presets)


# Settings are one line each: of line breaks other than \n and of control characters ruamel.yaml makes something else.
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=10)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), TEXT)


@examples(max_examples=100, deadline=None)
@given(st.recursive(PLAIN, lambda part: st.lists(part, max_size=3), max_leaves=8))
def test_any_stored_value_is_one_of_settings_or_none(value):
    tree = {"task": TASK, "encoder": {"x": value}}
    text = io.BytesIO()
    settings.write_yaml(settings.Config(tree), text)
    try:
        loaded = files.load_yaml(text.getvalue().decode())
    except ValueError:
        return  # nested too deeply
    if settings.holds_settings(loaded):
        assert loaded == tree
