"""HTML by construction: every text and attribute is escaped where it enters, so no name can become markup.

The page needs nothing but itself: no script, no font, no request; its policy forbids them.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Collection, Iterable, Mapping, Sequence

from manifests.text import clean

_VOID = frozenset({"meta", "img", "br", "col", "hr", "input"})


class Html(str):
    """Markup that may stand in a page as it is. Whatever is joined to it with + or formatted is plain text again."""

    __slots__ = ()


Child = str | None


def tag(name: str, /, *children: Child, **attributes: str) -> Html:
    """An element of HTML or SVG.

    Args:
        name: of the element.
        children: `Html` as it is, other text escaped, None left out.
        attributes: escaped; a trailing underscore goes, others become hyphens (`class_`, `aria_label`).
    """
    marks = "".join(f' {_attribute(key)}="{_escaped(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{marks}>")
    return Html(f"<{name}{marks}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Several children side by side."""
    return Html("".join(c if isinstance(c, Html) else _escaped(c) for c in children if c is not None))


def shortened(text: str, length: int) -> str:
    """The text, or its two ends."""
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-(length - length // 2 - 1) :]}"


def words(name: str) -> Html:
    """A name that may break at its underscores, so that tables stay narrow."""
    return Html(_escaped(name).replace("_", "_<wbr>"))


def chip(text: str, kind: str = "") -> Html:
    """A short mark beside a name."""
    return tag("span", text, class_=f"chip {kind}".strip())


def table(
    head: Sequence[Child], rows: Iterable[Sequence[Child]], *, caption: str, text: Collection[int] = (0,)
) -> Html:
    """A table in a frame that scrolls by itself; the first cell of a row is its header.

    Args:
        head: of the columns.
        rows: of as many cells.
        caption: what the table shows; also the name of the frame.
        text: positions of the columns that are text; the others are numbers. A negative one counts from the right.
    """
    classes = ["" if at in text or at - len(head) in text else "n" for at in range(len(head))]
    top = (tag("th", cell, scope="col", **_class(kind)) for cell, kind in zip(head, classes, strict=True))
    body = (_row(cells, classes) for cells in rows)
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *top)), tag("tbody", *body))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def details(summary: Child, *children: Child, unfolded: bool = False, class_: str = "") -> Html:
    """A part that can be folded away; it is printed as the reader left it."""
    attributes = {"open": "open"} if unfolded else {}
    return tag("details", tag("summary", summary), *children, **attributes, **_class(class_))


def section(key: str, title: str, *children: Child) -> Html:
    """A part of the page that the navigation can reach."""
    return tag("section", tag("h2", title, id=f"{key}-title"), *children, id=key, aria_labelledby=f"{key}-title")


def absent(reason: str) -> Html:
    """Why a part of the page has nothing to show."""
    return tag("p", tag("strong", "Not shown: "), reason, class_="absent")


def note(*children: Child) -> Html:
    """How to read what follows."""
    return tag("p", *children, class_="note")


def items(lines: Iterable[Child]) -> Html:
    """A list of lines."""
    return tag("ul", *(tag("li", line) for line in lines))


def document(title: str, *body: Child, style: str | None = None, about: Mapping[str, str] | None = None) -> Html:
    """The whole page.

    Args:
        title: of the page.
        body: its parts.
        style: rules beside those of the house. A page that names them, be they empty, admits its one style sheet by its
            hash alone, so no part of it may have a `style` attribute; None leaves them to the parts.
        about: further names and contents of `meta` elements.
    """
    rules = _STYLE + (style or "")
    admitted = "'unsafe-inline'" if style is None else f"'{_hash(rules)}'"
    policy = f"default-src 'none'; style-src {admitted}; img-src data:"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        *(tag("meta", name=name, content=content) for name, content in (about or {}).items()),
        tag("title", title),
        tag("style", Html(rules)),
    )
    return Html(f"<!DOCTYPE html>\n{tag('html', head, tag('body', *body), lang='en')}\n")


