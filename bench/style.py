"""Colours and style sheets: of the page, light and dark, and of charts that stand alone.

The hues are those of Okabe and Ito ("Color Universal Design", 2008), which people with any colour vision tell apart, darkened
or lightened until text in them has a contrast of 4.5 on its ground (WCAG 2.1, 1.4.3). Outcomes have a sign and a word besides.
"""

from __future__ import annotations

from typing import Final, Literal

Theme = Literal["light", "dark"]

COLOURS: Final[dict[Theme, dict[str, str]]] = {
    "light": {
        "paper": "#f6f7f9",
        "card": "#ffffff",
        "ink": "#171b21",
        "soft": "#57606c",
        "rule": "#dfe3e8",
        "own": "#0064b0",
        "own-soft": "#e3f0fb",
        "peer": "#a4aebb",
        "limit": "#171b21",
        "stored": "#00734f",
        "stored-soft": "#e0f3ec",
        "error": "#96590a",
        "error-soft": "#fdf0d5",
        "wrong": "#b3261e",
        "wrong-soft": "#fbe0dd",
        "hung": "#8a2f74",
        "hung-soft": "#f6e1f0",
        "s1": "#0072b2",
        "s2": "#d55e00",
        "s3": "#009e73",
        "s4": "#cc79a7",
        "s5": "#e69f00",
        "s6": "#56b4e9",
        "s7": "#7a8694",
    },
    "dark": {
        "paper": "#0e1116",
        "card": "#161b22",
        "ink": "#e8ebef",
        "soft": "#9aa5b1",
        "rule": "#2b323c",
        "own": "#58b0f5",
        "own-soft": "#12314a",
        "peer": "#5c6876",
        "limit": "#e8ebef",
        "stored": "#3fc79a",
        "stored-soft": "#0f3026",
        "error": "#f0b14a",
        "error-soft": "#3a2a0b",
        "wrong": "#ff8a7a",
        "wrong-soft": "#4a1915",
        "hung": "#e59ccb",
        "hung-soft": "#40203a",
        "s1": "#3d9fe0",
        "s2": "#f07f35",
        "s3": "#2fbf93",
        "s4": "#dd95bd",
        "s5": "#f0b52e",
        "s6": "#8fd0f7",
        "s7": "#8a96a4",
    },
}

FONT: Final = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',sans-serif"

_PLOT: Final = """
.plot text,text{font-size:12.5px;fill:var(--ink)}
text.tick{font-size:11px;fill:var(--soft)}
text.label.own,text.value.own{font-weight:650;fill:var(--own)}
text.label.peer,text.value.peer{fill:var(--ink)}
text.value.error,text.loud.error{fill:var(--error)}
text.value.wrong,text.loud.wrong{fill:var(--wrong);font-weight:650}
text.value.hung,text.loud.hung{fill:var(--hung);font-weight:650}
text.limit{font-size:11px;fill:var(--soft)}
line.grid{stroke:var(--rule);stroke-width:1}
line.limit{stroke:var(--limit);stroke-width:1.5;stroke-dasharray:4 3}
.bar{fill:var(--peer)}
.bar.own{fill:var(--own)}
.bar.error{fill:var(--error)}
.bar.wrong{fill:var(--wrong)}
.bar.hung{fill:var(--hung)}
.whisker line{stroke:var(--ink);stroke-width:1.2}
.span{stroke:var(--peer);stroke-width:2}
.span.own{stroke:var(--own)}
.dot{fill:var(--peer);stroke:var(--peer);stroke-width:1.6}
.dot.own{fill:var(--own);stroke:var(--own)}
.dot.open{fill:var(--card)}
.curve,.spread{stroke:var(--peer);stroke-width:2;stroke-linecap:round}
.curve.dashed{stroke-dasharray:2 5}
"""
_SERIES: Final = "".join(
    f".piece.s{i},.dot.s{i}{{fill:var(--s{i})}}.dot.s{i},.curve.s{i},.spread.s{i}{{stroke:var(--s{i})}}"
    f".swatch.s{i}{{background:var(--s{i})}}"
    for i in range(1, 8)
)

_PAGE: Final = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);font:15.5px/1.5 FONT}
main,header,footer{max-width:1240px;margin:0 auto;padding:0 16px}
header{padding-top:28px}
h1{font-size:30px;line-height:1.15;margin:0 0 6px;letter-spacing:-.02em}
h2{font-size:23px;letter-spacing:-.01em;margin:52px 0 6px;padding-top:12px;border-top:2px solid var(--ink)}
h3{font-size:17px;margin:30px 0 10px}
h3 small{font-weight:400;color:var(--soft);font-size:14px}
h4{font-size:14.5px;margin:0}
p{margin:0 0 10px;max-width:76ch}
a{color:var(--own)}
code{font:13px ui-monospace,'DejaVu Sans Mono',monospace;overflow-wrap:anywhere}
.lede{font-size:17px;color:var(--soft);max-width:70ch}
.facts{display:flex;flex-wrap:wrap;gap:4px 18px;margin:14px 0;padding:0;list-style:none;font-size:13.5px;
  color:var(--soft)}
