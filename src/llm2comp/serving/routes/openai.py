"""Routes in the shape of OpenAI's: embeddings, and the list of models."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from llm2comp.serving.routes.bodies import (
    ERRORS,
    Input,
    Strict,
    StrictRoute,
    base64_of,
    json_response,
)
from llm2comp.serving.service import Inputs, ServedModel, Service
from llm2comp.utils.choices import Prompt


class EmbeddingsRequest(Strict):
    """What `/v1/embeddings` reads."""

    model: str
    input: Input = Field(
        description="A text, a list of texts, the token ids of a text, or a list of such lists."
    )
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Prompt | None = Field(
        None, description="Puts the model's prompt for queries or documents before each text."
    )
    user: str | None = Field(None, description="Has no effect.")

    def inputs(self) -> Inputs:
        """Return the input as a list of texts, or of lists of ids."""
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if isinstance(self.input[0], int) else self.input


class Embedding(BaseModel):
    """One row of the answer; base64 is that of float32, little endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that the model read, its special tokens and memory tokens included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """What `/v1/embeddings` answers."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage


class Model(BaseModel):
    """A model that is served; the last three fields are not OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llm2comp"
    dimensions: int
    max_tokens: int | None
    memory_tokens: int


class Models(BaseModel):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


def openai_routes(service: Service) -> APIRouter:
    """Return `/v1/embeddings` and `/v1/models`."""
    router = APIRouter(prefix="/v1", responses=ERRORS, route_class=StrictRoute)

    @router.post(
        "/embeddings", response_class=Response, responses={200: {"model": EmbeddingsResponse}}
    )
    async def embeddings(request: EmbeddingsRequest) -> Response:
        model = service.model(request.model)
        found = await service.embed(
            model, request.inputs(), request.input_type, request.dimensions, field="input"
        )
        in_base64 = request.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64_of(row) if in_base64 else row.tolist(),
            }
            for index, row in enumerate(found.embeddings)
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return json_response({"object": "list", "model": model.name, "data": data, "usage": usage})

    @router.get("/models")
    async def models() -> Models:
        return Models(data=[_described(service, model) for model in service.models.values()])

    @router.get("/models/{name:path}")
    async def model(name: str) -> Model:
        return _described(service, service.model(name))

    return router


def _described(service: Service, model: ServedModel) -> Model:
    return Model(
        id=model.name,
        created=service.started,
        dimensions=model.dimensions,
        max_tokens=model.max_tokens,
        memory_tokens=model.memory_tokens,
    )
