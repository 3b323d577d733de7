// Loaded before the page is drawn, so that it does not flash in the wrong colours.
"use strict";
(function () {
  let chosen = null;
  try { chosen = localStorage.getItem("celery-reactive-theme"); } catch (error) { /* storage is forbidden: the system decides */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
