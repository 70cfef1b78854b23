"""Run `llm2comp train` in several processes, as a launcher does, and let some of them fail.

Usage: processes.py RUNS, a JSON file with a list of runs, one after another. A run has `recipe`,
`out`, `processes` and `said`. It may have `fsdp`, `zero` (its stage), `fault` and `fault_at`, and
`damaged`: a file of the last checkpoint, and `flip` or `cut`. What process 0 says is in
`said`.0.txt; `said`.json has the checkpoints that the run left, and how many different random
states each has. Standard output gets the exit statuses of each run's processes, as JSON; a negative
one is a signal.

The processes are forked after the imports, which take most of the time of a new process.
"""

import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch.distributed.fsdp import FSDPModule

from llm2comp.__main__ import main
from llm2comp.cli import app  # noqa: F401 (it is imported once, before the forks)
from llm2comp.training import pipeline, scoring, trainer  # noqa: F401
from llm2comp.training.distributed import zero
from llm2comp.training.monitoring.progress import RunProgress

SECONDS = 120
"""A run that hangs is killed after this time."""


def fail(fault: str, stage: str, step: int) -> None:
    """Let this process fail after a step of a stage, or as it writes a checkpoint."""
    after, save = RunProgress.on_step_end, trainer.save_trained

    def on_step_end(self: RunProgress, args: Any, state: Any, control: Any, **other: Any) -> None:
        after(self, args, state, control, **other)
        if self.label == stage and state.global_step == step:
            if fault == "error":
                raise OSError(28, "No space left on device")
            if fault == "a full disk":
                fill(Path(args.output_dir))
                return
            os.kill(os.getpid(), getattr(signal, fault))

    def save_trained(tensors: Any, folder: Path) -> None:
        save(tensors, folder)
        if folder.name == f"checkpoint-{step}":
            os.kill(os.getpid(), signal.SIGKILL)

    if fault == "in a checkpoint":
        trainer.save_trained = save_trained
    else:
        RunProgress.on_step_end = on_step_end


def fill(folder: Path) -> None:
    """Leave no space on the disk of a folder."""
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1024))


def damage(out: Path, name: str, how: str) -> None:
    """Flip a bit of a file of a run's last checkpoint, or cut its last byte off."""
    last = max(out.glob(".*.work/checkpoint-*"), key=lambda c: int(c.name.rpartition("-")[2]))
    content = bytearray((last / name).read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
    (last / name).write_bytes(content if how == "flip" else content[:-1])


def use_fsdp() -> None:
    """Let accelerate use FSDP without a GPU, which torch can and accelerate does not offer."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    os.environ |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    os.environ |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    original = AcceleratorState.__init__

    def initialise(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        plugin = options.get("fsdp_plugin")
        if plugin is not None:
            self.distributed_type = DistributedType.FSDP
            if self.mixed_precision != "no":
                plugin.set_mixed_precision(self.mixed_precision)
            self.fsdp_plugin = plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = initialise
    after = RunProgress.on_step_end

    def on_step_end(self: RunProgress, *arguments: Any, model: Any, **other: Any) -> None:
        assert isinstance(model, FSDPModule), "the weights are not divided"
        after(self, *arguments, **other)

    RunProgress.on_step_end = on_step_end


def use_zero(stage: int) -> None:
    """Let accelerate use DeepSpeed without a GPU, which it can and accelerate does not offer."""
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true"}
    os.environ |= {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    original, configure = AcceleratorState.__init__, zero.configure

    def initialise(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        plugin = options.get("deepspeed_plugin")
        if plugin is not None:
            self.distributed_type = DistributedType.DEEPSPEED
            PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
            plugin.select(_from_accelerator_state=True)
            self.deepspeed_plugins = plugin

    def divide_small_weights_too(args: Any) -> None:
        configure(args)
        config = args.deepspeed_plugin.deepspeed_config["zero_optimization"]
        config["stage3_param_persistence_threshold"] = 0

    AcceleratorState.__init__ = initialise
    zero.configure = divide_small_weights_too
    after = RunProgress.on_step_end

    def on_step_end(self: RunProgress, args: Any, state: Any, *more: Any, **other: Any) -> None:
        kept = sum(p.numel() for p in other["model"].parameters())
        divided = kept == 0
        assert state.global_step > 1 or divided == (stage == 3), "only ZeRO-3 divides weights"
        after(self, args, state, *more, **other)

    RunProgress.on_step_end = on_step_end


def process(run: dict[str, Any], rank: int, port: int) -> None:
    """Be one process of a run."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    if run["processes"] > 1:
        number = str(run["processes"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    said = os.open(f"{run['said']}.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if run.get("fsdp"):
        use_fsdp()
    if run.get("zero"):
        use_zero(run["zero"])
    if "fault" in run and rank == run["fault_at"][0]:
        fail(run["fault"], *run["fault_at"][1:])
    sys.argv = ["llm2comp", "train", run["recipe"], "--out", run["out"]]
    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def statuses(run: dict[str, Any]) -> list[int]:
    """Run, and return the exit status of each process."""
    # torchrun holds the store that the processes share, so that it outlives each of them.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port, children = store.port, []
    if "damaged" in run:
        damage(Path(run["out"]), *run["damaged"])
    for rank in range(run["processes"]):
        child = os.fork()
        if not child:
            process(run, rank, port)
        children.append(child)
    ended: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    while len(ended) < len(children):
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            ended[child] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            for child in set(children) - ended.keys():
                os.kill(child, signal.SIGKILL)
        else:
            time.sleep(0.01)
    checkpoints = sorted(Path(run["out"]).glob(".*.work/checkpoint-*"))
    left = {c.name: len({f.read_bytes() for f in c.glob("rng_state*")}) for c in checkpoints}
    Path(f"{run['said']}.json").write_text(json.dumps(left))
    return [ended[child] for child in children]


torch.set_num_threads(1)
results = [statuses(run) for run in json.loads(Path(sys.argv[1]).read_text())]
sys.stdout.write(json.dumps(results))
