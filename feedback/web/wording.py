"""Words of the annotators' pages: questions, buttons and their keys, and why there is nothing to judge."""

from typing import NamedTuple

LABELS = "ABCDEFGH"
"""Names of responses on the screen, in the order in which they are shown."""
QUESTIONS = {
    "pair": "Which response is better?",
    "thumbs": "Is this response good?",
    "stars": "How good is this response?",
    "ranking": "Rank the responses: 1 is the best, and equal ranks are allowed.",
}
NOUNS = {"pair": "Pair", "single": "Response", "ranking": "Ranking"}
REASONS = {
    "same_text": "Same text",
    "broken": "Broken",
    "cannot_tell": "Cannot tell",
    "expertise": "Needs expertise",
    "upsetting": "Upsetting",
}
"""Reasons to skip, and their buttons."""
DEGREES = {-2: "A much better", -1: "A better", 0: "As good", 1: "B better", 2: "B much better"}
BOTH_BAD = "Both bad"
KEYS = (
    ("1", "A is much better; 1 star"),
    ("2", "A is better; 2 stars"),
    ("3", "A and B are as good as each other; 3 stars"),
    ("4", "B is better; 4 stars"),
    ("5", "B is much better; 5 stars"),
    ("0", "Both are bad"),
    ("u", "Undo the last answer or skip, and so on back to the start of the session"),
    ("s", "Skip; then 1 to 5 say why"),
    ("c", "Write a comment; Escape leaves the field"),
    ("w", "Write a better response"),
    ("d", "Show in which words A and B differ"),
    ("g", "Guidelines"),
    ("?", "This list"),
    ("n", "Next, after the reason of a training item"),
)
VERDICTS = {True: "as expected", False: "not as expected"}
"""Ends of the headings that tell how a training answer compares."""
ANSWERED = "You have answered this one before, and the first answer stands: Undo changes it."
SKIPPED = "Skipped. Undo brings it back."
EXTRA = " (too late: kept beside the one that counts)"
AGAIN = "Here it is again."
GONE = "Undone. Somebody else has taken this one meanwhile."


class Button(NamedTuple):
    """A choice: the field and value that it sends, its label, and its key."""

    name: str
    value: int
    label: str
    key: str


def buttons(kind: str, scale: str | None) -> list[Button]:
    """The choices of an item, in the order of the screen."""
    if kind == "pair":
        return [Button("degree", x, said, str(x + 3)) for x, said in DEGREES.items()]
    if kind == "ranking":
        return [Button("save", 1, "Save the ranking", "")]
    if scale == "stars":
        return [Button("rating", n, stars(n), str(n)) for n in range(1, 6)]
    return [Button("rating", n, ("Bad", "Good")[n], str(n)) for n in (0, 1)]


def stars(n: int) -> str:
    """A number of stars."""
    return f"{n} star{'s' * (n != 1)}"


def choice(said: dict | None, scale: str | None) -> str:
    """A choice in words, in the order of the screen."""
    if not said:
        return ""
    if "both_bad" in said:
        return BOTH_BAD
    if "degree" in said:
        return DEGREES[said["degree"]]
    if "rating" in said:
        return stars(said["rating"]) if scale == "stars" else ("Bad", "Good")[said["rating"]]
    ranks = zip(LABELS, said["ranks"], strict=False)
    return ", ".join(f"{label} is {n}" for label, n in ranks)


def said(kind: str, choice_: dict | None, scale: str | None, reason: str | None) -> str:
    """A judgement in words, as the list of a person's own has it."""
    if kind == "skip":
        return f"Skipped: {REASONS.get(reason or '', reason or '').lower()}"
    return choice(choice_, scale) + (EXTRA if kind == "surplus" else "")


def heading(kind: str, purpose: str, number: int, of: int) -> str:
    """The heading of an item's page: "Pair 13 of 50"."""
    noun = NOUNS[kind]
    return f"{f'Training {noun.lower()}' if purpose == 'training' else noun} {number} of {of}"


def nothing(why: str, judged: int) -> tuple[str, list[str]]:
    """Heading and paragraphs for a person who gets no item, by why: done, waiting, paused, training."""
    saved = f"You have judged {judged}, and all of it is saved."
    return {
        "done": (
            "All done: thank you",
            [f"There is nothing left for you to judge. {saved}", "You can close this page."],
        ),
        "waiting": (
            "Nothing for you at this moment",
            [
                "Other people are judging the last ones, and some of these may come back. "
                "Look again in a few minutes.",
                saved,
            ],
        ),
        "paused": (
            "The work is paused",
            [f"The people who run this have paused it. {saved} Look again later."],
        ),
        "training": (
            "Thank you for trying this",
            [
                "In the training, your answers and the ones that this task expects differ too often, so "
                "there is no more to judge for you here.",
                "People read such texts differently, and that says nothing about you. Your answers are "
                "kept, and the people who invited you can tell you more.",
            ],
        ),
    }[why]
