"""Texts as HTML: nothing is lost, nothing is markup, and nothing stays hidden."""

import html.parser

import pytest

from feedback.web import marks, text

ALL = "".join(map(chr, [*range(0x3000), *range(0xD7F0, 0xE010), *range(0xFE00, 0x10000), 0xE0041]))
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f 1\ufe0f\u20e3"
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"


class Reader(html.parser.HTMLParser):
    """What stands in a page: its text, tags and links."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.links, self.classes = "", [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        self.classes += [value for name, value in attrs if name == "class"]

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "said",
    [ALL, "a\r\nb\rc\n\nd", "<b>&amp;</b>\"'", "\0\0", "", FAMILY, "\u202e<i>\u2066\u200b"],
    ids=["all", "lines", "markup", "nul", "empty", "emoji", "bidi"],
)
def test_the_text_shown_is_the_text_given(said):
    read = Reader(str(marks.visible(said)))
    assert read.text == marks.shown(said)
    assert set(read.tags) <= {"span"}


def test_only_nul_and_surrogates_are_shown_as_others():
    assert {x for x in ALL if marks.shown(x) != x} == {
        "\0",
        *map(chr, range(0xD800, 0xE000)),
    } & set(ALL)


@pytest.mark.parametrize("hidden", ["\u202e", "\u200b", "\x1b", "\u2066", "\xad", "\u3164", "\0"])
def test_a_hidden_character_is_marked_by_its_name(hidden):
    assert f'data-mark="{marks.name(hidden)}"' in marks.visible(f"a{hidden}b")


@pytest.mark.parametrize(
    "honest", [FAMILY, PERSIAN, "a\tb\nc\r\nd", "caf\xe9 na\xefve \u65e5\u672c"]
)
def test_honest_writing_has_no_marks(honest):
    assert Reader(str(marks.visible(honest))).tags == []


def test_a_joiner_between_latin_letters_is_no_honest_writing():
    assert 'data-mark="ZWJ"' in marks.visible("pay\u200dpal")


@pytest.mark.parametrize(
    ("a", "b", "first", "second"),
    [
        ("the quick fox", "the slow fox", ["quick"], ["slow"]),
        ("same", "same", [], []),
        ("one two", "one", [" two"], []),
        ("a <b> c", "a <i> c", ["b"], ["i"]),
        ("\u5929\u6c17\u3068", "\u5929\u5730\u3068", ["\u6c17"], ["\u5730"]),
        ("", "new", [], ["new"]),
    ],
    ids=["word", "same", "end", "markup", "no_spaces", "empty"],
)
def test_words_that_differ_are_marked_on_both_sides(a, b, first, second):
    class Marked(Reader):
        def __init__(self, page):
            self.inside, self.found = False, []
            super().__init__(page)

        def handle_starttag(self, tag, attrs):
            self.inside = True

        def handle_endtag(self, tag):
            self.inside = False

        def handle_data(self, data):
            self.text += data
            self.found += [data] if self.inside else []

    told = text.differences(a, b)
    assert told is not None
    left, right = (Marked(str(x)) for x in told)
    assert (left.text, right.text) == (a, b)
    assert (left.found, right.found) == (first, second)


def test_texts_too_long_to_compare_are_not_compared():
    many = " ".join(str(i % 300) for i in range(40_000))
    assert text.differences(many, "0 " + many) is None
    assert text.differences("x" * 200_000, "y" * 200_000) is not None


def test_messages_and_transcripts_are_turns():
    said = [{"role": "user", "content": "hi"}, {"role": "pirate", "content": "ahoy"}]
    assert [(x.speaker, x.text) for x in text.turns(said)] == [("User", "hi"), ("pirate", "ahoy")]
    hh = "\n\nHuman: hi\n\nAssistant: yes?\nwell\n\nHuman: bye\n\nAssistant:"
    assert [x.text for x in text.turns(hh)] == ["hi", "yes?\nwell", "bye"]
    assert text.turns("Say: Human: no")[0] == text.Turn("", "Say: Human: no")
    assert text.turns("") == [text.Turn("", "")]


HOSTILE = r"""
# Rules <script>alert(1)</script>

[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,<script>alert(1)</script>)
[d](vbscript:x) [e](//evil.example/x) [f](/\evil.example) [g](file:///etc/passwd) <javascript:alert(1)>
[h](java&#115;cript:alert(1)) ![i](https://evil.example/pixel.png) [j](&#1;javascript:alert(1))
<img src=x onerror=alert(1)> <a href="javascript:alert(1)">k</a>

[good](https://example.org/a) [mail](mailto:a@example.org) [here](#rules) <https://example.org>

[ref]

[ref]: javascript:alert(1)

`<script>` and a mark: """


def test_guidelines_have_no_markup_of_their_own_and_only_safe_links():
    read = Reader(str(text.guidelines(HOSTILE + "\u202e")))
    assert {x for x in read.links if "evil" not in x} == {
        "https://example.org/a",
        "mailto:a@example.org",
        "#rules",
        "https://example.org",
    }
    assert {x for x in read.links if "evil" in x} == {
        "https://evil.example/pixel.png",  # a link, no picture
        "/%5Cevil.example",  # a page of this server
    }
    assert set(read.tags) == {"h2", "p", "a", "code", "span"}
    assert "<script>alert(1)</script>" in read.text


def test_guidelines_keep_tables_lists_and_code():
    said = text.guidelines("## Deep\n\n|a|b|\n|-|-|\n|1|2|\n\n- x\n\n```py\n<b>\n```\n\n    code\n")
    assert {"h3", "table", "td", "ul", "li", "pre", "code"} <= set(Reader(str(said)).tags)


def test_a_text_area_keeps_its_first_line_end():
    assert str(text.typed("\n</textarea><b>\0")) == "\n\n&lt;/textarea&gt;&lt;b&gt;\u2400"
