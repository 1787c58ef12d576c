"""Single modules of the page in a real browser: layout, positions in text, Markdown."""

from __future__ import annotations

import random

import pytest

from ..support.browser import CHROMIUM, Tab, chromium, files, overlaps
from ..support.logged import HOSTILE

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here")


@pytest.fixture(scope="module")
def tab():
    with files() as url, chromium() as browser:
        tab = Tab(browser, url)
        tab.page.goto(url)
        yield tab
        tab.close()


def call(tab, module, code, *values):
    "Call a JavaScript function with a module's exports and some values"
    return tab.js(
        f"async (...values) => ({code})(await import('/{module}.js'), ...values)",
        *(values or (None,)),
    )


# -- layout ------------------------------------------------------------------

LAY_OUT = """({layout}, sizes, children) => {
    const {boxes, columns} = layout(0, n => children[n], n => sizes[n])
    return {boxes: sizes.map((_, n) => boxes.get(n)), columns}
}"""


def a_tree(chance, n, kind):
    "Sizes and children of a random tree: bushy, a chain, a fan, or like a real one"
    children = [[] for _ in range(n)]
    for each in range(1, n):
        parent = {
            "bushy": chance.randrange,
            "chain": lambda e: e - 1,
            "fan": lambda e: 0 if chance.random() < 0.5 else chance.randrange(e),
            "talk": lambda e: max(0, e - 1 - int(chance.expovariate(0.5))),
        }[kind](each)
        children[parent].append(each)
    sizes = [{"w": 200, "h": chance.choice([40, 60, 61.5, 90, 140])} for _ in range(n)]
    return sizes, children


@pytest.mark.parametrize("kind", ["bushy", "chain", "fan", "talk"])
@pytest.mark.parametrize("seed", range(4))
def test_nodes_do_not_overlap_and_conversations_are_straight(tab, kind, seed):
    chance = random.Random(f"{kind} {seed}")
    sizes, children = a_tree(chance, chance.choice([1, 2, 7, 60, 400]), kind)
    laid = call(tab, "graph/layout", LAY_OUT, sizes, children)
    boxes = laid["boxes"]
    assert overlaps(boxes) == []
    for node, below in enumerate(children):
        for nth, child in enumerate(below):
            assert boxes[child]["x"] >= boxes[node]["x"] + boxes[node]["w"]
            assert boxes[child]["depth"] == boxes[node]["depth"] + 1
            if nth == 0:
                assert boxes[child]["y"] == boxes[node]["y"]
            else:
                before = boxes[below[nth - 1]]
                assert boxes[child]["y"] > before["y"] + before["h"]
    for column in laid["columns"]:
        tops = [boxes[node]["y"] for node in column]
        assert tops == sorted(tops)


def test_what_is_added_moves_nothing_above_its_line(tab):
    sizes, children = a_tree(random.Random(3), 200, "talk")
    before = call(tab, "graph/layout", LAY_OUT, sizes, children)["boxes"]
    order, waiting = [], [0]
    while waiting:
        order.append(node := waiting.pop())
        waiting += reversed(children[node])
    for parent in (0, 50, 120, 199):
        grown = [list(below) for below in children] + [[]]
        grown[parent].append(200)
        more = [*sizes, {"w": 200, "h": 90}]
        after = call(tab, "graph/layout", LAY_OUT, more, grown)["boxes"]
        line = next(n for n in order if before[n]["y"] == before[parent]["y"])
        for node in order[: order.index(line)]:
            assert after[node]["y"] == before[node]["y"]


@pytest.mark.parametrize("kind", ["bushy", "chain", "fan", "talk"])
def test_large_trees_are_laid_out_at_once(tab, kind):
    sizes, children = a_tree(random.Random(1), 2000, kind)
    ms = call(
        tab,
        "graph/layout",
        """({layout}, sizes, children) => {
            const once = () => layout(0, n => children[n], n => sizes[n])
            const times = [1, 2, 3, 4, 5].map(() => {
                const begin = performance.now()
                once()
                return performance.now() - begin
            })
            return Math.min(...times)
        }""",
        sizes,
        children,
    )
    assert ms < 60  # about 3 on a quiet machine


# -- code points and streams -------------------------------------------------


def test_places_in_python_and_in_the_browser(tab):
    text = "a😀b👩‍👩‍👧 é\u0301 𝔘\n" * 3
    found = call(
        tab,
        "core/codepoints",
        """({CodePoints}, text) => {
            const points = new CodePoints(text)
            const all = [...text]
            return all.map((_, i) => {
                const unit = all.slice(0, i).join("").length
                return [points.unit(i), unit, points.point(unit), i]
            })
        }""",
        text,
    )
    assert len(found) == len(text)
    for unit, right_unit, point, right_point in found:
        assert (unit, point) == (right_unit, right_point)


