"""The interactive plots of a report, as pieces of HTML that share one script."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from llm2comp.analysis import figures
from llm2comp.analysis.report.gather import Encoder
from llm2comp.errors import UserError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = tuple(colour.replace("#000000", "#888888") for colour in figures.COLOURS)
"""Those of the figures, seen on white and on black."""
GROUPS = 7
"""Colours of the map: clusters of the last encoder's vectors."""
HOVER_CHARACTERS = 160
HELD_OUT = {
    "matched": "own memory",
    "mismatched": "another text's memory",
    "last_tokens": "the last k tokens instead",
    "loss": "loss",
}
"""Held-out losses that are drawn, by their names in run.jsonl."""


def script() -> str:
    """Return plotly's script, to be embedded once.

    Raises:
        UserError: if plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("a report needs plotly: pip install 'llm2comp[report]'") from error
    return str(get_plotlyjs())


def curves(events: Sequence[Mapping[str, Any]], stage: str) -> str | None:
    """Draw a stage's training loss, and its held-out losses, over steps; None before its first."""
    figure = _figure("step", "loss, nats a token" if stage == "pretext" else "loss")
    of_stage = [event for event in events if event.get("stage") == stage and "step" in event]
    if not of_stage:
        return None
    trained = [(event["step"], event["loss"]) for event in of_stage if "loss" in event]
    _line(figure, trained, "training", dash="dot")
    held = [(event["step"], event["held_out"]) for event in of_stage if "held_out" in event]
    for key, label in HELD_OUT.items():
        points = [(step, measured[key]) for step, measured in held if key in measured]
        if points:
            _line(figure, points, f"held out, {label}")
    return _html(figure)


def watch(events: Sequence[Mapping[str, Any]], stage: str) -> str | None:
    """Draw how a stage's held-out cosines and effective dimension move; None if not watched."""
    figure = _figure("step", "mean cosine")
    held = [
        (event["step"], event["held_out"])
        for event in events
        if event.get("stage") == stage and "held_out" in event
    ]
    if not any("text_cosine" in measured for _, measured in held):
        return None
    for key, label in (("text_cosine", "between texts"), ("token_cosine", "between memory tokens")):
        _line(figure, [(step, one[key]) for step, one in held if key in one], label)
    points = [(step, one["rankme"]) for step, one in held if "rankme" in one]
    _line(figure, points, "effective dimension (right)", yaxis="y2", dash="dash")
    figure.update_layout(
        yaxis2={
            "overlaying": "y",
            "side": "right",
            "rangemode": "tozero",
            "showgrid": False,
            "zeroline": False,
            "tickmode": "auto",
        }
    )
    return _html(figure)


def spectrum(encoders: Sequence[Encoder]) -> str:
    """Draw the singular values of all encoders, each over its largest."""
    figure = _figure("singular value", "over the largest")
    for one in encoders:
        values = np.array(one.analysis.spectrum.singular_values)
        shares = values[values > 0] / values[0]
        _line(figure, list(enumerate(np.round(shares, 6).tolist(), 1)), one.name)
    figure.update_yaxes(type="log", range=[-4, 0.1], dtick=1, exponentformat="power")
    return _html(figure)


def memory(encoder: Encoder) -> str:
    """Draw the cosines between an encoder's memory tokens."""
    from plotly.graph_objects import Heatmap

    assert encoder.analysis.memory is not None
    cosines = np.round(encoder.analysis.memory.cosines, 3)
    figure = _figure("memory token", "memory token")
    figure.add_trace(
        Heatmap(
            z=cosines,
            colorscale="Cividis",
            zmin=min(0.0, float(cosines.min())),
            zmax=1,
            hovertemplate="tokens %{y} and %{x}: cosine %{z}<extra></extra>",
        )
    )
    figure.update_xaxes(dtick=1, constrain="domain")
    figure.update_yaxes(dtick=1, constrain="domain", autorange="reversed", scaleanchor="x")
    return _html(figure)


def text_map(encoders: Sequence[Encoder], texts: Sequence[str]) -> str:
    """Draw the texts in two dimensions (PCA, then t-SNE), an encoder at a time, with hover text."""
    from plotly.graph_objects import Scatter

    groups = KMeans(GROUPS, n_init=4, random_state=0).fit_predict(encoders[-1].vectors)
    short = [_wrapped(text) for text in texts]
    figure = _figure("", "")
    for place, one in enumerate(encoders):
        points = np.round(_plane(one.vectors), 2)
        figure.add_trace(
            Scatter(
                x=points[:, 0],
                y=points[:, 1],
                mode="markers",
                marker={"size": 7, "color": [COLOURS[group] for group in groups]},
                text=short,
                hovertemplate="%{text}<extra></extra>",
                visible=place == len(encoders) - 1,
                name=one.name,
            )
        )
    buttons = [
        {
            "label": one.name,
            "method": "update",
            "args": [{"visible": [other is one for other in encoders]}],
        }
        for one in encoders
    ]
    menu = {"buttons": buttons, "active": len(encoders) - 1, "x": 0, "y": 1.12, "xanchor": "left"}
    figure.update_layout(
        hovermode="closest", updatemenus=[menu] if len(encoders) > 1 else [], showlegend=False
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return _html(figure, height=520)


def _plane(vectors: Any) -> Any:
    wide = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(wide)


def _wrapped(text: str) -> str:
    """Return the beginning of a text for a hover box, its mark-up shown and not obeyed."""
    words = text.replace("&", "&amp;").replace("<", "&lt;").split()
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > 60:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
        if sum(map(len, lines)) + len(line) > HOVER_CHARACTERS:
            line += " …"
            break
    return "<br>".join([*lines, line])


def _figure(x: str, y: str) -> "Figure":
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(
        colorway=COLOURS,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 24, "t": 24, "b": 64},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#666"},
        legend={"orientation": "h", "y": -0.28},
        modebar={"bgcolor": "rgba(0,0,0,0)"},
        hoverlabel={"align": "left"},
        hovermode="x",
    )
    grid = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
    figure.update_xaxes(title=x, **grid)
    figure.update_yaxes(title=y, **grid)
    return figure


def _line(figure: "Figure", points: Sequence[tuple[float, float]], name: str, **style: Any) -> None:
    from plotly.graph_objects import Scatter

    if points:
        xs, ys = zip(*points, strict=True)
        axis = {"yaxis": style.pop("yaxis")} if "yaxis" in style else {}
        figure.add_trace(Scatter(x=xs, y=ys, name=name, mode="lines", line=style, **axis))


def _html(figure: "Figure", height: int = 360) -> str:
    figure.update_layout(height=height)
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displaylogo": False},
    )
    return html
