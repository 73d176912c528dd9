"use strict";
// Names under the pointer, at once and under a finger too; tables sorted by a click on a heading.
// Without scripts the page has the same content: names are <title> and title="", which browsers show late.
{
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);

  const show = (text, x, y, touch) => {
    tip.textContent = text;
    tip.hidden = false;
    const width = document.documentElement.clientWidth, box = tip.getBoundingClientRect();
    const above = y - box.height - (touch ? 26 : 12);
    tip.style.left = `${Math.max(6, Math.min(x - box.width / 2, width - box.width - 6))}px`;
    tip.style.top = `${above > 4 ? above : y + 18}px`;
  };

  // Points of a figure: the nearest one within reach of the pointer.
  const points = new Map();
  const pointsOf = (svg) => {
    if (!points.has(svg)) {
      points.set(svg, [...svg.querySelectorAll("title")].map((title) => {
        const mark = title.parentNode, text = title.textContent;
        title.remove();
        const box = mark.getBBox();
        return { text, x: box.x + box.width / 2, y: box.y + box.height / 2 };
      }));
    }
    return points.get(svg);
  };
  const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  ring.setAttribute("class", "ring");
  const point = (event) => {
    const named = event.target.closest?.("[data-tip]");
    const svg = event.target.closest?.("svg.named");
    const touch = event.pointerType !== "mouse";
    tip.hidden = true;
    ring.remove();
    if (named) return show(named.dataset.tip, event.clientX, event.clientY, touch);
    if (!svg) return;
    const matrix = svg.getScreenCTM(), at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    let best = null, least = (touch ? 26 : 14) / matrix.a;
    for (const one of pointsOf(svg)) {
      const apart = Math.hypot(one.x - at.x, one.y - at.y);
      if (apart < least) [best, least] = [one, apart];
    }
    if (!best) return;
    for (const [name, value] of [["cx", best.x], ["cy", best.y], ["r", 5]]) ring.setAttribute(name, value);
    svg.append(ring);
    const where = new DOMPoint(best.x, best.y).matrixTransform(matrix);
    show(best.text, where.x, where.y, touch);
  };
  for (const element of document.querySelectorAll("[title]")) {
    element.dataset.tip = element.title;
    element.setAttribute("aria-description", element.title);
    element.removeAttribute("title");
  }
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, point, { passive: true });
  document.addEventListener("scroll", () => { tip.hidden = true; ring.remove(); }, { passive: true });

  // Numbers as the page writes them: −1,234.5; 3.1 × 10⁻⁵; 2 min 05 s; 1.3 GB; 12 %.
  const UNITS = { ms: 1e-3, s: 1, min: 60, h: 3600, d: 86400, B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, meV: 1e-3 };
  const NUMBER = /([-+]?\d+(?:\.\d+)?)(?: × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?(?: (ms|min|meV|[kMGT]?B|[shd])(?![\w/]))?/g;
  const value = (text) => {
    let sum = NaN;
    for (const [, digits, power, unit] of text.replaceAll(",", "").replaceAll("−", "-").matchAll(NUMBER)) {
      if (!Number.isNaN(sum) && !unit) break;
      const exponent = [...(power ?? "⁰")].map((c) => (c === "⁻" ? "-" : "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(c))).join("");
      sum = (Number.isNaN(sum) ? 0 : sum) + digits * 10 ** exponent * (UNITS[unit] ?? 1);
    }
    return sum;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const texts = rows.map((row) => row.cells[column]?.textContent.trim() ?? "").filter((text) => text && text !== "–");
      const plain = (text) => Number.isFinite(Number(text.replaceAll(",", "").replaceAll("−", "-").replace(/ × 10.*/, "")));
      const numeric = head.classList.contains("n") || (texts.length > 0 && texts.every(plain));
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const sign = { ascending: -1, descending: 0 }[head.getAttribute("aria-sort")] ?? 1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (sign) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const keyed = rows.map((row) => {
          const cell = row.cells[column], text = (cell?.dataset.sort ?? cell?.textContent ?? "").trim();
          const key = numeric ? value(text) : text;
          return { row, key, blank: numeric ? Number.isNaN(key) : text === "" || text === "–" };
        });
        const compare = (a, b) => (numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true }));
        if (sign) keyed.sort((a, b) => a.blank - b.blank || (a.blank ? 0 : sign * compare(a, b)));
        body.append(...keyed.map((one) => one.row));
      });
    });
  }
}
