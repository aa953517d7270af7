"""Filmstrips of open-loop videos, for papers."""

import itertools

import numpy as np
import pytest
from PIL import Image

import settings
from pages import filmstrip
from storage.gif import encode_gif

SIDE, STEPS, SEQUENCES = 16, 12, 3


@pytest.fixture
def run(tmp_path):
    """A folder with an open-loop video whose tiles have one grey value each: 60 rows + 20 sequences + the step."""
    row, step, sequence = np.arange(4)[None, :, None], np.arange(STEPS)[:, None, None], np.arange(SEQUENCES)[None, None]
    values = (60 * row + 20 * sequence + step).astype(np.uint8)  # (T, R, B)
    video = values.repeat(SIDE, 1).repeat(SIDE, 2)[..., None].repeat(3, -1)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "openl_image_000000700.gif").write_bytes(encode_gif(video, 10))
    (tmp_path / "videos" / "openl_image_000000200.gif").write_bytes(encode_gif(video[:2], 10))
    with open(tmp_path / "config.yaml", "wb") as file:
        settings.write_yaml({"task": "atari_pong", "size": [SIDE, SIDE]}, file)
    return tmp_path


def test_a_filmstrip_has_a_named_row_for_each_view_and_a_column_for_each_step(run):
    video = filmstrip.read_video(run / "videos" / "openl_image_000000700.gif", SIDE, SIDE)
    assert video.shape == (STEPS, 4, SEQUENCES, SIDE, SIDE, 3)
    figure = filmstrip.draw(video[:, :, 1])
    rows = np.array(figure.axes).reshape(3, 8)
    assert [axes.get_ylabel() for axes in rows[:, 0]] == ["ground truth", "model", "top level alone"]
    titles = [axes.get_title() for axes in rows[0]]
    assert titles[:2] == ["step 1, observed", "step 3, observed"] and titles[-1] == "7 ahead"  # step 12, after 5 observed ones
    shown = [[int(axes.images[0].get_array().mean()) for axes in line] for line in rows]
    steps = [0, 2, 3, 5, 6, 8, 9, 11]  # 8 of 12, evenly
    for line, row in zip(shown, (0, 1, 3)):
        np.testing.assert_allclose(line, [60 * row + 20 + step for step in steps], atol=2)  # a GIF has 256 colors


@pytest.mark.parametrize("height", [16, 64, 96])
def test_the_names_of_rows_do_not_overlap_however_low_images_are(height):
    figure = filmstrip.draw(np.zeros((STEPS, 3, height, 96, 3), np.uint8))
    figure.canvas.draw()
    names = [axes.yaxis.label.get_window_extent() for axes in figure.axes[::8]]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(names))


def test_the_command_draws_the_latest_video(run, tmp_path, capsys):
    out = tmp_path / "strip.png"
    assert filmstrip.main([str(run), "--sequence", "3", "--out", str(out)]) == 0
    assert "openl_image_000000700.gif" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.width > 1500


@pytest.mark.parametrize(
    "flags, words",
    [
        (["{run}/nowhere"], "no open-loop video"),
        (["{run}", "--sequence", "4"], "sequences 1 to 3"),
        (["{run}", "--sequence", "0"], "1 to 3"),
    ],
)
def test_what_cannot_be_drawn_is_named(run, flags, words, capsys):
    assert filmstrip.main([flag.format(run=run) for flag in flags]) == 2
    assert words in capsys.readouterr().err


def test_other_files_beside_the_videos_do_not_count(run, tmp_path, capsys):
    for name in ("openl_image_latest.gif", "openl_a_000001000_copy.gif", "openl_a_\u00b2.gif"):
        (run / "videos" / name).write_bytes(b"nothing")
    (run / "videos" / "openl_image_000009000.gif").mkdir()
    assert filmstrip.main([str(run), "--out", str(tmp_path / "strip.png")]) == 0
    assert "openl_image_000000700.gif" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["[0, 64]", "[-32, -48]", "wide", "3"])
def test_a_damaged_size_is_named(run, size, capsys):
    (run / "config.yaml").write_text(f"task: atari_pong\nsize: {size}\n")
    assert filmstrip.main([str(run)]) == 2
    assert "'size' is" in capsys.readouterr().err


def test_a_video_of_other_tiles_is_refused(run):
    with pytest.raises(ValueError, match="64 x 48 pixels, which are not tiles of 20 x 16"):
        filmstrip.read_video(run / "videos" / "openl_image_000000700.gif", 20, 16)
