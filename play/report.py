"""The latent report: what the levels of a trained agent's latent encode, as figures, a page and numbers.

Shapes: N environments, T steps.
"""

import html
from collections.abc import Collection

import numpy as np
from matplotlib.figure import Figure

from models import WorldModel
from networks import State
from pages import web
from play.measures import HORIZON, Measured, choices_to_resample
from play.playing import Data, decode, seen

DRAWN_NUMBERS, DRAWN_IMAGES, DRAWN_VARIABLES, DRAWN_STEPS = 4, 8, 12, 150  # at most, in figures


# Drawing


def draw(model: WorldModel, measured: Measured) -> dict[str, Figure]:
    """The figures of a report by name."""
    figures = {"reconstructions": draw_reconstructions(model, measured.data, measured.post)}
    if all(level.discrete for level in model.dynamics.levels.values()):
        figures["codes"] = draw_codes(model, measured.post)
    if measured.dreams:
        figures["dreams"] = draw_dreams(measured.came, measured.dreams)
    if any(measured.numbers.get("open_loop", {}).values()):
        figures["spread"] = draw_spread(measured.numbers["open_loop"])
    if any(measured.numbers["probes"]["trained"].values()):
        figures["probes"] = draw_probes(measured.numbers["probes"])
    return figures


def draw_codes(model: WorldModel, post: State) -> Figure:
    """How often each class of each categorical is used."""
    levels = model.dynamics.levels
    figure = Figure(figsize=(5 * len(levels), 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(levels), squeeze=False)[0], levels):
        shares = model.dynamics.get_dist(post, name).probs.flatten(0, -3).mean(0)  # (S, K)
        shown = axis.imshow(shares.sort(-1, descending=True).values.numpy(), aspect="auto", vmin=0.0, vmax=1.0)
        figure.colorbar(shown, ax=axis)
        axis.set(title=f"{name}: share of each class", xlabel="class, most used first", ylabel="categorical")
        axis.locator_params(integer=True, min_n_ticks=1)
    return figure


def draw_reconstructions(model: WorldModel, data: Data, post: State) -> Figure:
    """Decoded observations of the first environment, from the posterior and with levels drawn from their prior."""
    data = {key: value[0, :DRAWN_STEPS] for key, value in data.items()}
    post = {key: value[0, :DRAWN_STEPS].to(model.dynamics.device) for key, value in post.items()}
    rows = {"posterior": decode(model, post)}
    rows |= {name: decode(model, model.dynamics.resample(post, levels)) for name, levels in choices_to_resample(model).items()}
    return draw_rows([("truth", seen(data, rows["posterior"])), *rows.items()])


def draw_dreams(came: dict, predicted: dict[str, dict]) -> Figure:
    """The open-loop predictions from the first start: three dreams for each choice of levels that vary."""
    rows = [("truth", {key: value[0] for key, value in came.items()})]
    for levels, keys in predicted.items():
        name = "dreams" if len(predicted) == 1 else "all vary" if " and " in levels else f"{levels} varies"
        rows += [(name, {key: value[0, number] for key, value in keys.items()}) for number in range(3)]
    return draw_rows(rows)


def draw_rows(rows: list[tuple[str, dict[str, np.ndarray]]]) -> Figure:
    """Named sequences (T, ...) by key, the truth first: numbers as curves, one colour for each name, and images as rows of pictures."""
    truth = rows[0][1]
    images = [key for key in truth if truth[key].ndim == 4]
    numbers = [(key, index) for key in truth if key not in images for index in range(truth[key].shape[-1])][:DRAWN_NUMBERS]
    heights = [0.9 * len(rows)] * len(images) + [2.2] * len(numbers)
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, key in zip(axes, images):
        draw_pictures(axis, key, rows)
    names = list(dict.fromkeys(name for name, _ in rows))
    for axis, (key, index) in zip(axes[len(images) :], numbers):
        for name in names:
            color, width = ("black", 1.8) if name == "truth" else (f"C{names.index(name) - 1}", 0.9)
            curves = [sequence[key][:, index] for other, sequence in rows if other == name]
            axis.plot(np.stack(curves, 1), label=[name] + [None] * (len(curves) - 1), color=color, linewidth=width)
        axis.set_title(f"{key}[{index}]", fontsize=9)
    if numbers:
        axes[-1].set_xlabel("step")
        axes[len(images)].legend(fontsize=7, ncols=4)
    return figure


def draw_pictures(axis, key: str, rows: list[tuple[str, dict[str, np.ndarray]]]) -> None:
    """Images of a few steps of each sequence, a row each; channels are averaged unless they are colours."""
    length, height, width, channels = rows[0][1][key].shape
    times = np.linspace(0, length - 1, DRAWN_IMAGES).round().astype(int)
    grid = np.concatenate([np.concatenate(list(sequence[key][times]), 1) for _, sequence in rows]).clip(0.0, 1.0)
    axis.imshow(grid if channels == 3 else grid.mean(-1), cmap="gray", vmin=0.0, vmax=1.0)
    axis.set_yticks(np.arange(len(rows)) * height + height / 2, [name for name, _ in rows], fontsize=8)
    axis.set_xticks(np.arange(len(times)) * width + width / 2, [f"step {time + 1}" for time in times], fontsize=8)
    axis.set_title(key)


