// The image behind a point of the scatter, and one class alone.
(() => {
  const NEAR = 14;
  for (const figure of document.querySelectorAll(".scatter")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const svg = figure.querySelector("svg"), sheet = figure.querySelector(".sheet");
    let alone = null;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = data.thumbnail;
    svg.addEventListener("pointermove", (event) => {
      const at = within(svg, event);
      let best = -1, least = NEAR;
      data.points.forEach(([x, y, label], i) => {
        const distance = Math.hypot(x - at.x, y - at.y);
        if (distance < least && (alone === null || alone === label)) [best, least] = [i, distance];
      });
      if (best < 0) { tip.hide(); return; }
      const side = data.thumbnail;
      canvas.getContext("2d").drawImage(sheet, (best % data.columns) * side, Math.floor(best / data.columns) * side, side, side, 0, 0, side, side);
      const name = document.createElement("div");
      name.textContent = data.names[data.points[best][2]];
      tip.show(event, canvas, name);
    });
    svg.addEventListener("pointerleave", () => tip.hide());
    const buttons = [...figure.querySelectorAll("button")];
    for (const button of buttons) {
      button.addEventListener("click", () => {
        const label = Number(button.dataset.class);
        alone = alone === label ? null : label;
        for (const other of buttons) other.setAttribute("aria-pressed", String(Number(other.dataset.class) === alone));
        for (const points of svg.querySelectorAll("[data-series]")) {
          points.classList.toggle("away", alone !== null && Number(points.dataset.series) !== alone);
        }
      });
    }
  }
})();