def test_events_arrive_however_they_are_cut(tab):
    text = 'data: {"a": "é😀"}\n\ndata: {"b": 2}\r\n\n: comment\n\ndata: [DONE]\n\n'
    found = call(
        tab,
        "live/sse",
        """async ({events}, text) => {
            const bytes = new TextEncoder().encode(text), all = []
            for (const size of [1, 2, 3, 7, 1000]) {
                const body = new ReadableStream({start(to) {
                    for (let i = 0; i < bytes.length; i += size) {
                        to.enqueue(bytes.slice(i, i + size))
                    }
                    to.close()
                }})
                const got = []
                for await (const event of events(body)) got.push(event)
                all.push(got)
            }
            return all
        }""",
        text,
    )
    assert found == [[{"a": "é😀"}, {"b": 2}]] * 5


# -- Markdown ----------------------------------------------------------------

SHOW = """async ({MarkdownView}, source, about) => {
    const view = new MarkdownView()
    view.show(source, about ?? {})
    for (const each of view.element.querySelectorAll("figcaption")) each.remove()
    for (const each of view.element.querySelectorAll("*")) {
        const kept = ["href", "start"]
        const names = each.getAttributeNames().filter(name => !kept.includes(name))
        for (const name of names) {
            if (name !== "class" || !/mark|cut|no-link|code-/.test(each.className)) {
                each.removeAttribute(name)
            }
        }
    }
    return view.element.innerHTML
}"""
CASES = {
    "plain": ("one\ntwo", "<p>one\ntwo</p>"),
    "paragraphs": ("one\n\n\ntwo\r\n\r\nthree", "<p>one</p><p>two</p><p>three</p>"),
    "carriage returns": ("a\r\nb", "<p>a\nb</p>"),
    "headings": (
        "# One\n###### six ##\n#no",
        "<h3>One</h3><h6>six</h6><p>#no</p>",
    ),
    "underlined": ("One\n===\nTwo\n---", "<h3>One</h3><h4>Two</h4>"),
    "emphasis": (
        "*a* **b** ***c*** _d_ __e__ ~~f~~",
        "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> "
        "<strong>e</strong> <del>f</del></p>",
    ),
    "no emphasis": ("a * b * c snake_case_name 2 ** 3", None),
    "within words": ("un*frigging*real", "<p>un<em>frigging</em>real</p>"),
    "escapes": (r"\*a\* \\ \q", "<p>*a* \\ \\q</p>"),
    "code": ("`a*b*` ``c`d`` `open", "<p><code>a*b*</code> <code>c`d</code> `open</p>"),
    "entities": (
        "&lt;b&gt; &amp; &#65; &#x1F600; &nope; &#0;",
        "<p>&lt;b&gt; &amp; A 😀 &amp;nope; \ufffd</p>",
    ),
    "fence": (
        "```py\nx = 1\n\n  y\n```\nafter",
        '<figure><pre><code>x = <span class="code-number">1</span>\n\n  y</code></pre>'
        "</figure><p>after</p>",
    ),
    "open fence": ("~~~\na\n```", "<figure><pre><code>a\n```</code></pre></figure>"),
    "indented": (
        "    a\n\n      b",
        "<figure><pre><code>a\n\n  b</code></pre></figure>",
    ),
    "quote": (
        "> a\n> > b\nlazy\n\nc",
        "<blockquote><p>a</p><blockquote><p>b\nlazy</p></blockquote></blockquote>"
        "<p>c</p>",
    ),
    "list": (
        "- a\n  - b\n- c\n\n1. d\n2. e",
        "<ul><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ul>"
        "<ol><li><p>d</p></li><li><p>e</p></li></ol>",
    ),
    "list from": (
        "3) a\n4) b",
        '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>',
    ),
    "list with code": (
        "1. a\n   ```\n   x\n     y\n   ```\n2. b",
        "<ol><li><p>a</p><figure><pre><code>x\n  y</code></pre></figure></li>"
        "<li><p>b</p></li></ol>",
    ),
    "no list": ("the year\n1986. What", "<p>the year\n1986. What</p>"),
    "rule": ("a\n\n---\n***\nb", "<p>a</p><hr><hr><p>b</p>"),
    "table": (
        "| a | b |\n|---|:-:|\n| 1 \\| 2 | *c* |\n| 3 |",
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr>"
        "<td>1 | 2</td><td><em>c</em></td></tr><tr><td>3</td><td></td></tr></tbody>"
        "</table></div>",
    ),
    "link": (
        '[a *b*](https://x.y/z "t") <http://q.r> https://e.f/(g). ',
        '<p><a href="https://x.y/z">a <em>b</em></a> <a href="http://q.r/">http://q.r</a>'
        ' <a href="https://e.f/(g)">https://e.f/(g)</a>. </p>',
    ),
    "mail": ("[me](mailto:a@b.c)", '<p><a href="mailto:a@b.c">me</a></p>'),
    "image": (
        "![alt](https://x.y/i.png)",
        '<p><a href="https://x.y/i.png">alt</a></p>',
    ),
    "break": ("a<br>b<BR/>", "<p>a<br>b<br></p>"),
    "markup": (
        "<b>x</b><script>y</script>",
        "<p>&lt;b&gt;x&lt;/b&gt;&lt;script&gt;y&lt;/script&gt;</p>",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_markdown(tab, name):
    source, html = CASES[name]
    if html is None:
        html = f"<p>{source}</p>"
    assert call(tab, "markdown/view", SHOW, source) == html


@pytest.mark.parametrize(
    "target",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "java\tscript:alert(1)",
        "&#106;avascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "file:///etc/passwd",
        "//evil.test/",
        "/logout",
        "blob:x",
    ],
)
def test_links_that_lead_nowhere(tab, target):
    for source in (
        f"[x]({target})",
        f"[x](<{target}>)",
        f"<{target}>",
        f"![x]({target})",
    ):
        shown = call(tab, "markdown/view", SHOW, source)
        assert "<a" not in shown
        assert "href" not in shown


PLACES = """({MarkdownView}, source) => {
    const view = new MarkdownView()
    view.show(source)
    return view.pieces().map(({node, start, end}) => [node.data, start, end])
}"""
SAMPLE = "\n".join(
    [
        "# A *head*ing 😀",
        "Some **bold _and_ more** text, `code`, [a link](https://x.y) &amp; so\\* on.",
        "- one\n  two `x\n  y`\n- [ ] three\n\n  > quoted **words\n  > over** lines",
        "1. a\n   1. b\n      - c",
        "```js\nconst a = 'b' // c\n```",
        "| a | **b** |\n|--:|---|\n| 1 | 2 &lt; 3 |",
        "A line\r\nand one\r\n> more\r\n\r\n```\r\nx\r\ny\r\n```",
    ]
)


def check_places(source, pieces):
    at = 0
    units = source.encode("utf-16-le")
    for text, start, end in pieces:
        assert start >= at
        at = end
        shown = units[2 * start : 2 * end].decode("utf-16-le", "surrogatepass")
        assert text == shown or (shown[0] == "&" and shown[-1] == ";")


def test_every_text_knows_its_place(tab):
    pieces = call(tab, "markdown/view", PLACES, SAMPLE)
    check_places(SAMPLE, pieces)
    shown = "".join(text for text, _, _ in pieces)
    for words in (
        "bold ",
        "quoted ",
        "words\n",
        "const",
        "two ",
        "2 ",
        "< ",
        "y\n"[:1],
    ):
        assert words.strip() in shown


@pytest.mark.parametrize("seed", range(6))
def test_texts_know_their_place_whatever_the_source(tab, seed):
    chance = random.Random(seed)
    parts = [
        *"*_`~[]()<>!#-+|>\\&\n\n\t .1😀a",
        "  ",
        "```",
        "**",
        "](http://a)",
        "&lt;",
    ]
    sources = [
        "".join(chance.choices(parts, k=chance.randint(1, 80))) for _ in range(150)
    ]
    found = call(
        tab,
        "markdown/view",
        f"(module, sources) => sources.map(source => ({PLACES})(module, source))",
        sources,
    )
    for source, pieces in zip(sources, found, strict=True):
        check_places(source, pieces)


GROWING = """({MarkdownView}, source, step) => {
    const growing = new MarkdownView(), whole = new MarkdownView()
    const end = source.length + step
    for (let i = 0; i < end; i += step) growing.show(source.slice(0, i))
    whole.show(source)
    const places = view => JSON.stringify(view.pieces().map(p => [p.start, p.end]))
    return growing.element.innerHTML === whole.element.innerHTML
        && places(growing) === places(whole)
}"""


@pytest.mark.parametrize("step", [1, 3, 50])
def test_an_answer_that_came_in_pieces_is_shown_as_one_that_did_not(tab, step):
    for source in [SAMPLE, *(source for source, _ in CASES.values())]:
        assert call(tab, "markdown/view", GROWING, source, step), source


def test_what_branches_leave_from_is_marked(tab):
    shown = call(
        tab,
        "markdown/view",
        SHOW,
        "one **two** three four",
        {"marks": [{"start": 6, "end": 17, "kind": "branch"}], "cut": 17},
    )
    assert shown == (
        '<p>one <strong><mark class=" marked-branch">two</mark></strong>'
        '<mark class=" marked-branch"> three</mark>'
        '<span class="is-cut"> four</span></p>'
    )


SLOW = {
    "one long line": "x" * 100_000,
    "long words": "word " * 20_000,
    "stars": "*a " * 30_000,
    "opened and closed": "*a " * 15_000 + "a* " * 15_000,
    "mixed": "**a _b " * 10_000 + "a** b_ " * 10_000,
    "brackets": "[" * 60_000,
    "links": "[a](" * 20_000,
    "titles": '[a](b "' * 10_000,
    "starred brackets": "[*" * 30_000,
    "ticks": " ".join("`" * n for n in range(400)),
    "quotes": ">" * 50_000,
    "lists": "- " * 30_000,
    "items": "- a\n" * 8_000,
    "deeper and deeper": "\n".join(" " * n + "- a" for n in range(600)),
    "cells": "|a" * 3000 + "\n" + "|-" * 3000,
    "addresses": "http://" * 10_000,
    "pointed": "<https://a" * 10_000,
    "entities": "&" * 50_000,
    "open fence": "```py\n" + "x = 'y' # z\n" * 8000,
}


@pytest.mark.parametrize("name", SLOW)
def test_no_text_takes_long(tab, name):
    ms, depth = call(
        tab,
        "markdown/view",
        """({MarkdownView}, source) => {
            const view = new MarkdownView()
            document.body.replaceChildren(view.element)
            const begin = performance.now()
            view.show(source)
            view.element.getBoundingClientRect()
            const ms = performance.now() - begin
            let depth = 0
            for (const {node} of view.pieces().slice(0, 2000)) {
                let n = 0
                for (let e = node; e !== view.element; e = e.parentNode) n += 1
                depth = Math.max(depth, n)
            }
            document.body.replaceChildren()
            return [ms, depth]
        }""",
        SLOW[name],
    )
    assert ms < 3000  # all below 700 on a quiet machine
    assert depth < 80


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_texts(tab, name):
    shown = call(
        tab,
        "markdown/view",
        """({MarkdownView}, source) => {
            const view = new MarkdownView()
            view.show(source)
            document.body.replaceChildren(view.element)
            const bad = "script, img, iframe, object, embed, style, link, [onerror]"
            return [view.element.querySelectorAll(bad).length, view.element.textContent]
        }""",
        HOSTILE[name],
    )
    assert shown[0] == 0
    assert "alert(1)" not in HOSTILE[name] or "alert(1)" in shown[1]


# -- the selection -----------------------------------------------------------

CHOOSE = """async ({chosenIn}, source, from, to) => {
    const {MarkdownView} = await import("/markdown/view.js")
    const view = new MarkdownView()
    view.show(source)
    const answer = document.createElement("div")
    answer.className = "answer"
    answer.append(view.element)
    document.body.replaceChildren("before", answer, "behind")
    const place = (path) => {
        let node = answer
        for (const i of path.slice(0, -1)) node = node.childNodes[i]
        return [node, path.at(-1)]
    }
    const range = document.createRange()
    range.setStart(...(from ? place(from) : [document.body, 0]))
    range.setEnd(...(to ? place(to) : [document.body, 3]))
    const selection = document.getSelection()
    selection.removeAllRanges()
    selection.addRange(range)
    const chosen = chosenIn(selection)
    return chosen && source.slice(chosen.start, chosen.end)
}"""
TEXT = "one **two** three\n\n- `four` five &amp; six"


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ([0, 0, 0, 1], [0, 0, 0, 3], "ne"),
        ([0, 0, 0, 2], [0, 0, 1, 0, 2], "e **tw"),
        ([0, 0, 1, 0, 0], [0, 0, 1, 0, 3], "two"),
        ([0, 0, 2, 1], [0, 1, 0], "three"),  # as a triple click selects a paragraph
        ([0, 0, 2, 1], [0, 1, 0, 0, 0, 0, 2], "three\n\n- `fo"),
        ([0, 0, 0], [0, 0, 1], "one "),
        ([0, 1, 0, 0, 1, 1], [0, 1, 0, 0, 2, 1], "five &amp;"),
        (None, None, TEXT),
        (None, [0, 0, 0, 2], "on"),
        ([0, 1, 0, 0, 3, 1], None, "six"),
    ],
)
def test_what_is_selected_is_a_place_in_the_source(tab, start, end, words):
    assert call(tab, "path/selection", CHOOSE, TEXT, start, end) == words


def test_nothing_is_selected_outside_of_answers(tab):
    code = CHOOSE.replace(
        "range.setEnd(...", "range.setEnd(document.body, 0); 0 && (..."
    )
    assert code != CHOOSE
    empty = call(tab, "path/selection", CHOOSE, TEXT, [0, 0, 0, 2], [0, 0, 0, 2])
    assert empty is None
