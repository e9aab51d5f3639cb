"use strict";
// Draws the charts from the embedded report, and filters and sorts. Tables work where charts cannot be drawn.
(() => {
  const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
  const report = parsed("report");
  const specs = parsed("charts");
  const tooltip = document.getElementById("tooltip");

  // The rows at a JSON pointer; "*" stands for every element.
  const rowsAt = (pointer) =>
    pointer.split("/").slice(1).reduce(
      (values, part) => values.flatMap((value) => (part === "*" ? value : [value[part]])),
      [report],
    ).flat();

  const charts = [...document.querySelectorAll("figure[data-chart]")];
  const sections = [...document.querySelectorAll("section.bundle")];

  // What the filters around an element ask for: a test of a row or of a table row's data attributes.
  const wanted = (element) => {
    const section = element.closest("section.bundle");
    const fields = section ? [...section.querySelectorAll("select[data-field]")].filter((s) => s.value !== "") : [];
    const off = [...document.querySelectorAll("input[data-bundle]:not(:checked)")].map((box) => box.dataset.bundle);
    return (row) =>
      fields.every((s) => !(s.dataset.field in row) || String(row[s.dataset.field]) === s.value) &&
      !(row.bundle !== undefined && off.includes(row.bundle));
  };

  const showTooltip = (handler, event, item, value) => {
    tooltip.hidden = value === null || value === undefined || value === "";
    if (tooltip.hidden) return;
    tooltip.textContent = Object.entries(value).map(([key, text]) => `${key}: ${text}`).join("\n");
    const room = document.documentElement.clientWidth - tooltip.offsetWidth - 8;
    tooltip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room))}px`;
    tooltip.style.top = `${event.clientY + 14}px`;
  };

  // Copies, since Vega marks the rows that it is given.
  const rowsOf = (figure) => rowsAt(figure.dataset.rows).filter(wanted(figure)).map((row) => ({ ...row }));

  // "ast" has Vega interpret its expressions, so that the page's policy need not allow eval. Only errors are logged:
  // a filter that leaves nothing to draw is no reason for warnings.
  const draw = async (figure) => {
    const spec = specs[figure.dataset.chart];
    spec.data.find((set) => set.name === "rows").values = rowsOf(figure);
    const options = { mode: "vega", renderer: "svg", actions: false, ast: true, tooltip: showTooltip, logLevel: 1 };
    figure.view = (await vegaEmbed(figure.querySelector(".plot"), spec, options)).view;
  };

  const refresh = (figure) => figure.view.data("rows", rowsOf(figure)).runAsync();

  const filter = () => {
    for (const section of sections) {
      const box = document.querySelector(`input[data-section="${section.id}"]`);
      section.hidden = box !== null && !box.checked;
    }
    for (const row of document.querySelectorAll("tbody tr")) row.hidden = !wanted(row)(row.dataset);
    for (const figure of charts) if (figure.view) refresh(figure);
  };

  const value = (cell) => {
    const number = cell.querySelector("data");
    return number === null ? cell.textContent.trim() : Number(number.value);
  };

  // Unknown values stay last whichever way a column is sorted.
  const sort = (table, column, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
    const rank = (key) => (typeof key === "number" ? 0 : key === "\u2013" || key === "" ? 2 : 1);
    rows.sort(([a], [b]) => rank(a) - rank(b) || direction * (typeof a === "number" ? a - b : a.localeCompare(b)));
    body.append(...rows.map(([, row]) => row));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
        sort(table, column, direction);
      });
    });
  }

  for (const form of document.querySelectorAll("form.filters")) {
    form.addEventListener("change", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter)); // after the fields have been reset
  }

  // On paper nothing can be opened.
  const closed = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => { opened = [...closed()]; for (const d of opened) d.open = true; });
  addEventListener("afterprint", () => { for (const d of opened) d.open = false; });

  filter(); // a browser may have kept the choices of an earlier visit
  Promise.all(charts.map(draw)).then(() => { document.documentElement.dataset.drawn = "true"; });
})();
