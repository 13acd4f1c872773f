"use strict";
const body = document.querySelector("#runs tbody");
document.querySelectorAll("#runs th button").forEach((button, column) => {
  let direction = 1;
  button.addEventListener("click", () => {
    const key = (row) => row.cells[column].dataset.key;
    const isNumeric = column > 2;
    const rows = [...body.rows].sort((a, b) => {
      if (!isNumeric) return direction * key(a).localeCompare(key(b));
      const [x, y] = [Number(key(a)), Number(key(b))]; // "inf", of what is unknown, is no number and stays last
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return direction * (x - y);
    });
    direction = -direction;
    body.append(...rows);
  });
});
