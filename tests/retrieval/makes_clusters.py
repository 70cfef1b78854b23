"""Make an index of vectors of which many are equal, so that LanceDB finds empty clusters."""

import sys
from pathlib import Path

import numpy as np

from llm2comp.retrieval import store
from llm2comp.retrieval.about import About
from llm2comp.retrieval.rows import Kinds, Row

store.EXACT_UP_TO = 1_000
about = About(model="none", dim=8, precision="int8", document=[], query=[])
made = store.Store.create(Path(sys.argv[1]), about)
vectors = np.eye(8, dtype=np.float32)[np.arange(21_000) % 3]
made.put([Row(str(number), "") for number in range(21_000)], vectors, Kinds())
made.optimize()
