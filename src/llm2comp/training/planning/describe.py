"""A plan in words and tables."""

from llm2comp.training.planning.machines import UTILISATION
from llm2comp.training.planning.plan import SAME_RESULT, Plan, StagePlan
from llm2comp.utils.tables import Cells


def table(plan: Plan) -> Cells:
    """Return the table of stages."""
    heading = ["stage", "steps", "tokens a step", "TFLOP a step", "trains", "memory", "time"]
    rows = [
        [
            stage.stage,
            f"{stage.steps:,}",
            f"{stage.step.tokens:,.0f}",
            f"{stage.step.flops / 1e12:.3g}",
            _count(stage.trained),
            _size(stage.memory),
            _time(stage.seconds),
        ]
        for stage in plan.stages
    ]
    total = sum(stage.seconds for stage in plan.stages)
    return [heading, *rows, ["all", "", "", "", "", "", _time(total)]]


def notes(plan: Plan) -> list[str]:
    """Return what a table cannot say: where it runs, what does not fit, what is assumed."""
    lines = [
        f"{_count(plan.parameters)} parameters; memory of the host {_size(plan.host)}; disk "
        f"{_size(plan.disk)}",
    ]
    if plan.gpu is None:
        lines.append("Time and memory are extrapolated from steps with few layers on this machine.")
    else:
        dtype = str(plan.dtype).removeprefix("torch.")
        speed = f"{plan.gpu.flops(plan.dtype) / 1e12:,.4g} TFLOP/s of a {plan.gpu.name} in {dtype}"
        lines.append(
            "Memory is counted tensor by tensor, with fused attention. Time assumes "
            f"{UTILISATION:.0%} of the {speed}."
        )
    if plan.in_4bit:
        lines.append("Frozen linear layers are counted in 4 bits, and the time without them.")
    lines.append("Drawing rows, held-out measurements and scores take more time.")
    return lines + [_misfit(plan, stage) for stage in plan.stages if stage.changes is not None]


def _misfit(plan: Plan, stage: StagePlan) -> str:
    assert stage.changes is not None
    where = "this machine" if plan.gpu is None else plan.gpu.name
    said = (
        f"{stage.stage} does not fit: it needs {_size(stage.memory)}, and {where} has "
        f"{_size(plan.room)} for it"
    )
    if stage.changes:
        return f"{said}; it fits with {_advice(stage.changes)}"
    return f"{said}; not even one row at a time fits: choose a smaller backbone or more memory"


def _advice(changes: list[str]) -> str:
    """Return settings, those that do not change the result apart from those that do."""
    same = [one for one in changes if one.partition("=")[0].rpartition(".")[2] in SAME_RESULT]
    other = [one for one in changes if one not in same]
    kinds = {"the result stays the same": same, "the result changes": other}
    return ", ".join(f"{' '.join(some)} ({effect})" for effect, some in kinds.items() if some)


def _size(count: float) -> str:
    """Return bytes in words, a small number with two digits at least."""
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.2g} MB"


def _count(numbers: int) -> str:
    """Return how many numbers, in thousands if they are few."""
    return f"{numbers / 1e6:,.1f} M" if numbers >= 1e6 else f"{numbers / 1e3:,.1f} k"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
