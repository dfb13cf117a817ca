// A plain script in the head: it runs before anything is painted, so that no light page flashes.
(() => {
  const chosen = localStorage.getItem("vl2.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
