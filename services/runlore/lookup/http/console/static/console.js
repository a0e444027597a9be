// Comfort alone: every page works without it.
(() => {
  "use strict";
  // "/" goes to the search field, as in most consoles.
  document.addEventListener("keydown", (event) => {
    const inField = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? "");
    const field = document.querySelector("input[type=search]");
    if (event.key === "/" && !inField && !event.ctrlKey && !event.metaKey && field) {
      event.preventDefault();
      field.focus();
    }
  });
  // A time says, where one points at it, what it is on this clock.
  for (const one of document.querySelectorAll("time[datetime]")) {
    const found = new Date(one.dateTime);
    if (!Number.isNaN(found.getTime())) one.title = `${found.toLocaleString()} (${one.title})`;
  }
  // A form is sent once.
  for (const form of document.querySelectorAll("form[method=post]")) {
    form.addEventListener("submit", () => {
      for (const button of form.querySelectorAll("button:not([name])")) button.disabled = true;
    });
  }
})();