.facts b{color:var(--ink);font-weight:600}
.caveats{margin:14px 0;padding:10px 14px 10px 30px;background:var(--error-soft);border-left:4px solid var(--error);
  border-radius:4px}
.caveats li{margin:2px 0}
.caveats details{margin:2px 0}
.caveats details ul{padding-left:18px;font-size:13px}
nav{display:flex;flex-wrap:wrap;gap:6px;margin:16px 0 4px}
nav a{padding:4px 11px;border:1px solid var(--rule);border-radius:99px;text-decoration:none;font-size:13.5px;
  background:var(--card)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,215px),1fr));gap:14px;margin:20px 0}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:14px 16px}
.tile b{display:block;font-size:29px;line-height:1.15;letter-spacing:-.02em;color:var(--own)}
.tile.bad b{color:var(--wrong)}
.tile span{display:block;font-size:13.5px;color:var(--soft);margin-top:4px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,370px),1fr));gap:14px}
.grid.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr))}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:13px 14px 11px;min-width:0}
figcaption{margin-bottom:10px}
figcaption small{color:var(--soft);font-size:12.5px}
.says{margin:8px 0 0;font-size:12.5px;line-height:1.4;color:var(--soft)}
.says b{color:var(--ink);font-weight:600}
svg.plot{display:block;width:100%;overflow:visible}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;margin:0 0 8px;padding:0;list-style:none;font-size:12.5px}
.sign.wrong{color:var(--wrong);font-weight:650}.sign.hung{color:var(--hung);font-weight:650}
.sign.error{color:var(--error)}
.swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:5px;vertical-align:-1px}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:8px;background:var(--card)}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
tr:last-child>*{border-bottom:0}
thead th{color:var(--soft);font-weight:600;font-size:12px;vertical-align:bottom}
th[scope=row],td.text,th.text{text-align:left}
th[scope=row]{position:sticky;left:0;background:var(--card);font-weight:500}
tr.own th[scope=row]{color:var(--own);font-weight:700}
tr.own td{background:var(--own-soft)}
tr.limit>*{color:var(--soft);font-style:italic}
.matrix thead th{white-space:normal;min-width:76px;text-align:center}
.matrix thead th:first-child{text-align:left}
.matrix td{text-align:center;padding:4px 6px;font-size:12px;line-height:1.25;border-left:2px solid var(--card)}
.matrix td b{display:block;font-size:13px}
.matrix td i{font-style:normal}
.matrix td small{display:block;white-space:normal;min-width:70px}
.o-good i{color:var(--error);font-weight:650}
.o-good{background:var(--stored-soft)!important;color:var(--stored)}
.o-error{background:var(--error-soft)!important;color:var(--error)}
.o-stored{background:var(--error-soft)!important;color:var(--error)}
.o-silently-wrong{background:var(--wrong)!important;color:var(--card)}
.o-hung{background:var(--hung)!important;color:var(--card)}
.o-none{color:var(--soft)}
figure .scroll{margin-top:10px;border-radius:5px}
figure .scroll th,figure .scroll td{padding:3px 8px;font-size:12px}
figure .scroll thead th{white-space:normal}
.grid.wide figure:last-child:nth-child(odd){grid-column:1/-1}
details{margin:10px 0}
summary{cursor:pointer;font-size:13.5px;color:var(--own)}
details .scroll{margin-top:8px}
.wrongs{padding:0;list-style:none;margin:14px 0;display:grid;gap:6px}
.wrongs li{padding:7px 12px;border-radius:6px;font-size:13.5px;overflow-wrap:anywhere}
footer{margin-top:56px;padding-bottom:48px;color:var(--soft);font-size:13.5px}
@media(max-width:560px){h1{font-size:25px}h2{font-size:20px;margin-top:40px}.tile b{font-size:25px}
body{font-size:15px}main,header,footer{padding-left:12px;padding-right:12px}}
@media print{nav{display:none}figure,.tile{break-inside:avoid}}
"""


def page() -> str:
    """The style sheet of a report: follows the reader's theme, or a `data-theme` on the root element."""
    light, dark = (_variables(theme) for theme in ("light", "dark"))
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}:root[data-theme=light]{{color-scheme:light}}"
        + _PAGE.replace("FONT", FONT)
        + _PLOT
        + _SERIES
    )


def chart(theme: Theme) -> str:
    """The style sheet of a chart that stands alone, in one theme: variables are spelt out, as some viewers know none."""
    text = (
        f"text{{font-family:{FONT}}}"
        + _PLOT
        + _SERIES
        + ".paper{fill:var(--card)}text.title{font-size:19px;font-weight:700}text.heading{font-size:14.5px;font-weight:600}"
        ".note{font-size:12px}text.note{fill:var(--soft)}"
    )
    for name, colour in COLOURS[theme].items():
        text = text.replace(f"var(--{name})", colour)
    return text


def _variables(theme: Theme) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in COLOURS[theme].items())
