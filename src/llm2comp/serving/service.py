"""The models of a server, and how a request gets its embeddings from one of them."""

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from sentence_transformers import SentenceTransformer

from llm2comp.inference.vector_format import truncate
from llm2comp.serving.batching import Batcher, Embedded, NotFiniteError, QueueFullError
from llm2comp.serving.memory_view import MemoryView, NoMemoryViewError, look, memory_tokens
from llm2comp.serving.observation import Metrics
from llm2comp.serving.problems import Problem
from llm2comp.serving.settings import Limits
from llm2comp.serving.token_ids import UnknownTokensError
from llm2comp.utils.choices import Prompt

Inputs = list[str] | list[list[int]]
"""The texts of a request, or the ids of the tokens of each text."""


@dataclass(frozen=True)
class ServedModel:
    """A model that is loaded.

    Attributes:
        name: under which clients ask for it.
        dimensions: of its embeddings.
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
    """

    def __init__(
        self, encoders: Mapping[str, SentenceTransformer], limits: Limits, batch_size: int = 32
    ) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.started = int(time.time())
        self.draining = False
        """Whether the server answers what it has accepted, and accepts nothing more."""
        self.models = {
            name: self._serve(name, encoder, batch_size) for name, encoder in encoders.items()
        }

    def _serve(self, name: str, encoder: SentenceTransformer, batch_size: int) -> ServedModel:
        dimensions = encoder.encode("a text", show_progress_bar=False).shape[-1]
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
        return not any(model.batcher.waiting for model in self.models.values())

    @property
    def alive(self) -> bool:
        """Whether the thread of every model runs."""
        return all(model.batcher.alive for model in self.models.values())

    def close(self) -> None:
        """End the threads of the models."""
        for model in self.models.values():
            model.batcher.close()

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
        return Embedded(truncate(found.embeddings, dimensions or model.dimensions), found.tokens)

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
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the server is shutting down",
                "try again after the seconds in Retry-After, or on another server",
                headers={"Retry-After": "5", "Connection": "close"},
            )

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
def _full_queue_is_a_problem() -> Iterator[None]:
    """Tell the client when to try again."""
    try:
        yield
    except QueueFullError as error:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too many texts wait already",
            "try again after the seconds in Retry-After",
            headers={"Retry-After": str(error.seconds)},
        ) from error
