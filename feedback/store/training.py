"""The training phase: items with known answers that each person judges before any work."""

import sqlalchemy as sa

from feedback.settings import Settings
from feedback.store import answers, events, schema


def due(c: sa.Connection, who: sa.Row, settings: Settings) -> int | str:
    """The next training item, or else "passed" or "failed"."""
    if who.training is not None:
        return who.training
    answered, right = _answers(c, who.id)
    chosen = c.scalars(_ITEMS.limit(settings.training_count)).all()
    for item in chosen:
        if item not in answered:
            return item
    passed = right >= settings.training_pass * len(chosen)
    result = "passed" if passed else "failed"
    at = schema.annotator.c.id == who.id
    c.execute(sa.update(schema.annotator).where(at).values(training=result))
    if chosen:
        events.note(c, "training", annotator=who.id, result=result)
    return result


def _answers(c: sa.Connection, annotator: int) -> tuple[set[int], int]:
    """Training items that a person has answered or skipped, and how many were right."""
    seen, right = set(c.scalars(_SKIPPED, {"me": annotator})), 0
    for row in c.execute(_GIVEN, {"me": annotator}):
        seen.add(row.item)
        right += answers.is_right(row.scale, row.gold, row._mapping)
    return seen, right


_item, _slot, _judgement = schema.item, schema.slot, schema.judgement
_ME = sa.bindparam("me")
_ITEMS = (
    sa.select(_item.c.id)
    .where(_item.c.purpose == "training", _item.c.state == "open")
    .order_by(_item.c.id)
)
_GIVEN = (
    sa.select(
        *(_item.c.id.label("item"), _item.c.scale, _item.c.gold),
        *(_judgement.c.preference, _judgement.c.rating, _judgement.c.ranks),
    )
    .join(_slot, _slot.c.item == _item.c.id)
    .join(_judgement, _judgement.c.id == _slot.c.done)
    .where(_slot.c.annotator == _ME, _item.c.purpose == "training")
)
_SKIPPED = (
    sa.select(schema.exclusion.c.item)
    .join(_item, _item.c.id == schema.exclusion.c.item)
    .where(schema.exclusion.c.annotator == _ME, _item.c.purpose == "training")
)
