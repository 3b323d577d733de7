// Draws what was run lately: ended runs as bars, waits and durations as lines.
"use strict";
(function () {
  const place = document.getElementById("charts");
  if (!place || typeof uPlot === "undefined") return;
  let plots = [];
  let last = null;

  function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  function length(seconds) {
    if (seconds === null || seconds === undefined) return "–";
    if (seconds < 1) return Math.round(seconds * 1000) + " ms";
    if (seconds < 120) return (Math.round(seconds * 10) / 10) + " s";
    return seconds < 7200 ? Math.round(seconds / 60) + " min" : Math.round(seconds / 3600) + " h";
  }
  function clock(plot, moments) {
    return moments.map(function (moment) { return new Date(moment * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }); });
  }
  function axes(format) {
    const line = { stroke: colour("--line"), width: 1 };
    const axis = { stroke: colour("--quiet"), grid: line, ticks: line, font: "11px system-ui, sans-serif" };
    return [Object.assign({ values: clock }, axis), Object.assign({ size: 56, values: function (plot, values) { return values.map(format); } }, axis)];
  }
  // A line needs two points: one that stands alone is a dot.
  function alone(plot, number) {
    const values = plot.data[number];
    function isGap(at) { return values[at] === null || values[at] === undefined; }
    const lonely = values.map(function (value, at) { return at; }).filter(function (at) { return !isGap(at) && isGap(at - 1) && isGap(at + 1); });
    return lonely.length ? lonely : null;
  }
  function series(label, name, format, more) {
    return Object.assign({ label: label, stroke: colour(name), width: 1.5, points: { show: false, filter: alone }, value: function (plot, value) { return value === null || value === undefined ? "–" : format(value); } }, more);
  }
  function draw(id, data, lines, format, range, step) {
    const target = document.getElementById(id);
    const options = {
      width: target.clientWidth, height: 190, series: [{ value: function (plot, value) { return value ? new Date(value * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" }) : "–"; } }].concat(lines),
      axes: axes(format), scales: { x: { range: function (plot, first, begun) { return [first, begun + step]; } }, y: { range: range } }, legend: { live: true }, cursor: { y: false, drag: { setScale: false } },
    };
    target.replaceChildren();
    plots.push(new uPlot(options, data, target));
  }
  function fromZero(least) { return function (plot, low, high) { return [0, Math.max(high || 0, least) * 1.1]; }; }
  function count(value) { return String(Math.round(value * 100) / 100); }

  function show(found) {
    last = found;
    for (const plot of plots) plot.destroy();
    plots = [];
    const steps = found.steps;
    const at = steps.map(function (step) { return Date.parse(step.at) / 1000; });
    function column(name) { return steps.map(function (step) { return step[name]; }); }
    const bars = uPlot.paths.bars({ size: [0.8, 24], align: 1 });
    const both = steps.map(function (step) { return step.completed === null ? null : step.completed + step.failed; });
    draw("chart-runs", [at, both, column("failed")], [
      series("ended", "--good", count, { fill: colour("--good"), paths: bars, points: { show: false }, width: 0 }),
      series("failed", "--bad", count, { fill: colour("--bad"), paths: bars, points: { show: false }, width: 0 }),
    ], count, fromZero(4), found.step_seconds);
    draw("chart-times", [at, column("wait_p95_seconds"), column("wait_p50_seconds"), column("duration_p95_seconds"), column("duration_p50_seconds")], [
      series("wait p95", "--held", length, { dash: [4, 3] }),
      series("wait p50", "--held", length),
      series("took p95", "--run", length, { dash: [4, 3] }),
      series("took p50", "--run", length),
    ], length, fromZero(0.02), found.step_seconds);
    const failed = steps.reduce(function (sum, step) { return sum + step.failed; }, 0);
    document.getElementById("runs-note").textContent = "per " + (found.step_seconds === 60 ? "minute" : length(found.step_seconds)) + "; " + found.runs.toLocaleString() + " in all, " + failed.toLocaleString() + " failed";
    document.getElementById("times-note").textContent = "p50 and p95";
    document.getElementById("charts-cover").textContent = covers(found);
  }
  function covers(found) {
    if (found.covers === "all runs") {
      const known = found.steps.find(function (step) { return step.completed !== null; });
      const kept = known && known.at > found.since ? " It is kept since " + new Date(known.at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }) + "." : "";
      return "Every run that ended in success or failure, each attempt, as counted by the workers; the last " + length(found.late_seconds) + " are still coming in." + kept;
    }
    return "Covers the last run of each record" + (found.is_cut ? ", of the newest " + found.runs.toLocaleString() + " only; earlier ones are missing." : ".");
  }
  function load() {
    fetch(place.dataset.source, { headers: { accept: "application/json" } })
      .then(function (answer) { return answer.ok ? answer.json() : answer.json().then(function (why) { throw new Error(why.reason); }); })
      .then(show)
      .catch(function (error) { document.getElementById("charts-cover").textContent = "No charts: " + error.message; });
  }
  document.addEventListener("reactive:update", load);
  document.addEventListener("reactive:theme", function () { if (last) show(last); });
  let waiting = 0;
  window.addEventListener("resize", function () { clearTimeout(waiting); waiting = setTimeout(function () { if (last) show(last); }, 150); });
  load();
})();
