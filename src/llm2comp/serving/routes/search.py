"""Routes that search indexes, and list them."""

from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from llm2comp.retrieval.rows import Kind, Value
from llm2comp.retrieval.store import ReplacedError
from llm2comp.serving.routes.bodies import (
    ERRORS,
    Strict,
    StrictRoute,
    Text,
    TextOrTexts,
    json_response,
)
from llm2comp.serving.searching import ServedIndex
from llm2comp.serving.service import Service
from llm2comp.utils.choices import IndexPrecision, SearchBy


class SearchRequest(Strict):
    """What `/search` reads: the arguments of `llm2comp.retrieval.index.Index.search`."""

    query: TextOrTexts = Field(description="A query, or a list of queries.")
    index: str | None = Field(None, description="Name; needed if several indexes are served.")
    top_k: int = Field(5, ge=1, description="Number of texts per query.")
    where: str | None = Field(None, description='Condition in SQL, such as "year >= 2020".')
    by: SearchBy = Field("vector", description="Rank by vectors, by BM25 over words, or by both.")


class Hit(BaseModel):
    """A text that was found; see `llm2comp.retrieval.index.IndexHit`."""

    id: str
    score: float
    text: str
    metadata: dict[str, Value]


class SearchResponse(BaseModel):
    """What `/search` answers."""

    index: str
    results: list[list[Hit]] = Field(description="Per query, its texts, best first.")


class VectorStoreRequest(Strict):
    """What OpenAI's search of a vector store reads, as far as an index has it."""

    query: Text
    max_num_results: int = Field(10, ge=1, le=50)


class VectorStoreContent(BaseModel):
    """A part of a text that was found; here it is the whole text."""

    type: Literal["text"]
    text: str


class VectorStoreHit(BaseModel):
    """A text that was found, by OpenAI's names."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, Value]
    content: list[VectorStoreContent]


class VectorStoreResponse(BaseModel):
    """What OpenAI's search of a vector store answers."""

    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[VectorStoreHit]
    has_more: Literal[False]
    next_page: None


class IndexAnswer(BaseModel):
    """An index that is served."""

    name: str
    model: str
    error: str | None = Field(description="Why it cannot be searched, if it was removed or remade.")
    texts: int | None
    dimensions: int
    precision: IndexPrecision
    vectors: int = Field(description="Vectors by which a text is found: 1, or k by MaxSim.")
    columns: dict[str, Kind]


class Indexes(BaseModel):
    """All indexes that are served."""

    data: list[IndexAnswer]


def search_routes(service: Service) -> APIRouter:
    """Return `/search`, `/indexes`, and OpenAI's search of a vector store."""
    router = APIRouter(responses=ERRORS, route_class=StrictRoute)

    @router.post("/search", response_class=Response, responses={200: {"model": SearchResponse}})
    async def search(request: SearchRequest) -> Response:
        index = service.index(request.index)
        queries = [request.query] if isinstance(request.query, str) else request.query
        found = await service.search(index, queries, request.top_k, request.where, request.by)
        results = [[asdict(hit) for hit in hits] for hits in found]
        return json_response({"index": index.name, "results": results})

    @router.post(
        "/v1/vector_stores/{name}/search",
        response_class=Response,
        responses={200: {"model": VectorStoreResponse}},
    )
    async def search_vector_store(name: str, request: VectorStoreRequest) -> Response:
        index = service.index(name)
        (hits,) = await service.search(
            index, [request.query], request.max_num_results, None, "vector"
        )
        data = [
            {
                "file_id": hit.id,
                "filename": hit.id,
                "score": hit.score,
                "attributes": hit.metadata,
                "content": [{"type": "text", "text": hit.text}],
            }
            for hit in hits
        ]
        return json_response(
            {
                "object": "vector_store.search_results.page",
                "search_query": [request.query],
                "data": data,
                "has_more": False,
                "next_page": None,
            }
        )

    @router.get("/indexes")
    async def indexes() -> Indexes:
        served = service.indexes.values()
        return Indexes(data=await service.in_thread(lambda: [_described(one) for one in served]))

    return router


def _described(served: ServedIndex) -> IndexAnswer:
    about = served.index.about
    texts, columns, error = None, {}, None
    try:
        texts, columns = len(served.index), served.index.columns
    except ReplacedError:
        error = "it was removed, or made anew; start the server again"
    return IndexAnswer(
        name=served.name,
        model=served.model,
        error=error,
        texts=texts,
        dimensions=about.dim,
        precision=about.precision,
        vectors=about.vectors,
        columns=columns,
    )
