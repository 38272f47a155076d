// What a pointer reads from a chart, and curves that follow the table of runs.
const tip = {
  box: document.getElementById("tip"),
  show(event, ...content) {
    this.box.replaceChildren(...content);
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const x = event.clientX + 14 + width > innerWidth ? event.clientX - 14 - width : event.clientX + 14;
    this.box.style.left = `${Math.max(4, x)}px`;
    this.box.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
  },
  hide() { this.box.hidden = true; },
  line(left, right) {
    const row = document.createElement("div");
    for (const text of [left, right]) row.appendChild(document.createElement("span")).textContent = text;
    return row;
  },
};

// Where a pointer is, in the units of the picture.
const within = (svg, event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());

(() => {
  const MOST = 10;
  const readable = (value) => Number(value.toPrecision(4)).toString();
  const nearest = (xs, x) => xs.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(xs[best] - x) ? i : best), 0);

  const follow = (figure) => {
    const data = JSON.parse(figure.querySelector("script").textContent), svg = figure.querySelector("svg");
    const [left, top, right, bottom] = data.box, [low, high, lowest, highest] = data.limits;
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "line");
    mark.setAttribute("class", "cursor");
    const place = (x) => left + ((x - low) / (high - low)) * (right - left);
    svg.addEventListener("pointermove", (event) => {
      const at = within(svg, event), x = low + ((at.x - left) / (right - left)) * (high - low);
      const y = highest - ((at.y - top) / (bottom - top)) * (highest - lowest);
      const hidden = (line) => svg.querySelector(`[data-series="${line.series}"]`)?.matches(".gone, .away");
      const seen = data.lines.filter((line) => line.x.length && !hidden(line)).map((line) => {
        const i = nearest(line.x, x);
        return { name: line.name, x: line.x[i], y: line.y[i] };
      });
      if (!seen.length) return;
      const snapped = seen.reduce((best, one) => (Math.abs(one.x - x) < Math.abs(best.x - x) ? one : best)).x;
      const shown = seen.sort((a, b) => Math.abs(a.y - y) - Math.abs(b.y - y)).slice(0, MOST);
      for (const [key, value] of Object.entries({ x1: place(snapped), x2: place(snapped), y1: top, y2: bottom })) mark.setAttribute(key, value);
      svg.appendChild(mark);
      tip.show(event, tip.line(data.x, readable(snapped)), ...shown.map((one) => tip.line(one.name, readable(one.y))));
    });
    svg.addEventListener("pointerleave", () => { mark.remove(); tip.hide(); });
  };
  for (const figure of document.querySelectorAll(".chart:not(.scatter)")) follow(figure);

  const runs = document.querySelector("table.runs");
  if (!runs) return;
  const curves = [...document.querySelectorAll("#curves [data-series]")];
  const rows = () => [...runs.tBodies[0].rows];
  runs.addEventListener("filtered", () => {
    const left = new Set(rows().filter((row) => !row.classList.contains("gone")).map((row) => row.dataset.series));
    for (const curve of curves) curve.classList.toggle("gone", !left.has(curve.dataset.series));
    for (const chart of document.querySelectorAll("#curves .chart")) chart.classList.toggle("gone", !chart.querySelector("[data-series]:not(.gone)"));
  });
  const alone = (series) => {
    for (const curve of curves) curve.classList.toggle("away", series !== null && curve.dataset.series !== series);
  };
  for (const row of rows()) {
    row.addEventListener("pointerenter", () => alone(row.dataset.series));
    row.addEventListener("pointerleave", () => alone(null));
  }
})();
