"""How a report looks, and the little that moves in it. Light and dark as the reader's system has it."""

from __future__ import annotations

from typing import Final

CSS: Final = """
:root { color-scheme: light dark; --bg: #f6f6f3; --card: #ffffff; --ink: #1d1d1a; --soft: #62605a;
  --line: #e2e1dc; --after: #1f6fd0; --before: #8b8982; --bad: #b3261e; --warn: #965800; --good: #176f43;
  --mark: #b3261e; --tint: #eef3fa; }
@media (prefers-color-scheme: dark) { :root { --bg: #141412; --card: #1d1d1a; --ink: #ecebe5; --soft:
  #a5a39b;
  --line: #33322e; --after: #62a8f5; --before: #8f8d86; --bad: #f2867c; --warn: #e2a64a; --good: #5cc492;
  --mark: #f2867c; --tint: #1f2834; } }
* { box-sizing: border-box; }
html { background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto,
  "DejaVu Sans", sans-serif; scroll-behavior: smooth; }
body { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; font-weight: 650; }
h2 { font-size: 18px; margin: 44px 0 12px; font-weight: 650; }
h3 { font-size: 15px; margin: 0 0 8px; font-weight: 650; }
p { margin: 6px 0; } .soft { color: var(--soft); } .small { font-size: 13px; }
header { display: flex; gap: 16px; align-items: center; }
header img { width: 76px; height: 76px; border-radius: 8px; display: block; }
header .sources { display: flex; gap: 6px; flex: none; }
nav { margin: 14px 0 0; font-size: 13px; display: flex; gap: 16px; flex-wrap: wrap; }
a { color: var(--after); text-underline-offset: 2px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; margin:
  22px 0 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 12px 14px; } .card { padding: 16px; margin: 0 0 14px; }
.tile b { display: block; font-size: 24px; line-height: 1.25; font-weight: 650; font-variant-numeric:
  tabular-nums; }
.tile span { display: block; font-size: 13px; color: var(--soft); line-height: 1.4; }
.tile .good { color: var(--good); } .tile .warn { color: var(--warn); } .tile .bad { color: var(--bad); }
.verdict { font-size: 16px; margin: 18px 0 0; max-width: 76ch; }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
.worst .card { margin: 0; }
.card:target { outline: 2px solid var(--after); }
.worst h3 { display: flex; justify-content: space-between; gap: 8px; }
.worst ul { margin: 10px 0 0; padding-left: 18px; font-size: 14px; line-height: 1.45; }
.worst li.why { color: var(--soft); }
.pair { display: flex; gap: 6px; margin: 0; }
.pair figure { margin: 0; flex: 1 1 0; min-width: 0; }
.pair .before { order: 1; } .pair .after { order: 2; cursor: pointer; }
.pair img { width: 100%; height: auto; display: block; border-radius: 6px; }
.pair figcaption { font-size: 12px; color: var(--soft); margin-top: 3px; }
.pair .after:hover + .before img, .pair .after:focus + .before img {
  transform: translateX(calc(100% + 6px)); position: relative; z-index: 2; pointer-events: none; }
.pair .after:focus { outline: none; } .pair .after:focus-visible img { outline: 2px solid var(--after); }
.shot { display: grid; grid-template-columns: minmax(0, 1.75fr) minmax(0, 1fr); gap: 16px; align-items:
  start; }
.shot .heads { display: grid; gap: 10px; }
@media (max-width: 760px) { .shot { grid-template-columns: 1fr; } }
.measure { display: flex; justify-content: space-between; gap: 12px; align-items: baseline; font-size: 13px;
  margin: 10px 0 0; flex-wrap: wrap; }
.measure b { font-size: 14px; font-weight: 600; }
.measure .read { font-variant-numeric: tabular-nums; color: var(--soft); }
.key { display: inline-block; width: 16px; height: 0; border-top: 2px solid; vertical-align: middle;
  margin: 0 5px 0 12px; }
.key.after { border-color: var(--after); } .key.before { border-color: var(--before); }
.key.limit { border-color: var(--warn); border-top-style: dashed; }
svg.plot { width: 100%; height: auto; display: block; overflow: visible; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .cut { stroke: var(--soft); stroke-width: 1;
  opacity: .7; }
svg .tick { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; } svg .tick.y {
  text-anchor: end; }
svg .line { fill: none; stroke-width: 1.75; stroke-linejoin: round; stroke-linecap: round; }
svg .line.after { stroke: var(--after); } svg .line.before { stroke: var(--before); stroke-width: 1.25; }
svg .dot.after { fill: var(--after); } svg .dot.before { fill: var(--before); }
svg .limit { stroke: var(--warn); stroke-width: 1; stroke-dasharray: 5 4; }
svg .mark { fill: var(--card); stroke: var(--mark); stroke-width: 2; cursor: pointer; }
svg .cross { stroke: var(--ink); stroke-width: 1; opacity: 0; } .live svg .cross { opacity: .5; }
svg .bar.swapped { fill: var(--after); } svg .bar.alone { fill: var(--before); opacity: .55; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; width: 100%; }
td, th { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align:
  top;
  overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--soft); } td.n, th.n { text-align: right; font-variant-numeric:
  tabular-nums; }
th { white-space: nowrap; } h3 .small, h3 .soft { font-weight: 400; }
tr:last-child td, tr:last-child th { border-bottom: 0; } td.changed { font-weight: 650; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 14px;
  align-items: start; }
.meter { margin-top: 6px; background: var(--tint); border-radius: 3px; height: 9px; min-width: 60px; }
.meter i { display: block; height: 9px; border-radius: 3px; background: var(--after); min-width: 2px; }
code { font: 12.5px/1.45 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
footer { margin-top: 40px; border-top: 1px solid var(--line); padding-top: 14px; font-size: 13px; color:
  var(--soft); }
@media print { .card, .tile { break-inside: avoid; } nav { display: none; } }
"""

