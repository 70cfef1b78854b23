"""The models and indexes of a server, and how a request gets its answer from one of them."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError, counted
from llm2comp.inference.search import require_query
from llm2comp.inference.vector_format import Embeddings, require_dim, truncate
from llm2comp.retrieval.filters import require_filter
from llm2comp.retrieval.index import IndexHit
from llm2comp.retrieval.store import ReplacedError
from llm2comp.serving.batching import Batcher, Embedded, NotFiniteError, QueueFullError
from llm2comp.serving.memory_view import MemoryView, NoMemoryViewError, look, memory_tokens
from llm2comp.serving.observation import Metrics
from llm2comp.serving.problems import Problem, shutting_down
from llm2comp.serving.searching import MOST_HITS, Found, Searcher, ServedIndex
from llm2comp.serving.settings import Limits
from llm2comp.serving.token_ids import UnknownTokensError
from llm2comp.utils.choices import Prompt, SearchBy

Inputs = list[str] | list[list[int]]
"""The texts of a request, or the ids of the tokens of each text."""


@dataclass(frozen=True)
class ServedModel:
    """A model that is loaded.

    Attributes:
        name: under which clients ask for it.
        dimensions: of its embeddings. The batcher may give k vectors after an embedding.
        max_tokens: that it reads of a text; None if there is no limit.
        memory_tokens: that it pools over; 0 if it pools otherwise.
        batcher: computes its embeddings.
    """

    name: str
    dimensions: int
    max_tokens: int | None
    memory_tokens: int
    batcher: Batcher


class Service:
    """Everything that the routes need.

    Args:
        encoders: loaded models, by the name under which clients ask for them; the first one answers
            routes that name no model.
        limits: of what clients may ask for.
        batch_size: texts of 64 tokens per batch.
        indexes: that are open, whose encoders are among the models.
    """

    def __init__(
        self,
        encoders: Mapping[str, SentenceTransformer],
        limits: Limits,
        batch_size: int = 32,
        indexes: Sequence[ServedIndex] = (),
    ) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.started = int(time.time())
        self.draining = False
        """Whether the server answers what it has accepted, and accepts nothing more."""
        self.models = {
            name: self._serve(name, encoder, batch_size) for name, encoder in encoders.items()
        }
        self.indexes = {one.name: one for one in indexes}
        self.searcher = Searcher(limits.waiting)
        self.metrics.searches.set_function(lambda: self.searcher.waiting)

    def _serve(self, name: str, encoder: SentenceTransformer, batch_size: int) -> ServedModel:
        dimensions = require_dim(encoder, None)
        on_batch = partial(self.metrics.on_batch, name)
        batcher = Batcher(encoder, batch_size, self.limits.waiting, on_batch)
        self.metrics.waiting.labels(name).set_function(lambda: batcher.waiting)
        longest = encoder.max_seq_length  # infinite for a static model
        limited = longest is not None and math.isfinite(longest)
        max_tokens = longest if limited else None
        return ServedModel(name, dimensions, max_tokens, memory_tokens(encoder), batcher)

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted is computed."""
        return not self.waiting

    @property
    def waiting(self) -> int:
        """Texts and searches that are accepted and not computed."""
        texts = sum(model.batcher.waiting for model in self.models.values())
        return texts + self.searcher.waiting

    @property
    def alive(self) -> bool:
        """Whether the thread of every model runs."""
        return all(model.batcher.alive for model in self.models.values())

    def close(self) -> None:
        """End the threads."""
        for model in self.models.values():
            model.batcher.close()
        self.searcher.close()

    def model(self, name: str) -> ServedModel:
        """Return a model by its name.

        Raises:
            Problem: 404 if there is none.
        """
        if name not in self.models:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                "no model of this name is served",
                f"give one of {', '.join(self.models)}",
                param="model",
            )
        return self.models[name]

    def index(self, name: str | None) -> ServedIndex:
        """Return an index by its name, which may be left out if there is one index.

        Raises:
            Problem: 404 if there is none, 400 if several could be meant.
        """
        if name is None and len(self.indexes) == 1:
            return next(iter(self.indexes.values()))
        if name in self.indexes:
            return self.indexes[name]
        if not self.indexes:
            status, said = HTTPStatus.NOT_FOUND, "no index is served"
            remedy = "start the server with --index DIR"
        else:
            status, said = HTTPStatus.NOT_FOUND, "no index of this name is served"
            remedy = f"give one of {', '.join(self.indexes)}"
        if name is None and self.indexes:
            status, said = HTTPStatus.BAD_REQUEST, "several indexes are served"
        raise Problem(status, said, remedy, param="index")

    async def search(
        self, index: ServedIndex, queries: list[str], top_k: int, where: str | None, by: SearchBy
    ) -> list[list[IndexHit]]:
        """Return what an index has for each query, as `llm2comp.retrieval.index.Index.search` does.

        The queries share batches with other texts of the model.

        Args:
            index: that is searched.
            queries: at least one.
            top_k: texts per query.
            where: condition in SQL.
            by: what ranks the texts.

        Raises:
            Problem: if a limit is exceeded, or the index cannot be searched so.
        """
        self._require_allowed(queries, "query")
        with _mistake_in("query"):
            for query in queries:
                require_query(query)
        if len(queries) * top_k > MOST_HITS:
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                f"a request finds at most {MOST_HITS} texts, and top_k asks for {top_k} for each "
                f"of {counted(len(queries), 'query', 'queries')}",
                "ask for fewer",
                param="top_k",
            )
        if where is not None:
            with _mistake_in("where"):
                require_filter(where)
        self._require_open()
        vectors: Sequence[Embeddings | None] = [None] * len(queries)
        if by != "text":
            model = self.models[index.model]
            found = await self._compute(model, queries, "query", "query")
            vectors = list(index.index.fit(found.embeddings))
        # One after the other, so that the queries of a request do not hold up other requests.
        try:
            return [
                await self.in_thread(
                    partial(index.index.find, query, vector, top_k, where=where, by=by)
                )
                for query, vector in zip(queries, vectors, strict=True)
            ]
        except ReplacedError as error:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the index {index.name} was removed, or made anew",
                "start the server again",
            ) from error
        except UserError as error:
            raise Problem(
                HTTPStatus.BAD_REQUEST, str(error), "see GET /indexes for the columns"
            ) from error

    async def in_thread(self, search: Callable[[], Found]) -> Found:
        """Return what a function returns that reads an index.

        Raises:
            Problem: if too many searches wait already.
        """
        with _full_queue_is_a_problem():
            accepted = self.searcher.submit(search)
        return await asyncio.wrap_future(accepted)

    async def embed(
        self,
        model: ServedModel,
        inputs: Inputs,
        prompt: Prompt | None = None,
        dimensions: int | None = None,
        *,
        field: str,
    ) -> Embedded:
        """Return the embeddings of a request. If this is cancelled, they are not computed.

        Args:
            model: that embeds.
            inputs: at least one.
            prompt: which prompt of the model is put before each text.
            dimensions: to keep; None keeps all.
            field: of the request that has the inputs, for messages.

        Raises:
            Problem: if a limit is exceeded, or the inputs cannot be embedded.
        """
        self._require_allowed(inputs, field)
        if dimensions is not None and dimensions > model.dimensions:
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                f"the embeddings of {model.name} have {model.dimensions} dimensions",
                "ask for that number or fewer",
                param="dimensions",
            )
        self._require_open()
        found = await self._compute(model, inputs, prompt, field)
        whole = found.embeddings[:, : model.dimensions]
        return Embedded(truncate(whole, dimensions or model.dimensions), found.tokens)

    async def look(self, model: ServedModel, text: str, prompt: Prompt | None) -> MemoryView:
        """Return what the memory tokens of a text are like.

        Args:
            model: that reads the text.
            text: one.
            prompt: which prompt of the model is put before the text.

        Raises:
            Problem: if a limit is exceeded, or there is nothing to look at.
        """
        self._require_allowed([text], "text")
        self._require_open()
        try:
            with _full_queue_is_a_problem():
                called = model.batcher.call(partial(look, text=text, prompt=prompt))
            view: MemoryView = await asyncio.wrap_future(called)
        except NoMemoryViewError as error:
            raise Problem(HTTPStatus.BAD_REQUEST, str(error), error.remedy) from error
        return view

    def _require_open(self) -> None:
        """Check that the server accepts requests."""
        if self.draining:
            raise shutting_down()

    def _require_allowed(self, inputs: Inputs, field: str) -> None:
        """Check the limits of a request."""
        if len(inputs) > self.limits.texts:
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                f"{field} has {len(inputs)} texts, and the most is {self.limits.texts}",
                "send them in several requests",
                param=field,
            )
        for number, one in enumerate(inputs):
            if len(one) > self.limits.characters:
                unit = "characters" if isinstance(one, str) else "tokens"
                raise Problem(
                    HTTPStatus.BAD_REQUEST,
                    f"text {number} of {field} has {len(one)} {unit}, and the most is "
                    f"{self.limits.characters}",
                    "divide it into parts",
                    param=field,
                )

    async def _compute(
        self, model: ServedModel, inputs: Inputs, prompt: Prompt | None, field: str
    ) -> Embedded:
        """Wait for the embeddings."""
        try:
            with _full_queue_is_a_problem():
                accepted = model.batcher.submit(inputs, prompt)
            return await asyncio.wrap_future(accepted)
        except UnknownTokensError as error:
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                f"{field}: {error}",
                "send the text itself, or the ids of the tokenizer of this model without special "
                "tokens",
                param=field,
            ) from error
        except NotFiniteError as error:
            raise Problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                str(error),
                "start the server with --dtype float32, or serve another model",
            ) from error


@contextmanager
def _mistake_in(field: str) -> Iterator[None]:
    """Tell the client what is wrong with a field."""
    try:
        yield
    except UserError as error:
        said, _, remedy = str(error).rpartition("; ")
        raise Problem(HTTPStatus.BAD_REQUEST, said, remedy, param=field) from error


@contextmanager
def _full_queue_is_a_problem() -> Iterator[None]:
    """Tell the client when to try again."""
    try:
        yield
    except QueueFullError as error:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too many requests wait already",
            "try again after the seconds in Retry-After",
            headers={"Retry-After": str(error.seconds)},
        ) from error
