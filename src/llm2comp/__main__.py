"""``python -m llm2comp`` is ``llm2comp``."""

from llm2comp.cli.app import app

app()
