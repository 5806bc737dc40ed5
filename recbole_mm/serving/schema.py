"""What is asked of a server, and what it answers: the models of its OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_K = 1000
"""Items of a list."""
MOST_IDS = 10_000
"""Ids of a history, of `allow` or of `exclude`."""
LONGEST_ID = 512
"""Characters of an id."""

Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
Ids = Annotated[tuple[Id, ...], Field(min_length=1, max_length=MOST_IDS)]


class Limits(BaseModel):
    """How many items are listed, and of which."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    k: int = Field(10, ge=1, le=MOST_K, description="items of the list")
    allow: Ids | None = Field(None, description="these items alone")
    exclude: Ids | None = Field(None, description="never these items")


class RecommendRequest(Limits):
    """Whom to recommend to: a user of the data, a new user by a history, or a user of the data with another history."""

    user: Id | None = Field(None, description="a user of the data")
    history: Ids | None = Field(None, description="items, the earliest first")
    mask_history: bool | None = Field(None, description="leave out the history; null: as the run was evaluated")
    known: Literal["all", "test"] = Field("all", description="what is known of a user: all, or what the test knew")
    reason: bool = Field(False, description="say why, where the run has words for it")
    skip_unknown: bool = Field(False, description="pass over unknown items of the history")

    @model_validator(mode="after")
    def _names_somebody(self) -> RecommendRequest:
        if self.user is None and self.history is None:
            raise ValueError("give a user, a history or both")
        return self


class SimilarRequest(Limits):
    """Which item others are sought for."""

    item: Id


Question = RecommendRequest | SimilarRequest


class Listed(BaseModel):
    """An item of a list."""

    item: str
    title: str = Field(description="empty where the data have none")
    image: bool = Field(description="whether /images/{item} has a picture")


class Scored(Listed):
    """A recommended item."""

    score: float | None = Field(description="null for items that the model ranks behind all others")


class Recommendations(BaseModel):
    """A list for somebody, the best first."""

    run: str = Field(description="folder of the run that answered")
    items: list[Scored]
    reason: str | None = Field(description="what an LLM wrote of the user for the run; null where it was not asked for")


class SimilarItems(BaseModel):
    """The items most like another; scores are cosines."""

    run: str
    items: list[Scored]


class Item(Listed):
    """An item with its columns."""

    columns: dict[str, str] = Field(description="of the .item file, as they were written")


class Items(BaseModel):
    """Items that were found."""

    items: list[Listed]


class Users(BaseModel):
    """Ids of users that were found."""

    users: list[str]


class RunFacts(BaseModel):
    """What is served."""

    run: str
    model: str
    dataset: str
    users: int
    items: int
    histories: bool = Field(description="whether new users can be given by their histories")
    reasons: bool = Field(description="whether there are words that say why")


class Health(BaseModel):
    """Whether requests are answered."""

    status: Literal["ok"]
    run: str


class Problem(BaseModel):
    """What went wrong, in one line."""

    error: str
