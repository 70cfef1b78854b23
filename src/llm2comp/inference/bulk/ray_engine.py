"""Encode files on a cluster, by Ray Data: one actor per device holds the model.

Ray Data hands each actor the next file when it is free, restarts actors that ended, and gives the
file of such an actor to another. An actor reads its file and writes its vectors by itself, so no
texts and no vectors go through Ray.
"""

import importlib.util
import inspect
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from llm2comp.errors import UserError, one_line
from llm2comp.inference.bulk.encoding import Encoding, Settings
from llm2comp.inference.bulk.shards import Result, Shard

RETRIES = 2
"""A file is given to this many more actors if the one that encodes it ends: a file that ends every
actor, perhaps for lack of memory, must not do so for ever."""


class RayEngine:
    """Encodes files on the cluster that RAY_ADDRESS or this machine names, or else on this machine.

    Args:
        settings: how they are encoded.
        workers: number of actors; None for one per GPU, or one per machine if there are none.

    Raises:
        UserError: if Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, settings: Settings, workers: int | None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError("--engine ray needs Ray: pip install 'llm2comp[ray]'")
        self.ours = _connect()
        import ray

        self.settings = replace(settings, model=_absolute(settings.model))
        self.shown = settings.model
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.workers, self.resources = actors(workers, machines)

    def encoding(self, known: Encoding | None, out: str) -> Encoding:
        """Return what the vectors are, as `Encoder.encoding` does, on a machine of the cluster."""
        import ray

        task = ray.remote(max_calls=1, **self.resources)(_encoding)
        with _one_line():
            found: Encoding = ray.get(task.remote(self.settings, known, out))
        return found if known is not None else replace(found, model=self.shown)

    def run(
        self, shards: Sequence[Shard], out: str, encoding: Encoding, progress: Progress, task: Any
    ) -> Iterator[Result]:
        """Yield what became of each file, in the order in which they are done.

        Args:
            shards: the files of texts.
            out: URL of the folder of vectors.
            encoding: what the vectors are.
            progress: the progress display.
            task: the bar of texts in it.

        Raises:
            UserError: if Ray fails.
        """
        import ray

        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # a file that ends its actors does not stop the others
        # Ray 2.64 takes this argument away; it then gives a file to new actors without end.
        bounded = "ray_remote_args" in inspect.signature(ray.data.Dataset.map_batches).parameters
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        left = {shard.name for shard in shards}
        with _one_line(), ray.data.DataContext.current(context):
            results = ray.data.from_items(
                [asdict(shard) for shard in shards], override_num_blocks=len(shards)
            ).map_batches(
                _Actor,
                fn_constructor_args=(self.settings, out, encoding),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=min(self.workers, len(shards)), max_tasks_in_flight_per_actor=1
                ),
                **self.resources,
                **({"max_task_retries": RETRIES} if bounded else {}),
            )
            for row in results.iter_rows():
                result = Result(**row)
                left.discard(result.name)
                progress.advance(task, result.rows)
                yield result
        for name in sorted(left):
            yield Result(
                name,
                error=f"{name}: the process that encoded it ended {RETRIES + 1} times, perhaps for "
                "lack of memory",
            )

    def close(self) -> None:
        """Leave the cluster, and end it if this engine started it."""
        import ray

        if self.ours:
            ray.shutdown()


class _Actor:
    """A process of the cluster that holds the model."""

    def __init__(self, settings: Settings, out: str, encoding: Encoding) -> None:
        # Here, because only the machines of the cluster need torch and the model.
        from llm2comp.inference.bulk.shard_file import Encoder
        from llm2comp.utils.hardware import retain_freed_memory

        retain_freed_memory()
        self.out = out
        self.its_encoding = encoding
        self.error = ""
        try:
            self.encoder = Encoder(settings)
            self.encoder.require(encoding)
        except Exception as error:  # raised from here, it would be one more process that ended
            self.error = one_line(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode the one file of a batch."""
        shard = Shard(**{name: str(values[0]) for name, values in batch.items()})
        if self.error:
            result = Result(shard.name, error=self.error, stop=True)
        else:
            result = self.encoder.encode(shard, self.out, self.its_encoding)
        return {name: [value] for name, value in asdict(result).items()}


def _encoding(settings: Settings, known: Encoding | None, out: str) -> Encoding:
    from llm2comp.inference.bulk.shard_file import Encoder

    return Encoder(settings).encoding(known, out)


def _connect() -> bool:
    """Join a cluster or start one; return False if the program has done so already.

    Raises:
        UserError: if the cluster cannot be reached.
    """
    defaults = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    if "RAY_ADDRESS" in os.environ:
        defaults["RAY_NUM_REDIS_GET_RETRIES"] = "1"  # 20 would be 14 minutes
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    if ray.is_initialized():
        return False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    before = signal.getsignal(signal.SIGTERM)
    with _one_line():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's would end with a stack and another status
    return True


def actors(
    wanted: int | None, machines: Sequence[Mapping[str, float]]
) -> tuple[int, dict[str, float]]:
    """Return the number of actors, and what each takes of its machine.

    Args:
        wanted: number of actors; None for one per GPU, or one per machine if there are none.
        machines: what each has: `GPU` and `CPU`. The actors of a machine without GPUs divide its
            processors, and Ray tells torch how many each has.
    """
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    if gpus:
        count = wanted or gpus
        return count, {"num_gpus": 1 / -(-count // gpus)}
    cpus = [machine["CPU"] for machine in machines if machine.get("CPU")]  # a head may have none
    count = wanted or len(cpus)
    each = -(-count // len(cpus))
    return count, {"num_cpus": max(1, min(cpus) // each)}


def _absolute(model: str) -> str:
    """Return the name of a model as every process finds it, whatever its working folder is."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn the errors of Ray into one line.

    Raises:
        UserError: for each of them.
    """
    import ray

    try:
        yield
    except (ray.exceptions.RayError, ConnectionError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None:
            # What a worker raises arrives as an error of Ray, which is of the worker's type too.
            if isinstance(cause, UserError) and not isinstance(cause, ray.exceptions.RayError):
                raise UserError(str(cause)) from error
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise UserError(f"Ray: {one_line(error)}") from error
