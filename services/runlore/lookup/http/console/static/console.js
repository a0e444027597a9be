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
  // The link of an invitation carries its token behind "#", which no server sees; from here on the address is without it.
  const wanted = document.querySelector("input[data-fragment]");
  if (wanted && location.hash.length > 1) {
    wanted.value = decodeURIComponent(location.hash.slice(1));
    history.replaceState(null, "", location.pathname);
  }
  // What is shown once can be copied by one click.
  for (const button of document.querySelectorAll("button[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const field = document.getElementById(button.dataset.copy);
      field.select();
      await navigator.clipboard.writeText(field.value);
      button.textContent = "Copied";
    });
  }
  // A form is sent once.
  for (const form of document.querySelectorAll("form[method=post]")) {
    form.addEventListener("submit", () => {
      for (const button of form.querySelectorAll("button:not([name])")) button.disabled = true;
    });
  }
})();