def draw_spread(open_loop: dict) -> Figure:
    """Error and spread of open-loop predictions by step."""
    keys = list(next(iter(open_loop.values())))
    figure = Figure(figsize=(10, 3 * len(keys)), layout="constrained")
    for (left, right), key in zip(figure.subplots(len(keys), 2, squeeze=False), keys):
        for levels, found in open_loop.items():
            for axis, what in ((left, "error"), (right, "spread")):
                axis.plot(np.arange(1, HORIZON + 1), found[key][what], label=f"{levels} drawn" if len(open_loop) > 1 else None)
                axis.set(title=f"{key}: {what}", xlabel="steps since the last one seen", ylabel="share of the variance")
        left.set_ylim(0, None)
        right.set_ylim(0, None)
        if len(open_loop) > 1:
            left.legend(fontsize=8)
    return figure


def draw_probes(found: dict[str, dict]) -> Figure:
    """What linear probes predict, by variable, with intervals; black frames: untrained networks."""
    variables = list(next(iter(found["trained"].values())))[:DRAWN_VARIABLES]
    figure = Figure(figsize=(max(6, 1.6 * len(variables)), 3.6), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(found["trained"])
    for number, (name, row) in enumerate(found["trained"].items()):
        x = np.arange(len(variables)) + (number + 0.5) * width - 0.4
        share, low, high = (np.array([row[variable][key] for variable in variables], float) for key in ("share", "low", "high"))
        axis.bar(x, share.clip(0), width, color=f"C{number}", label=name)
        axis.vlines(x, low.clip(0), high.clip(0), color="black", linewidth=0.8)
        untrained = np.array([found["untrained"][name][variable] for variable in variables])
        axis.bar(x, untrained.clip(0), width, facecolor="none", edgecolor="black", linewidth=0.7)
    axis.set_xticks(np.arange(len(variables)), variables, rotation=20, fontsize=8)
    axis.set(ylabel="share of the variance predicted (R²)", ylim=(0, 1.02))
    axis.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


# The page

HEADINGS = {
    "codes": "Levels",
    "reconstructions": "Reconstructions",
    "dreams": "Dreams",
    "spread": "Error and spread of dreams",
    "probes": "What can be read off",
}
CAPTIONS = {
    "codes": "kl: what the observation adds to the prior, nats. Entropies: nats. perplexity: classes in use, mean over categoricals. "
    "active: categoricals that tell something. delta: posterior less prior logits. information: nats that the code tells about its "
    "step, beyond the level above; with those above at most information_limit. Beside it a network that has learned nothing.",
    "reconstructions": "Errors of decoded observations as shares of their variance: 0 is perfect, 1 as good as the mean; a single "
    "draw that knows nothing is at up to 2. What stays right without a level is known to the recurrent state, or to the other level.",
    "dreams": "Dreams of the same actions from the same step.",
    "spread": "Squared error of single dreams, and variance between dreams of the same step, as shares of the variance of what came.",
    "probes": "Shares of variance that linear probes predict in environments that they have not seen, with 95% intervals over "
    "environments: 1 is perfect, 0 as good as a constant, less is worse. Last, and as black frames: the mean of untrained networks.",
}
TWO_LEVELS = {  # what captions say besides
    "dreams": " Where only one level varies, the other level is at its most likely code.",
    "reconstructions": " Where the top alone is from the prior, the bottom is still the one that was formed beside another top.",
}


def tables(numbers: dict) -> dict[str, str]:
    """The tables of a report as HTML, by what they are of."""
    untrained = {f"{name}, untrained": row for name, row in numbers["levels_untrained"].items()}
    found = {"codes": web.number_table({**numbers["levels"], **untrained}), "reconstructions": web.number_table(numbers["reconstruction"])}
    curves = {
        f"{key}: {what}, {levels} drawn": row[what]
        for levels, keys in numbers.get("open_loop", {}).items()
        for key, row in keys.items()
        for what in ("error", "spread")
    }
    if curves:
        steps = (1, 5, 15, HORIZON)
        found["spread"] = web.number_table({f"step {step}": {name: row[step - 1] for name, row in curves.items()} for step in steps})
    trained, shares = numbers["probes"]["trained"], numbers["probes"]["untrained"]
    cells = [
        [variable, *(probe_cell(**trained[name][variable], untrained=shares[name][variable]) for name in trained)]
        for variable in next(iter(trained.values()))
    ]
    if cells:
        found["probes"] = web.text_table(["", *trained], cells)
    return found


def probe_cell(share: float, low: float | None, high: float | None, untrained: float) -> str:
    """What a probe predicts, with its interval if there is one, and what probes of untrained networks do."""
    interval = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{share:.2f}{interval}, {untrained:.2f}"


def page(title: str, about: str, numbers: dict, figures: Collection[str], has_run_page: bool = False) -> str:
    """The report as HTML, which shows the files `<figure>.png` in its folder.

    Args:
        has_run_page: the run has a page of its own, which the report links to.
    """
    parts, made = [], tables(numbers)
    for name, heading in HEADINGS.items():
        picture = f'<p><img src="{name}.png" alt="{heading}"></p>' if name in figures else ""
        if picture or name in made:
            caption = CAPTIONS[name] + (TWO_LEVELS.get(name, "") if len(numbers["levels"]) > 1 else "")
            parts.append(f"<h2>{heading}</h2><p>{caption}</p>{made.get(name, '')}{picture}")
    if "probes" not in made:
        parts.append("<h2>What can be read off</h2><p>Nothing that is known of the environment's state varies, so nothing is probed.</p>")
    elif (count := len(next(iter(numbers["probes"]["trained"].values())))) > DRAWN_VARIABLES:
        parts.append(f"<p>The figure has the first {DRAWN_VARIABLES} of {count} variables.</p>")
    parts.append('<p class="faint">More on how to read this is in docs/latents.md, all numbers are in report.json.</p>')
    link = '. <a href="../report/index.html">Page of the run</a>' if has_run_page else ""
    return web.document(title, f"<p>{html.escape(about)}{link}</p>{''.join(parts)}")
