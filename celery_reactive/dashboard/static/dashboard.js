// What the pages do by themselves: live updates, keyboard, dialogs, selection. Without it every page still works.
"use strict";
(function () {
  const dialog = document.getElementById("dialog");
  const help = document.getElementById("help");
  const find = document.getElementById("find");
  const offline = document.getElementById("offline");
  const liveSwitch = document.getElementById("live-switch");
  const seconds = Number(document.body.dataset.refresh);

  function stored(name) { try { return localStorage.getItem(name); } catch (error) { return null; } }
  function store(name, value) { try { localStorage.setItem(name, value); } catch (error) { /* kept for this page only */ } }

  // --- live updates: not while nobody looks, something is being read out, typed or asked -----------
  let live = stored("celery-reactive-live") !== "off";
  let updating = false;

  function showLive() {
    if (liveSwitch) liveSwitch.setAttribute("aria-pressed", String(live));
  }
  function switchLive() {
    live = !live;
    store("celery-reactive-live", live ? "on" : "off");
    showLive();
    update();
  }
  function isBusy() {
    const region = document.getElementById("live");
    const chosen = window.getSelection();
    const marks = chosen && !chosen.isCollapsed && region && region.contains(chosen.anchorNode);
    const menu = region && region.querySelector("details.menu[open]");
    const question = dialog.open && !dialog.querySelector("[data-done]");
    return marks || menu || question || help.open;
  }
  function update(force) {
    const region = document.getElementById("live");
    if (!region || updating || (!force && (!live || document.hidden || isBusy()))) return;
    updating = true;
    document.dispatchEvent(new CustomEvent("reactive:update"));
    htmx.ajax("GET", location.href, { source: region, target: region, select: "#live", swap: "outerHTML" })
      .finally(function () { updating = false; });
  }

  // --- focus: an element that was brought anew is known again by where it leads or what it stands for ----
  function nameOf(element) {
    if (!element || element === document.body) return null;
    const around = element.closest("details[id]");
    const marks = ["href", "value", "aria-label", "data-selected"].map(function (name) { return element.getAttribute(name); });
    return JSON.stringify([element.tagName, around && around.id].concat(marks));
  }
  function focusAgain(name) {
    if (!name) return;
    const same = [...document.querySelectorAll("#main a, #main button, #main input, #main summary, #main [tabindex]")]
      .find(function (element) { return nameOf(element) === name; });
    if (same) same.focus({ preventScroll: true });
  }

  let kept = null;
  document.addEventListener("htmx:beforeSwap", function (event) {
    const target = event.detail.target;
    const status = event.detail.xhr.status;
    if (target.id === "dialog-body") { event.detail.shouldSwap = true; return; }
    if (target.id !== "live") return;
    offline.hidden = status === 200;
    offline.textContent = status === 401 ? offline.dataset.unknown : offline.dataset.away;
    event.detail.shouldSwap = status === 200;
    if (status !== 200) return;
    kept = {
      focused: target.contains(document.activeElement) ? nameOf(document.activeElement) : null,
      keys: new Set([...target.querySelectorAll("input[name=key]:checked")].map(function (box) { return box.value; })),
      closed: [...target.querySelectorAll("details[id]:not([open])")].map(function (one) { return one.id; }),
      scrolled: [...target.querySelectorAll(".scroll")].map(function (one) { return one.scrollLeft; }),
    };
  });
  document.addEventListener("htmx:afterSwap", function (event) {
    const target = event.detail.target;
    if (target.id === "dialog-body") { opened(); return; }
    const region = document.getElementById("live");
    if (!kept || !region) return;
    for (const box of region.querySelectorAll("input[name=key]")) box.checked = kept.keys.has(box.value);
    for (const id of kept.closed) { const one = document.getElementById(id); if (one) one.open = false; }
    region.querySelectorAll(".scroll").forEach(function (one, number) { one.scrollLeft = kept.scrolled[number] || 0; });
    focusAgain(kept.focused);
    kept = null;
    countSelected();
  });
  document.addEventListener("htmx:sendError", function (event) {
    if (!event.detail.target || event.detail.target.id !== "live") return;
    offline.textContent = offline.dataset.away;
    offline.hidden = false;
  });

  // --- dialogs ---------------------------------------------------------------------------------------
  let asker = null;
  function closeMenu() {
    const menu = document.querySelector("details.menu[open]");
    if (!menu) return;
    const within = menu.contains(document.activeElement);
    menu.open = false;
    if (within) menu.querySelector("summary").focus();
  }
  function opened() {
    closeMenu();
    if (!dialog.open) { asker = nameOf(document.activeElement); dialog.showModal(); }
    const first = dialog.querySelector("[autofocus]");
    if (first) first.focus();
    if (!dialog.querySelector("[data-done]")) return;
    // What was selected is dealt with.
    for (const box of document.querySelectorAll("#selection input[name=key]")) box.checked = false;
    countSelected();
    update(true);
  }
  document.addEventListener("click", function (event) {
    const closes = event.target.closest("[data-close]");
    if (closes && dialog.open) { event.preventDefault(); dialog.close(); }
    else if (event.target === dialog || event.target === help) event.target.close();
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });

  // What was shown behind a question is as old as the question.
  dialog.addEventListener("close", function () {
    const main = document.getElementById("main");
    if (!main || !main.contains(document.activeElement)) focusAgain(asker);
    update();
  });

  // --- selection -------------------------------------------------------------------------------------
  function countSelected() {
    const boxes = [...document.querySelectorAll("#selection input[name=key]")];
    const number = boxes.filter(function (box) { return box.checked; }).length;
    for (const button of document.querySelectorAll("[data-selected]")) {
      button.disabled = number === 0;
      button.textContent = button.textContent.replace(/selected.*/, number ? "selected (" + number + ")" : "selected");
    }
    const all = document.getElementById("select-all");
    if (all) { all.checked = number > 0 && number === boxes.length; all.indeterminate = number > 0 && number < boxes.length; }
  }
  // A link with filters holds those that are set, and a page that is gone back to shows those of its link.
  document.addEventListener("formdata", function (event) {
    if (event.target.id !== "filters") return;
    for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
  });
  window.addEventListener("pageshow", function (event) {
    if (event.persisted) for (const form of document.querySelectorAll("#filters, form.choose")) form.reset();
  });
  document.addEventListener("change", function (event) {
    if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
    if (event.target.matches("[data-all]")) {
      for (const box of document.querySelectorAll("#selection input[name=key]")) box.checked = event.target.checked;
    }
    countSelected();
  });

  // --- keyboard ----------------------------------------------------------------------------------------
  let began = 0;
  const places = { o: 0, r: 1, e: 2, p: 3, w: 4, s: 5 };
  function isTyping(target) { return target.closest("input:not([type=checkbox]), select, textarea, [contenteditable]"); }
  document.addEventListener("keydown", function (event) {
    if (event.key === "Escape") closeMenu();
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (event.key === " " && event.target.matches("a[role=button]")) { event.preventDefault(); event.target.click(); }
    else if (event.key === "/") { event.preventDefault(); find.focus(); find.select(); }
    else if (event.key === "?" && !dialog.open) { if (help.open) help.close(); else help.showModal(); }
    else if (dialog.open || help.open) return;
    else if (event.key === "l" && liveSwitch) switchLive();
    else if (event.key === "d") switchTheme();
    else if (event.key === "g") began = Date.now();
    else if (Date.now() - began < 1500 && event.key in places) {
      const link = document.querySelectorAll("header nav a")[places[event.key]];
      if (link) link.click();
    }
  });

  // --- light and dark ------------------------------------------------------------------------------------
  function switchTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    store("celery-reactive-theme", root.dataset.theme);
    document.dispatchEvent(new CustomEvent("reactive:theme"));
  }

  document.getElementById("theme-switch").addEventListener("click", switchTheme);
  document.getElementById("help-switch").addEventListener("click", function () { help.showModal(); });
  if (liveSwitch) liveSwitch.addEventListener("click", switchLive);
  const here = document.querySelector("header nav [aria-current]");
  if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 60;
  showLive();
  countSelected();
  if (seconds) setInterval(update, seconds * 1000);
  document.addEventListener("visibilitychange", function () { if (!document.hidden) update(); });
})();
