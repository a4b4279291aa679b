"""Texts of models, people and the owner as HTML: turns of a chat, differences of words, guidelines."""

import collections
import difflib
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from feedback.web.marks import shown, visible

ROLES = {
    "user": "User",
    "human": "User",
    "prompter": "User",
    "assistant": "Assistant",
    "gpt": "Assistant",
    "model": "Assistant",
    "system": "System",
    "tool": "Tool",
}
"""Roles of messages, and what the page calls them; another role is shown as it is."""
SPEAKERS = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
"""Beginnings of the turns of a transcript that is one text."""
WORDS = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+|\W|_")
MOST = 300_000
"""Pairs of equal words that one pass of a comparison may visit: a second, where a person waits."""
SAFE = re.compile(r"(https?://|mailto:|#|/(?!/))", re.IGNORECASE)
"""Beginnings of the links that guidelines may have."""


class Turn(NamedTuple):
    """One message of a prompt: who speaks (empty: a prompt that is one text) and the words."""

    role: str
    text: str

    @property
    def speaker(self) -> str:
        """The name of the role on the page."""
        return ROLES.get(self.role.lower(), self.role)


def turns(prompt: str | Sequence[dict]) -> list[Turn]:
    """The turns of a prompt: its messages, the parts of a transcript, or one turn without a role."""
    if not isinstance(prompt, str):
        return [Turn(str(x.get("role", "")), str(x.get("content", ""))) for x in prompt]
    found = [*SPEAKERS.finditer(prompt)]
    if not found or prompt[: found[0].start()].strip():
        return [Turn("", prompt)]
    ends = [*(x.start() for x in found[1:]), len(prompt)]
    told = [Turn(x[1], prompt[x.end() : end]) for x, end in zip(found, ends, strict=True)]
    return [turn for turn in told if turn.text.strip()]


def _cost(a: Sequence[str], b: Sequence[str]) -> int:
    """Pairs of equal words that difflib looks at in one pass; it leaves out the frequent ones."""
    first, second = collections.Counter(a), collections.Counter(b)
    most = len(b) // 100 + 1 if len(b) >= 200 else len(b)
    return sum(n * first[word] for word, n in second.items() if n <= most)


def differences(a: str, b: str) -> tuple[Markup, Markup] | None:
    """Both texts as HTML, the words in which they differ in `<span class="different">`.

    None where the texts are too long to be compared while a person waits.
    """
    first, second = WORDS.findall(a), WORDS.findall(b)
    if _cost(first, second) > MOST:
        return None
    found = difflib.SequenceMatcher(None, first, second).get_opcodes()
    left = [(kind != "equal", "".join(first[i:j])) for kind, i, j, _, _ in found]
    right = [(kind != "equal", "".join(second[i:j])) for kind, _, _, i, j in found]
    return _marked(left), _marked(right)


def _marked(parts: list[tuple[bool, str]]) -> Markup:
    """The parts (different, text) of one side; white space between two differences is one of them."""
    parts = [x for x in parts if x[1]]
    different = [x for x, _ in parts]
    for i in range(1, len(parts) - 1):
        if parts[i][1].isspace() and parts[i - 1][0] and parts[i + 1][0]:
            different[i] = True
    html: list[str] = []
    told = zip(different, (text for _, text in parts), strict=True)
    for marked, run in itertools.groupby(told, lambda x: x[0]):
        said = visible("".join(text for _, text in run))
        html.append(f'<span class="different">{said}</span>' if marked else said)
    return Markup("".join(html))


def _plain(renderer, tokens, index, options, env) -> str:
    return str(visible(tokens[index].content))


def _code(renderer, tokens, index, options, env) -> str:
    return f"<code>{visible(tokens[index].content)}</code>"


def _block(renderer, tokens, index, options, env) -> str:
    return f"<pre>{_code(renderer, tokens, index, options, env)}</pre>\n"


def _link(renderer, tokens, index, options, env) -> str:
    tokens[index].attrSet("rel", "noopener noreferrer")
    return renderer.renderToken(tokens, index, options, env)


def _heading(renderer, tokens, index, options, env) -> str:
    tokens[index].tag = f"h{min(int(tokens[index].tag[1]) + 1, 6)}"
    return renderer.renderToken(tokens, index, options, env)


def _markdown() -> MarkdownIt:
    """CommonMark with tables, without HTML and pictures; headings go one level down."""
    made = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    made.validateLink = lambda url: bool(SAFE.match(url))  # type: ignore[method-assign]
    for kind, rule in (
        ("text", _plain),
        ("code_inline", _code),
        ("code_block", _block),
        ("fence", _block),
        ("link_open", _link),
        ("heading_open", _heading),
        ("heading_close", _heading),
    ):
        made.add_render_rule(kind, rule)
    return made


def guidelines(markdown: str) -> Markup:
    """The owner's Markdown as HTML: no markup of its own, no pictures, links to http, https and mail only."""
    return Markup(_markdown().render(markdown))


def typed(text: str) -> Markup:
    """The text for a `<textarea>`, whose parser drops a line end at the beginning."""
    return Markup("\n" + escape(shown(text)))