# A line that follows the pointer through all plots of a person, and what the figures are there.
SCRIPT: Final = """
const data = JSON.parse(document.getElementById("figures").textContent);
for (const group of document.querySelectorAll("[data-person]")) {
  const own = data.people.find(p => String(p.person) === group.dataset.person);
  const plots = [...group.querySelectorAll("svg[data-start]")];
  const show = event => {
    const svg = event.currentTarget, box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const [start, stop, left, right] = ["start", "stop", "left", "right"].map(k => Number(svg.dataset[k]));
    const wanted = start + (x - left) / (right - left) * Math.max(stop - 1 - start, 1);
    let best = 0;
    const off = i => Math.abs(own.frames[i] - wanted);
    own.frames.forEach((_, i) => { if (off(i) < off(best)) best = i; });
    const at = left + (own.frames[best] - start) / Math.max(stop - 1 - start, 1) * (right - left);
    group.classList.add("live");
    for (const plot of plots) {
      const line = plot.querySelector(".cross");
      line.setAttribute("x1", at); line.setAttribute("x2", at);
      const read = plot.previousElementSibling.querySelector(".read");
      read.dataset.still ??= read.innerHTML;
      const words = plot.parentElement.dataset.series.split(" ").map(k => {
        const v = own.series[k][best];
        return `${data.names[k]} ${v === null ? "–" : v.toFixed(2)}`;
      });
      read.textContent = `frame ${own.frames[best]} (${own.times[best]}): ${words.join(", ")}`;
    }
  };
  const hide = () => {
    group.classList.remove("live");
    for (const read of group.querySelectorAll(".read")) {
      if (read.dataset.still) read.innerHTML = read.dataset.still;
    }
  };
  for (const plot of plots) {
    plot.addEventListener("pointermove", show);
    plot.addEventListener("pointerleave", hide);
  }
}
"""
