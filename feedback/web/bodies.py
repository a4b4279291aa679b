"""Shapes of what the API takes and gives, for checks and for its OpenAPI description."""

import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from feedback.store import answers

TEXT = 300_000
"""Characters that a comment or a better response may have."""


def whole(value: Any) -> Any:
    """A number of JSON that is whole, as an int: 1.0 is an integer there."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def boolean(value: Any) -> bool:
    """A value that is true or false; 1 and 0 are neither."""
    if not isinstance(value, bool):
        raise ValueError("must be true")
    return value


WHOLE = BeforeValidator(whole)
Text = Annotated[str, Field(max_length=TEXT)]
Token = Annotated[str, Field(min_length=1, max_length=200)]


class Body(BaseModel):
    """A body without fields that nobody reads."""

    model_config = ConfigDict(extra="forbid")


class Degree(Body):
    """Choice between two responses, in the order of the screen: -2, the first is much better, to 2."""

    degree: Annotated[int, Field(strict=True, ge=-2, le=2), WHOLE]


class BothBad(Body):
    """Choice of neither response of a pair, because both are bad."""

    both_bad: Annotated[Literal[True], BeforeValidator(boolean)]


class Rating(Body):
    """Rating of one response: 0 or 1 (thumbs), or 1 to 5 (stars)."""

    rating: Annotated[int, Field(strict=True, ge=0, le=5), WHOLE]


class Ranks(Body):
    """Ranks of the responses in the order of the screen; 1 is the best, and ties are allowed."""

    ranks: Annotated[
        list[Annotated[int, Field(strict=True, ge=1, le=8), WHOLE]],
        Field(min_length=2, max_length=8),
    ]


class Judgement(Body):
    """One answer to the item that a lease holds."""

    lease: Token
    choice: Degree | BothBad | Rating | Ranks
    comment: Text = ""
    better: Text = ""
    differences: StrictBool = False
    visible_ms: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1), WHOLE] | None = None
    page_version: Annotated[str, Field(max_length=100)] | None = None

    def answer(self) -> answers.Answer:
        """The answer as the database takes it."""
        return answers.Answer(**{**self.model_dump(), "choice": self.choice.model_dump()})


class Skip(Body):
    """Passing over the item that a lease holds."""

    key: uuid.UUID
    lease: Token
    reason: Literal["same_text", "broken", "cannot_tell", "expertise", "upsetting"]
    comment: Text = ""


class Undo(Body):
    """Taking a judgement back; `key` is the undoing's own."""

    key: uuid.UUID


class Turn(BaseModel):
    """One turn of a prompt that is a conversation."""

    role: str
    content: str


class ShownResponse(BaseModel):
    """A response as the annotator sees it."""

    text: str


class Shown(BaseModel):
    """An item as the annotator sees it: its responses stand in the order of the screen."""

    kind: Literal["pair", "single", "ranking"]
    scale: Literal["thumbs", "stars"] | None
    question: str | None
    prompt: str | list[Turn]
    responses: list[ShownResponse]


class Draft(BaseModel):
    """Texts that were typed for an item before."""

    comment: str
    better: str


class Lease(BaseModel):
    """An item to judge, held for the annotator for some seconds."""

    lease: str
    seconds: float
    item: Shown
    number: int
    of: int
    purpose: Literal["training", "work"]
    draft: Draft | None
    guidelines_version: str


class Kept(BaseModel):
    """The fate of a judgement, a skip or an undoing."""

    key: str
    kind: Literal["judge", "skip", "undo", "surplus"]
    why: str
    """A sentence for the person, where it was kept as surplus."""
    right: bool | None
    """Whether a training answer was right; null after other items."""
    gold: Any
    """The right answer of a training item, as a choice in the order of the screen."""
    reason: str | None
    """The owner's reason for the right answer of a training item."""
    training: Literal["going", "passed", "failed"] | None
    """The state of the training after a training item."""


class Undone(Kept):
    """The fate of an undoing, with the item again."""

    lease: Lease | None


class Put(BaseModel):
    """How many items are new, and how many were there already."""

    created: int
    unchanged: int


class Refusal(BaseModel):
    """Why a request was refused, in one sentence."""

    error: str


class Health(BaseModel):
    """The word of a server that answers, as its database does."""

    status: Literal["ok"]
    schema_version: str
