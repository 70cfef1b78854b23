"""Run a recipe in processes that are killed at random moments, each time until it is finished."""

import os
import random
import signal
import time
from pathlib import Path

from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline


def train(recipe: Path, out: Path) -> None:
    """Train in this process, and end it."""
    status = 1
    try:
        pipeline.train(load_recipe(recipe), out)
        status = 0
    finally:
        os._exit(status)


def killed(recipe: Path, out: Path, seconds: float) -> bool:
    """Train in a child that is killed after some seconds; return whether it was killed."""
    child = os.fork()
    if not child:
        train(recipe, out)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"{out}: a resumed run failed"
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def run_and_kill(recipe: Path, folder: Path, kills: int, longest: float) -> list[Path]:
    """Run until there were as many kills, each after at most `longest` seconds.

    Returns:
        The folders of the runs, FOLDER/0, FOLDER/1 and so on.
    """
    generator = random.Random(0)
    done = run = 0
    while done < kills:
        while killed(recipe, folder / str(run), generator.uniform(0, longest)):
            done += 1
            if done == kills:
                longest = 1e9
        run += 1
    return sorted(folder.iterdir())
