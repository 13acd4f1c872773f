"use strict";
// Sorts a table by the column whose head was selected, in alternating directions.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th button").forEach((button, column) => {
    let direction = 1;
    const key = (row) => row.cells[column].dataset.key;
    const compare = (a, b) => {
      const [x, y] = [Number(key(a)), Number(key(b))];
      if (!button.parentElement.classList.contains("number")) {
        return direction * key(a).localeCompare(key(b));
      }
      // The key of an unknown number is "inf", which is NaN here. It always comes last.
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return direction * (x - y);
    };
    button.addEventListener("click", () => {
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
      direction = -direction;
    });
  });
}
