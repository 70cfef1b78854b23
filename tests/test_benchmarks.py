"""What benchmarks rest on: the peak of a process is its own, and both steps are the same step."""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_process_s_peak_is_not_that_of_the_one_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness

    script = tmp_path / "small.py"
    lines = ("import sys", f"sys.path.insert(0, {str(BENCHMARKS)!r})", "import harness")
    script.write_text("\n".join([*lines, "harness.finish()", ""]))
    ballast = bytearray(2_000_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])  # touched, so that it is resident
    child = harness.in_processes(str(script), ["small"], 1)["small"]["peak_gb"]
    del ballast
    assert child < 1.5 < harness.peak_gb()


def test_the_literal_step_has_the_loss_and_gradients_of_ours(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pretext_step

    batch = [(list(range(20, 41)), 12), (list(range(60, 72)), 5), ([7, 9, 100, 31, 8], 1)]
    losses, gradients = [], []
    for step in (pretext_step.Ours, pretext_step.Literal):
        model = step(str(tiny_backbone), torch.float32)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():  # not LoRA's zeros: there the encoder is the decoder
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        loss = model.loss(batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert losses[0] > 0.01
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for ours, literal in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-3, atol=1e-6)
