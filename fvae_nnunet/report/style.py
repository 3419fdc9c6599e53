"""How a page looks: light or dark as the reader's system is set, on a screen and on paper."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #5d6570; --line: #d8dce2; --faint: #f4f6f8; --page: #ffffff;
  --link: #2563b8; --card: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9ba3ae; --line: #363c45; --faint: #1e2329;
  --page: #15191e; --link: #7fb2f5; --card: #f6f7f9; } }
* { box-sizing: border-box; }
html { font-size: 16px; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.5rem; text-wrap: balance; }
h2 { font-size: 1.45rem; line-height: 1.3; letter-spacing: -0.01em; margin: 3.5rem 0 1rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.12rem; margin: 2.4rem 0 0.6rem; }
h4 { font-size: 0.95rem; margin: 1.6rem 0 0.4rem; color: var(--soft); }
h1, h2, h3, h4, td, th, figcaption, p, li, dd { overflow-wrap: break-word; }
p, ul { max-width: 46rem; margin: 0.6rem 0; }
ul { padding-left: 1.2rem; }
li { margin: 0.35rem 0; }
.lead { color: var(--soft); font-size: 1.05rem; margin-bottom: 1.6rem; }
nav { font-size: 0.92rem; }
nav ol { list-style: none; display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; padding: 0; margin: 0; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) minmax(0, 46rem); gap: 0.35rem 1.4rem;
  margin: 1.1rem 0; font-size: 0.92rem; }
dt { color: var(--soft); }
dd { margin: 0; }
.table { overflow-x: auto; margin: 1.1rem 0 0.4rem; }
table { border-collapse: collapse; border-bottom: 1px solid var(--line); font-size: 0.86rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
.caption { font-weight: 600; font-size: 0.92rem; margin: 1.4rem 0 0; max-width: 60rem; }
.caption + .table { margin-top: 0.5rem; }
th, td { padding: 0.24rem 0.75rem; text-align: right; vertical-align: baseline; white-space: nowrap; }
tr > th:first-child { padding-left: 0; }
.text, .code, tbody th { text-align: left; }
td.code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  font-size: 0.8rem; }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
thead tr:last-child th { border-bottom: 1px solid var(--soft); }
thead th.group { text-align: center; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 400; }
tbody tr.first > * { border-top: 1px solid var(--line); }
tbody tr:first-child > * { border-top: 0; }
tbody tr:hover td { background: var(--faint); }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 15rem; max-width: 32rem; }
table.wide :is(th, td) { padding-left: 0.4rem; padding-right: 0.4rem; }
.notes { color: var(--soft); font-size: 0.84rem; margin: 0 0 1.2rem; }
.notes p { margin: 0.15rem 0; max-width: 60rem; }
figure { margin: 1.6rem 0; }
figure svg { display: block; max-width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--soft); font-size: 0.86rem; margin-top: 0.5rem; max-width: 60rem; }
.picture { overflow-x: auto; cursor: zoom-in; outline-offset: 2px; }
.picture img { width: 100%; }
.picture:focus { cursor: zoom-out; }
.picture:focus img { width: auto; max-width: none; }
details { margin: 0.9rem 0; border: 1px solid var(--line); border-radius: 6px; padding: 0 0.9rem; }
summary { cursor: pointer; padding: 0.5rem 0; font-size: 0.92rem; }
footer { margin-top: 4rem; color: var(--soft); font-size: 0.84rem; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --faint: #fff; --page: #fff; --link: #000; }
  html { font-size: 11px; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3, h4, .caption { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .table, .picture { overflow: visible; }
  details:not([open]) { display: none; }
}
"""
