"""What can be told of the engine of Ray where Ray is not installed."""

import importlib.util
from pathlib import Path

import pytest

import llm2comp
from llm2comp.errors import UserError
from llm2comp.inference.bulk.ray_engine import actors

GPU, CPU, HEAD = {"GPU": 4.0, "CPU": 32.0}, {"CPU": 16.0}, {"object_store_memory": 1.0}


@pytest.mark.parametrize(
    ("wanted", "machines", "count", "resources"),
    [
        (None, [GPU, GPU, CPU], 8, {"num_gpus": 1}),
        (3, [GPU], 3, {"num_gpus": 1}),
        (6, [GPU], 6, {"num_gpus": 0.5}),
        (None, [HEAD, CPU, {"CPU": 8.0}], 2, {"num_cpus": 8}),
        (4, [HEAD, CPU, CPU], 4, {"num_cpus": 8}),
        (5, [{"CPU": 2.0}], 5, {"num_cpus": 1}),
    ],
)
def test_there_is_an_actor_per_device_and_actors_fit_on_the_machines(
    wanted: int | None, machines: list[dict[str, float]], count: int, resources: dict[str, float]
) -> None:
    assert actors(wanted, machines) == (count, resources)


def test_without_ray_one_line_says_how_to_install_it(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else find(name)
    )
    with pytest.raises(UserError, match=r"needs Ray: pip install 'llm2comp\[ray\]'"):
        llm2comp.encode_files(encoder, tmp_path / "*.txt", tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()