def _hash(text: str) -> str:
    """What a policy calls the content of an inline element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _row(cells: Sequence[Child], classes: Sequence[str]) -> Html:
    first, *rest = zip(cells, classes, strict=True)
    return tag(
        "tr",
        tag("th", first[0], scope="row"),
        *(tag("td", cell, **_class(kind)) for cell, kind in rest),
    )


def _class(kind: str) -> dict[str, str]:
    return {"class_": kind} if kind else {}


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _escaped(text: str) -> str:
    return html.escape(clean(text), quote=True)


_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1f24;--muted:#57606a;--line:#d0d7de;--panel:#f6f8fa;--grid:#e4e8ec;
--s0:#0067a3;--s1:#b84e00;--s2:#00775a;--s3:#96417c;--bad:#a84300;--good:#00694d;--mark:#d55e00}
@media (prefers-color-scheme:dark){:root{--bg:#12161b;--ink:#e6edf3;--muted:#a3b0bd;--line:#3a424b;--panel:#1a2028;
--grid:#2a313a;--s0:#56b4e9;--s1:#ff9a57;--s2:#3cc79b;--s3:#e29bc6;--bad:#ffa46b;--good:#53d3aa;--mark:#ff8a3c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1280px;padding:0 20px 60px;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums}
h1{font-size:26px;line-height:1.25;margin:28px 0 4px;overflow-wrap:anywhere}
h2{font-size:20px;margin:44px 0 8px;padding-top:10px;border-top:2px solid var(--line)}
h3{font-size:16px;margin:22px 0 6px;overflow-wrap:anywhere}
h4{font-size:14px;margin:0 0 2px}
p{margin:6px 0;max-width:110ch}
a{color:var(--s0)}
ul{margin:6px 0;padding-left:20px}
li{max-width:120ch;overflow-wrap:anywhere}
.note,.meta,figcaption{color:var(--muted);font-size:14px}
.meta{font-size:12px;display:block;font-weight:400;line-height:1.35}
.absent{border-left:4px solid var(--line);padding:6px 12px;background:var(--panel)}
nav ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:2px 16px;margin:12px 0}
.index ul{gap:2px 12px;font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(138px,1fr));gap:10px;margin:14px 0;padding:0}
.tiles div{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:8px 12px}
.tiles dt{color:var(--muted);font-size:13px}
.tiles dd{margin:0;font-size:22px;font-weight:600;line-height:1.3}
.tiles dd small{display:block;white-space:nowrap;font-size:12.5px;font-weight:400;color:var(--muted)}
.scroll{overflow-x:auto;margin:8px 0;max-width:100%}
table{border-collapse:collapse;font-size:14px}
caption{text-align:left;color:var(--muted);font-size:13px;padding:2px 0 4px;max-width:90ch}
th,td{padding:4px 10px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
thead th{font-size:13px;color:var(--muted);border-bottom:1px solid var(--line);vertical-align:bottom}
tbody th{font-weight:600;min-width:11ch}
th.n,td.n{text-align:right;white-space:nowrap}
.why{max-width:56ch;display:inline-block}
td>.why{min-width:24ch}
td.n .meta{white-space:normal;min-width:14ch}
td.n>.why{white-space:normal;min-width:14ch;max-width:26ch}
.nowrap{white-space:nowrap}
.group th{background:var(--panel);padding:5px 8px;color:var(--muted);font-size:13px}
.why{color:var(--muted);font-size:13px}
.chip{display:inline-block;border:1px solid var(--line);border-radius:9px;padding:0 7px;font-size:12px;font-weight:400;
color:var(--muted);white-space:nowrap;margin-left:3px}
.chip.bad,.bad{color:var(--bad);border-color:currentColor;font-weight:600}
.chip.good,.good{color:var(--good);border-color:currentColor}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));
gap:18px 28px;align-items:start}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(520px,100%),1fr))}
.forest table{width:100%;table-layout:fixed}
.forest th,.forest td{padding:3px 4px 3px 0;vertical-align:middle}
.forest th:nth-child(1){width:41%;overflow-wrap:anywhere}
.forest td:nth-child(3),.forest th:nth-child(3){width:30%;text-align:right}
.forest caption{font-weight:600;color:var(--ink);font-size:14px}
.forest tfoot td,.forest tfoot th{border:0;padding-bottom:16px}
svg{display:block;overflow:visible}
svg text{fill:var(--ink);font-size:12px}
svg .t{fill:var(--muted)}
svg .name{paint-order:stroke;stroke:var(--bg);stroke-width:4px;stroke-linejoin:round}
svg line,svg path{stroke:var(--ink);fill:none}
svg .g{stroke:var(--grid)}
svg .r{stroke:var(--muted);stroke-dasharray:3 3}
svg .c{stroke:var(--s0);stroke-width:2.5}
svg .d{fill:var(--s0);stroke:var(--s0);stroke-width:1.5}
svg .o{fill:var(--bg);stroke:var(--s0);stroke-width:2}
svg .x{fill:var(--muted);font-size:15px;font-weight:700}
svg .bad{stroke:var(--mark);font-weight:400}svg .d.bad{fill:var(--mark)}
svg .v{fill:var(--s0);fill-opacity:.55;stroke:var(--s0)}
svg .v.bad{fill:var(--mark);fill-opacity:.9}
svg .l{stroke:var(--muted)}
svg .b0{fill:var(--s0)}svg .b1{fill:var(--s3)}
svg .cut{stroke:var(--muted);stroke-dasharray:2 2}
svg .worst{stroke:var(--mark);stroke-width:2;opacity:.75}
svg .s0,svg .s1,svg .s2,svg .s3{stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round}
svg .s0{stroke:var(--s0)}svg .s1{stroke:var(--s1);stroke-dasharray:7 3}svg .s2{stroke:var(--s2);stroke-dasharray:2 4}
svg .s3{stroke:var(--s3);stroke-dasharray:9 3 2 3}
svg .b{fill:var(--bg);stroke-dasharray:none}
.plot{padding:28px 16px 40px 52px;margin:0;max-width:640px}
.broad{max-width:none}
.small{padding:8px 12px 26px 40px;max-width:none}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:13px;margin:4px 0;padding:0;list-style:none}
.legend li{display:flex;align-items:center;gap:6px}
.swatch{width:14px;height:14px;border:1px solid var(--line);display:inline-block}
figure{margin:0}
.shots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(240px,100%),1fr));gap:12px;margin:6px 0}
.shots img{width:100%;height:auto;display:block;border-radius:4px}
details{border-bottom:1px solid var(--grid);padding:4px 0}
summary{cursor:pointer;padding:4px 0;overflow-wrap:anywhere}
summary h3,summary h4{display:inline}
.h1{background:rgba(213,94,0,.10)}.h2{background:rgba(213,94,0,.24)}.h3{background:rgba(213,94,0,.42)}
.h4{background:rgba(213,94,0,.60)}
.u1{background:rgba(0,114,178,.10)}.u2{background:rgba(0,114,178,.22)}.u3{background:rgba(0,114,178,.36)}
.u4{background:rgba(0,114,178,.50)}
.heat td,.grid td{text-align:center;border:1px solid var(--bg);padding:4px 8px;white-space:nowrap}
.heat thead th,.grid thead th{text-align:center;padding:4px 6px}
.heat thead th:first-child,.grid thead th:first-child{text-align:left}
.grid td{min-width:84px}
.grid td>.why{min-width:0}.grid .meta{color:var(--ink);white-space:normal}
.key{display:inline-block;padding:0 8px;margin-right:6px;border:1px solid var(--line);font-size:13px}
footer{margin-top:44px;border-top:2px solid var(--line)}
footer td{overflow-wrap:anywhere;font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:12.5px}
@media (max-width:600px){body{padding:0 12px 40px}h1{font-size:21px}.plot{padding-left:44px;padding-right:8px}
.tiles{grid-template-columns:1fr 1fr}}
@media print{:root{color-scheme:light}body{max-width:none;font-size:11px}nav{display:none}.scroll{overflow:visible}
summary{list-style:none}
.panels section,.card,figure,tr{break-inside:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
