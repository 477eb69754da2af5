"use strict";
// Sorts the tables, filters the runs and toggles figures and details. Without it the page shows everything.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const key = (cell) => cell.dataset.value ?? cell.textContent.trim();
  const number = (text) => (/^[+−-]?[\d.,]/.test(text) ? parseFloat(text.replace("−", "-").replace(/,/g, "")) : NaN);

  function sort(table, column, head) {
    const descending = head.getAttribute("aria-sort") === "ascending";
    all("th", table.tHead).forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const whole = table.dataset.rows === "bodies"; // a body for every run: its row and its details
    const items = whole ? [...table.tBodies] : [...table.tBodies[0].rows];
    const keyed = items.map((item) => {
      const text = key((whole ? item.rows[0] : item).cells[column]);
      return { item, text, value: number(text) };
    });
    keyed.sort((a, b) => {
      const missing = Number(/^[-–]?$/.test(a.text)) - Number(/^[-–]?$/.test(b.text));
      if (missing) return missing; // last, whichever way
      const both = !Number.isNaN(a.value) && !Number.isNaN(b.value);
      const order = both ? a.value - b.value : a.text.localeCompare(b.text, "en", { numeric: true });
      return descending ? -order : order;
    });
    (whole ? table : table.tBodies[0]).append(...keyed.map((each) => each.item));
  }

  all("table.sortable").forEach((table) => {
    all("thead th", table).forEach((head, column) => {
      if (!head.textContent.trim() || head.dataset.sort === "no") return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column, head));
      head.append(button);
    });
  });

  all("form.filters").forEach((form) => {
    const bodies = [...document.getElementById(form.getAttribute("data-table")).tBodies];
    const texts = new Map(bodies.map((body) => [body, body.rows[0].textContent.toLowerCase()]));
    function filter() {
      const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = all("select", form).filter((select) => select.value);
      let shown = 0;
      bodies.forEach((body) => {
        const fits =
          words.every((word) => texts.get(body).includes(word)) &&
          wanted.every((select) => body.dataset[select.name] === select.value);
        body.hidden = !fits;
        shown += fits;
      });
      form.querySelector("output").textContent = `${shown} of ${bodies.length} runs`;
    }
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    filter();
  });

  all("button.more").forEach((button) => {
    const detail = document.getElementById(button.getAttribute("aria-controls"));
    const show = (open) => {
      detail.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
    };
    button.disabled = false;
    show(false);
    button.addEventListener("click", () => show(detail.hidden));
  });

  all(".tabs").forEach((tabs) => {
    const buttons = all("button", tabs);
    const choose = (chosen) =>
      buttons.forEach((button) => {
        button.setAttribute("aria-pressed", String(button === chosen));
        document.getElementById(button.getAttribute("aria-controls")).hidden = button !== chosen;
      });
    tabs.hidden = false;
    buttons.forEach((button) => button.addEventListener("click", () => choose(button)));
    if (buttons.length) choose(buttons[0]);
  });

  addEventListener("beforeprint", () => all("details").forEach((each) => (each.open = true)));
})();
