"""Records that cannot be used: the first one is fatal, or all of them are counted and left out."""

from collections import Counter
from collections.abc import Collection, Sequence

NAMED = 3
"""Records that a report names by file and line."""


def places(where: Sequence[str]) -> str:
    """The first of these origins, and how many there are beside them."""
    more = f" and {len(where) - NAMED} more" if len(where) > NAMED else ""
    return f"{', '.join(where[:NAMED])}{more}"


class BadRecord(ValueError):
    """A record at fault: `where` is its origin, `reason` the fault in words shared by all such records.

    The message is "WHERE: REASON", followed by `more`, which begins with its punctuation.
    """

    def __init__(self, where: str, reason: str, more: str = ""):
        super().__init__(f"{where}: {reason}{more}")
        self.where, self.reason, self.more = where, reason, more


class BadRecords:
    """The bad records of one source, as a context in which a record is read or interpreted; and where the
    texts of the others come from.

        bad = BadRecords(skip=True)
        for row in sources.read("rows.jsonl", bad=bad):
            with bad:
                texts.append(field(row, "text", str))

    With `skip`, a BadRecord ends the block and is kept in `found`; without it, and for any other error, the
    error is raised. A block changes its results last, so that a skipped record leaves nothing behind.
    """

    def __init__(self, skip: bool = False):
        self.skip = skip
        self.found: list[BadRecord] = []
        self.total = 0
        """Number of records read, the bad ones included."""
        self.origins: dict[tuple[str, str], str] = {}
        """Origin of each prompt, as (prompt, ""), and of each pair of prompt and response."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        skipped = self.skip and isinstance(error, BadRecord)
        if skipped:
            self.found.append(error)
        return skipped

    def keep(self, where: str, prompt: str, responses: Sequence[str] = ()) -> None:
        """Keeps the origin of the texts of a record, unless another has them too and was first."""
        for response in ("", *responses):
            self.origins.setdefault((prompt, response), where)

    def check(self, kept: Collection, source: str | Sequence[str]) -> None:
        """Raises ValueError, with the counts, where `source` holds bad records and nothing else."""
        if self.found and not kept:
            raise ValueError(f"{source}: no record is left, because {self}: mend them")

    def __str__(self):
        """Share, counts by reason, the most frequent first, and the origins of the first bad records."""
        n, reasons = len(self.found), Counter(error.reason for error in self.found)
        counted = "; ".join(f"{count} where {reason}" for reason, count in reasons.most_common())
        named = places([error.where for error in self.found])
        share = f"{100 * n / max(1, self.total):.1f} %"
        return f"{n} of {self.total} records ({share}) are bad: {counted} ({named})"
