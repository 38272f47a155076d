// Tables whose headings sort, and above them a field that filters.
(() => {
  const number = (text) => { const found = parseFloat(text); return /^[+-]?[\d.]/.test(text) && !Number.isNaN(found) ? found : null; };
  // Numbers before texts, empty cells last, whichever way it goes.
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const x = number(a), y = number(b);
    if (x !== null && y !== null) return sign * (x - y);
    if (x !== null || y !== null) return x !== null ? -1 : 1;
    return sign * a.localeCompare(b);
  };
  const sort = (table, heading) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const at = heading.cellIndex, body = table.tBodies[0];
    const text = (row) => row.cells[at].textContent.trim();
    body.append(...[...body.rows].sort((a, b) => compare(text(a), text(b), down ? -1 : 1)));
  };
  const filter = (table, words, output) => {
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.classList.toggle("gone", !words.every((word) => text.includes(word)));
    }
    const left = rows.filter((row) => !row.classList.contains("gone"));
    output.textContent = left.length === rows.length ? "" : `${left.length} of ${rows.length}`;
    table.dispatchEvent(new CustomEvent("filtered"));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.tHead.rows[0].cells) {
      heading.tabIndex = 0;
      heading.addEventListener("click", () => sort(table, heading));
      heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(table, heading); });
    }
    const bar = document.createElement("div"), field = document.createElement("input"), output = document.createElement("output");
    bar.className = "filter";
    field.type = "search";
    field.placeholder = "Filter, by words";
    field.setAttribute("aria-label", "Filter the table by words");
    field.addEventListener("input", () => filter(table, field.value.toLowerCase().split(/\s+/).filter(Boolean), output));
    bar.append(field, output);
    table.parentElement.before(bar);
  }
})();
