"""The style sheet of reports. Colours of series are Okabe and Ito's, told apart with colour blindness too."""

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1d2329;--dim:#5f6b76;--line:#dde2e7;--card:#f5f7f9;--bad:#c62828;
--heat:#0b5fa5;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#cc79a7;--c4:#e69f00;--c5:#56b4e9;--c6:#7f6fb0;--c7:#6b7680}
@media(prefers-color-scheme:dark){:root{--bg:#14181c;--fg:#e4e9ee;--dim:#94a1ad;--line:#2c343b;--card:#1c2227;
--bad:#ff8a80;--heat:#6db8f2;--c0:#4aa3df;--c1:#f0803c;--c2:#2fc39a;--c3:#dd94bd;--c4:#f0b429;--c5:#7cc7f2;--c6:#a79bd6;
--c7:#97a3ad}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{margin:0;font-size:28px;letter-spacing:-.01em}
h2{margin:36px 0 10px;font-size:20px}h3{margin:26px 0 8px;font-size:16px}
header p{margin:4px 0}.dim,small,figcaption+svg .note{color:var(--dim)}.bad{color:var(--bad)}p.dim{font-size:13.5px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(116px,1fr));gap:10px;margin:20px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;display:flex;
flex-direction:column}.tile span{color:var(--dim);font-size:13px}
.tile b{font-size:20px;font-variant-numeric:tabular-nums}
.tile small{min-height:1.5em}
figure{margin:22px 0;padding:14px 16px 10px;background:var(--card);border:1px solid var(--line);border-radius:8px}
figcaption{font-weight:600;margin-bottom:8px}svg{width:100%;height:auto;display:block}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--fg)}
svg .axis,svg .note{fill:var(--dim)}svg .grid{stroke:var(--line)}svg .line{fill:none;stroke-width:2}
svg .whisker{stroke-width:2.5}svg .thin{stroke-width:1.2}
svg .ring{fill:none;stroke-width:2}svg .mark{stroke:var(--dim);stroke-dasharray:4 4}svg .heat{fill:var(--heat)}
svg .frame{fill:none;stroke:var(--line);stroke-width:.6}svg .ribbon{fill-opacity:.42}svg .ribbon:hover{fill-opacity:.75}
.keys{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;padding-top:6px}
.key i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13.5px;width:100%}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--dim);font-weight:600}.w{text-align:left}.long{white-space:normal;overflow-wrap:break-word;min-width:15em}
td i{color:var(--dim);font-style:normal;font-size:12px;
display:block;line-height:1.2}
tbody tr:hover{background:var(--card)}details{margin:14px 0;border-top:1px solid var(--line);padding-top:10px}
summary{cursor:pointer;font-weight:600;font-size:16px}
@media(max-width:860px){svg text{font-size:14px}}
@media print{body{background:#fff}figure,.tile{break-inside:avoid}}
"""
