"""Routes in the shapes of text-embeddings-inference (`/embed`) and Cohere (`/v2/embed`)."""

import uuid
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from llm2comp.inference.vector_format import to_unit_length
from llm2comp.serving.routes.bodies import (
    ERRORS,
    Strict,
    StrictRoute,
    TextOrTexts,
    Texts,
    base64_of,
    json_response,
)
from llm2comp.serving.service import Service
from llm2comp.utils.choices import Prompt

InputType = Literal["search_query", "search_document", "classification", "clustering"]
PROMPTS: dict[InputType, Prompt | None] = {
    "search_query": "query",
    "search_document": "document",
    "classification": None,
    "clustering": None,
}
"""The prompt of ours for an input type of Cohere's."""


class EmbedRequest(Strict):
    """What text-embeddings-inference reads at `/embed`; the first model answers."""

    inputs: TextOrTexts
    prompt_name: Prompt | None = None
    dimensions: int | None = Field(None, ge=1)
    normalize: bool = Field(True, description="Scale embeddings to unit length.")
    truncate: Literal[True] = Field(True, description="Long texts are truncated in any case.")
    truncation_direction: Literal["Right", "right"] = "Right"


class CohereRequest(Strict):
    """What Cohere's second version reads at `/v2/embed`."""

    model: str
    texts: Texts
    input_type: InputType
    embedding_types: list[Literal["float", "base64"]] = Field(["float"], min_length=1)
    output_dimension: int | None = Field(None, ge=1)
    truncate: Literal["END"] = "END"


class CohereUnits(BaseModel):
    """Tokens that the model read."""

    input_tokens: int


class CohereMeta(BaseModel):
    """What the answer says about itself."""

    api_version: dict[str, str]
    billed_units: CohereUnits


class CohereResponse(BaseModel):
    """What `/v2/embed` answers."""

    id: str
    response_type: Literal["embeddings_by_type"]
    embeddings: dict[str, list[list[float] | str]]
    texts: list[str]
    meta: CohereMeta


def other_routes(service: Service) -> APIRouter:
    """Return `/embed` and `/v2/embed`."""
    router = APIRouter(responses=ERRORS, route_class=StrictRoute)

    @router.post("/embed", response_class=Response, responses={200: {"model": list[list[float]]}})
    async def embed(request: EmbedRequest) -> Response:
        model = next(iter(service.models.values()))
        texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
        found = await service.embed(
            model, texts, request.prompt_name, request.dimensions, field="inputs"
        )
        embeddings = found.embeddings
        return json_response(
            (to_unit_length(embeddings) if request.normalize else embeddings).tolist()
        )

    @router.post("/v2/embed", response_class=Response, responses={200: {"model": CohereResponse}})
    async def cohere(request: CohereRequest) -> Response:
        model = service.model(request.model)
        prompt = PROMPTS[request.input_type]
        found = await service.embed(
            model, request.texts, prompt, request.output_dimension, field="texts"
        )
        forms = {
            "float": found.embeddings.tolist,
            "base64": lambda: [base64_of(row) for row in found.embeddings],
        }
        return json_response(
            {
                "id": str(uuid.uuid4()),
                "response_type": "embeddings_by_type",
                "embeddings": {kind: forms[kind]() for kind in request.embedding_types},
                "texts": request.texts,
                "meta": {
                    "api_version": {"version": "2"},
                    "billed_units": {"input_tokens": found.tokens},
                },
            }
        )

    return router
