"""The interactive plots of a report, as parts of HTML that share one script."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from llm2comp.analysis import figures
from llm2comp.analysis.reading.curves import Curves
from llm2comp.analysis.report.gather import Encoder
from llm2comp.errors import UserError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = tuple(colour.replace("#000000", "#888888") for colour in figures.COLOURS)
"""The colours of the figures, with grey for black, which is invisible in the dark scheme."""
CLUSTERS = 7
"""Maximum number of clusters, which are the colours of the map."""
HOVER_CHARACTERS = 160
"""Number of characters of a text that the map shows."""
HELD_OUT = {
    "matched": "memory of the text",
    "mismatched": "memory of another text",
    "last_tokens": "last k tokens instead of memory",
    "loss": "loss",
}
"""Labels of the held-out losses, by their keys in run.jsonl."""


def script() -> str:
    """Return the JavaScript of plotly, which a page contains once.

    Raises:
        UserError: if plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("a report needs plotly: pip install 'llm2comp[report]'") from error
    return str(get_plotlyjs())


def curves(events: Sequence[Mapping[str, Any]], stage: str) -> str | None:
    """Draw the training loss and the held-out losses of a stage over its steps.

    Args:
        events: lines of `run.jsonl`.
        stage: name of the stage.

    Returns:
        The plot, or `None` if the stage has not begun.
    """
    figure = _figure("step", "loss, nats per token" if stage == "pretext" else "loss")
    of_stage = [event for event in events if event.get("stage") == stage and "step" in event]
    if not of_stage:
        return None
    training = [(event["step"], event["loss"]) for event in of_stage if "loss" in event]
    _line(figure, training, "training", dash="dot")
    held_out = _held_out(events, stage)
    for key, label in HELD_OUT.items():
        points = [(step, values[key]) for step, values in held_out if key in values]
        if points:
            _line(figure, points, f"held out, {label}")
    return _html(figure)


def watch(events: Sequence[Mapping[str, Any]], stage: str) -> str | None:
    """Draw the held-out cosines and the effective dimension of a stage over its steps.

    Args:
        events: lines of `run.jsonl`.
        stage: name of the stage.

    Returns:
        The plot, or `None` if there are no such measurements.
    """
    figure = _figure("step", "mean cosine")
    held_out = _held_out(events, stage)
    if not any("text_cosine" in values for _, values in held_out):
        return None
    for key, label in (("text_cosine", "between texts"), ("token_cosine", "between memory tokens")):
        _line(figure, [(step, values[key]) for step, values in held_out if key in values], label)
    points = [(step, values["rankme"]) for step, values in held_out if "rankme" in values]
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


def _held_out(
    events: Sequence[Mapping[str, Any]], stage: str
) -> list[tuple[int, dict[str, float]]]:
    """Return the steps and held-out measurements of a stage."""
    return [
        (event["step"], event["held_out"])
        for event in events
        if event.get("stage") == stage and "held_out" in event
    ]


def spectrum(encoders: Sequence[Encoder]) -> str:
    """Draw the singular values of all encoders, divided by the largest one."""
    figure = _figure("rank of the singular value", "share of the largest")
    for encoder in encoders:
        values = np.array(encoder.analysis.spectrum.singular_values)
        shares = values[values > 0] / values[0]
        _line(figure, list(enumerate(np.round(shares, 6).tolist(), 1)), encoder.name)
    figure.update_yaxes(type="log", range=[-4, 0.1], dtick=1, exponentformat="power")
    return _html(figure)


def memory(encoder: Encoder) -> str:
    """Draw the mean cosines between the memory tokens of an encoder."""
    from plotly.graph_objects import Heatmap

    assert encoder.analysis.memory is not None
    cosines = np.round(encoder.analysis.memory.cosines, 3)
    figure = _figure("number of the memory token", "number of the memory token")
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
    """Draw the texts in two dimensions, by PCA and then t-SNE.

    A menu switches between the encoders. The colours are clusters of the last encoder's embeddings.

    Args:
        encoders: encoders with embeddings of the texts.
        texts: at least two texts; the map shows the beginning of the one under the pointer.
    """
    from plotly.graph_objects import Scatter

    kmeans = KMeans(min(CLUSTERS, len(texts)), n_init=4, random_state=0)
    clusters = kmeans.fit_predict(encoders[-1].embeddings)
    hover_texts = [_hover_text(text) for text in texts]
    figure = _figure("", "")
    for index, encoder in enumerate(encoders):
        points = np.round(_two_dimensions(encoder.embeddings), 2)
        figure.add_trace(
            Scatter(
                x=points[:, 0],
                y=points[:, 1],
                mode="markers",
                marker={"size": 7, "color": [COLOURS[cluster] for cluster in clusters]},
                text=hover_texts,
                hovertemplate="%{text}<extra></extra>",
                visible=index == len(encoders) - 1,
                name=encoder.name,
            )
        )
    buttons = [
        {
            "label": shown.name,
            "method": "update",
            "args": [{"visible": [encoder is shown for encoder in encoders]}],
        }
        for shown in encoders
    ]
    menu = {"buttons": buttons, "active": len(encoders) - 1, "x": 0, "y": 1.12, "xanchor": "left"}
    figure.update_layout(
        hovermode="closest", updatemenus=[menu] if len(encoders) > 1 else [], showlegend=False
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return _html(figure, height=520)


def capacity(curves: Curves) -> list[tuple[str, str]]:
    """Draw how much a memory holds, over a logarithmic axis.

    Returns:
        The plots, each with its title.
    """
    drawn = []
    for title, lines in curves.panels.items():
        figure = _figure(curves.x, curves.y)
        for name, points in lines.items():
            _line(figure, [(x, y) for x, y, _ in points], name)
            errors = np.array([error for *_, error in points])
            below, above = errors.T if errors.ndim == 2 else (errors, errors)
            figure.data[-1].update(
                mode="lines+markers",
                error_y={"array": np.nan_to_num(above), "arrayminus": np.nan_to_num(below)},
            )
        if curves.level is not None:
            figure.add_hline(curves.level, line={"dash": "dot", "color": "#888"})
        numbers = sorted({x for points in lines.values() for x, *_ in points})
        figure.update_xaxes(type="log", tickvals=numbers, ticktext=[f"{x:,}" for x in numbers])
        drawn.append((title, _html(figure)))
    return drawn


def _two_dimensions(embeddings: Any) -> Any:
    components = PCA(min(50, *embeddings.shape), random_state=0).fit_transform(embeddings)
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(components)


def _hover_text(text: str) -> str:
    """Return the beginning of a text in lines, with its markup escaped."""
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
