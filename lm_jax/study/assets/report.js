"use strict";
// Draws the curves and samples of a run's page from the JSON in #data. Text only ever enters as textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const view = { axis: "step", logX: false, logY: false, smooth: 0.02, zoom: null, range: [0, 1] };
let plots = [];

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

function si(value, digits = 4) {
  for (const [factor, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= factor) return +(value / factor).toPrecision(digits) + prefix;
  return String(+value.toPrecision(digits));
}

function decimal(value, digits = 5) {
  const rounded = +value.toPrecision(digits), size = Math.abs(rounded);
  if (size >= 1e4) return si(value, digits);
  return size !== 0 && size < 1e-3 ? rounded.toExponential() : String(rounded);
}

const formats = { number: decimal, percent: (value, digits = 4) => +(100 * value).toPrecision(digits) + " %", si };

// The horizontal axis: steps, tokens or training time in the unit that suits the run's length.

const timeUnit = (() => {
  const longest = data.axis.wall[data.axis.wall.length - 1] || 0;
  if (longest > 2 * 86400) return [86400, "days"];
  if (longest > 2 * 3600) return [3600, "hours"];
  return longest > 180 ? [60, "minutes"] : [1, "seconds"];
})();

function fromStep(step) {
  const { step: steps } = data.axis, values = data.axis[view.axis];
  if (view.axis === "step") return step;
  let low = 0, high = steps.length - 1;
  if (high < 1) return values[0];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  const share = (step - steps[low]) / (steps[high] - steps[low] || 1);
  const value = values[low] + share * (values[high] - values[low]);
  return view.axis === "wall" ? value / timeUnit[0] : value;
}

const axisLabel = () => ({ step: "step", tokens: "tokens", wall: "training time (" + timeUnit[1] + ")" })[view.axis];

// All panels share one range, that of everything drawn.

function fullRange() {
  const xs = data.panels.flatMap(panel => panel.curves.flatMap(curve => [curve.step[0], curve.step[curve.step.length - 1]]));
  const low = fromStep(Math.min(...xs)), high = fromStep(Math.max(...xs));
  const start = view.logX && !(low > 0) ? fromStep(1) : low;
  return start < high ? [start, high] : pad(high, high, view.logX);
}

// A Gaussian kernel over steps. It narrows towards the first step, so that the steep beginning is not flattened.

function smoothed(curve, share) {
  const { step, value } = curve.mean || curve, first = step[0], range = step[step.length - 1] - first;
  const result = new Array(step.length);
  let from = 0;
  for (let i = 0; i < step.length; i++) {
    const width = Math.min(share * range, 0.15 * (step[i] - first)) || 1e-9;
    while (step[from] < step[i] - 3 * share * range) from++;
    let sum = 0, weights = 0;
    for (let j = from; j < step.length && step[j] <= step[i] + 3 * width; j++) {
      if (value[j] === null) continue;
      const weight = Math.exp(-0.5 * ((step[j] - step[i]) / width) ** 2);
      sum += weight * value[j];
      weights += weight;
    }
    result[i] = weights > 0 ? sum / weights : null;
  }
  return { step, value: result };
}

// Every name has one colour on the whole page: blue for training, the others for evals.

const evalNames = [...new Set(data.panels.flatMap(panel => panel.curves.filter(c => c.kind === "eval").map(c => c.name)))];

function hue(curve, index) {
  return color("c" + (curve.kind === "eval" ? 1 + evalNames.indexOf(curve.name) % 5 : index % 6));
}

// Curves of a panel -> [{label, points, stroke, width, dots}]

function lines(panel) {
  const result = [], several = panel.curves.filter(curve => curve.kind === "train").length > 1;
  panel.curves.forEach((curve, index) => {
    const stroke = hue(curve, index), few = curve.step.length <= 60;
    const smooth = panel.smooth && curve.kind === "train" && view.smooth > 0 && curve.step.length > 20;
    result.push({ label: curve.name, points: curve, stroke: smooth ? stroke + "70" : stroke, width: smooth ? 1 : 2, dots: few });
    if (smooth) result.push({ label: several ? curve.name + ", smoothed" : "smoothed", points: smoothed(curve, view.smooth), stroke, width: 2, dots: false });
  });
  return result;
}

function table(points, log) {
  const xs = [], ys = [];
  points.step.forEach((step, i) => {
    const x = fromStep(step), y = points.value[i];
    if (view.logX && !(x > 0)) return;
    xs.push(x);
    ys.push(log && !(y > 0) ? null : y);
  });
  return [xs, ys];
}

function nearest(plot, series, hovered, x) {
  const ys = plot.data[series], xs = plot.data[0];
  if (ys[hovered] != null) return hovered;
  let left = hovered, right = hovered;
  while (left > 0 && ys[left] == null) left--;
  while (right < ys.length - 1 && ys[right] == null) right++;
  if (ys[left] == null) return ys[right] == null ? hovered : right;
  return ys[right] == null || x - xs[left] <= xs[right] - x ? left : right;
}

function pad(min, max, log) {
  if (min === null || max === null) return log ? [1, 10] : [0, 1];
  if (log) return min === max ? [min / 2, max * 2] : [min * (min / max) ** 0.05, max * (max / min) ** 0.05];
  const margin = 0.06 * (max - min) || Math.abs(max) * 0.1 || 1;
  return [min >= 0 && min - margin < 0 ? 0 : min - margin, max + margin];
}

function drawMarks(plot, main) {
  const { ctx, bbox } = plot, ratio = devicePixelRatio || 1;
  const at = step => plot.valToPos(fromStep(step), "x", true);
  const inside = x => x >= bbox.left && x <= bbox.left + bbox.width;
  ctx.save();
  for (const [name, dash, stroke] of [["resume", [8, 4], color("resume")], ["skip", [2, 3], color("mark")]]) {
    ctx.strokeStyle = stroke;
    ctx.lineWidth = ratio;
    ctx.setLineDash(dash.map(length => length * ratio));
    for (const x of data.marks[name].map(at).filter(inside)) {
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
  }
  if (main) {
    const bottom = bbox.top + bbox.height, size = 4 * ratio;
    ctx.fillStyle = color("faint");
    let last = -Infinity;
    for (const x of data.marks.checkpoint.map(at).filter(inside)) {
      if (x - last < 3 * size) continue;
      last = x;
      ctx.beginPath();
      ctx.moveTo(x - size, bottom);
      ctx.lineTo(x + size, bottom);
      ctx.lineTo(x, bottom - 1.6 * size);
      ctx.fill();
    }
  }
  ctx.restore();
}

// Whether a range is what uPlot proposes when nothing is zoomed: that of the plot's own points.

function isWhole(plot, min, max) {
  const xs = plot.data[0];
  return min === xs[0] && max === xs[xs.length - 1] || min === max;
}

function position(x) {
  return x == null ? "–" : view.axis === "wall" ? x.toPrecision(4) : Math.round(x).toLocaleString("en");
}

// Ticks of a logarithmic axis at every digit of every decade, and which of them have room for a label.

function logTicks(plot, axis, min, max) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(min)); power <= Math.log10(max); power++)
    for (let digit = 1; digit <= 9; digit++) ticks.push(+(digit + "e" + power));
  const inside = ticks.filter(tick => tick >= min && tick <= max);
  if (inside.length > 3) return inside;
  const rough = (max - min) / 5, unit = 10 ** Math.floor(Math.log10(rough)); // a short stretch is nearly linear
  const step = unit * [1, 2, 5, 10].find(digit => digit * unit >= rough);
  return Array.from({ length: 6 }, (_, i) => (Math.ceil(min / step) + i) * step).filter(tick => tick <= max);
}

function roomyTicks(plot, ticks, axis) {
  const { min, max } = plot.scales[axis === 0 ? "x" : "y"], digit = tick => tick.toExponential(3)[0];
  const pixels = (axis === 0 ? plot.width : plot.height) / (Math.log10(max / min) * (axis === 0 ? 50 : 16)); // labels a decade can hold
  const wanted = pixels > 20 ? "123456789" : pixels > 3.5 ? "125" : "1";
  const kept = ticks.map(tick => wanted.includes(digit(tick)) ? tick : null);
  return ticks.length > 6 ? kept : ticks;
}

const wholeSteps = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map(digit => digit * 10 ** power)).flat();

function draw(panel, node, main) {
  const log = main ? view.logY : panel.log, drawn = lines(panel), format = formats[panel.format];
  const value = (plot, v, series, index) => { // away from the curves the legend shows the last values
    const shown = index === null ? plot.data[series].findLast(y => y != null) : v;
    return shown == null ? "–" : format(shown);
  };
  const axis = { stroke: color("faint"), grid: { stroke: color("grid"), width: 1 }, ticks: { stroke: color("line"), width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
  const options = {
    width: node.clientWidth, height: main ? Math.min(400, Math.max(260, node.clientWidth * 0.4)) : 210,
    scales: {
      x: { time: false, distr: view.logX ? 3 : 1, range: (plot, min, max) => isWhole(plot, min, max) ? view.range : [min, max] },
      y: { distr: log ? 3 : 1, range: (_, min, max) => pad(min, max, log) },
    },
    axes: [
      { ...axis, label: axisLabel(), labelSize: 18, size: 32, incrs: view.axis === "wall" ? undefined : wholeSteps, values: (_, ticks) => ticks.map(v => v == null ? "" : si(v, 6)), ...(view.logX ? { splits: logTicks, filter: roomyTicks } : {}) },
      { ...axis, size: (_, labels) => 18 + 7 * Math.max(4, ...(labels || []).map(label => label.length)), values: (_, ticks) => ticks.map(v => v == null ? "" : format(v, 4)), ...(log ? { splits: logTicks, filter: roomyTicks } : {}) },
    ],
    series: [
      { label: axisLabel(), value: (plot, v) => position(v ?? plot.data[0].at(-1)) },
      ...drawn.map(line => ({ label: line.label, stroke: line.stroke, width: line.width, value, points: line.dots ? { show: true, size: 6 } : { show: false } })),
    ],
    cursor: { sync: { key: "run", scales: ["x", null] }, drag: { x: true, y: false }, y: false, dataIdx: nearest },
    hooks: {
      draw: [plot => drawMarks(plot, main)],
      setScale: [(plot, key) => { if (key === "x" && plot.status === 1) rememberZoom(plot); }],
    },
  };
  return new uPlot(options, uPlot.join(drawn.map(line => table(line.points, log))), node);
}

function rememberZoom(plot) {
  const { min, max } = plot.scales.x, [low, high] = view.range;
  view.zoom = min > low || max < high ? { min, max } : null;
}

function drawAll() {
  const zoom = view.zoom;
  view.range = fullRange();
  plots.forEach(plot => plot.destroy());
  plots = data.panels.map((panel, index) => {
    const plot = draw(panel, document.getElementById("panel" + index), index === 0);
    plot.setScale("x", zoom || { min: view.range[0], max: view.range[1] });
    return plot;
  });
  view.zoom = zoom;
}

function layOut() {
  const panels = document.getElementById("panels");
  data.panels.forEach((panel, index) => {
    const node = element("div", index === 0 ? "panel main" : "panel"), title = element("h3", "", panel.title + " ");
    title.append(element("small", "", panel.unit + (panel.log ? (panel.unit ? ", " : "") + "logarithmic" : "")));
    const body = element("div");
    body.id = "panel" + index;
    node.append(title, body);
    panels.append(node);
  });
  const names = { checkpoint: ["▲", "checkpoint", "faint"], resume: ["╎", "resumed", "resume"], skip: ["┊", "update skipped: not finite", "mark"] };
  for (const [name, [symbol, text, hue]] of Object.entries(names)) {
    if (!data.marks[name].length) continue;
    const node = element("span"), sign = element("b", "", symbol);
    sign.style.color = "var(--" + hue + ")";
    node.append(sign, text);
    document.getElementById("marks").append(node);
  }
}

function listen() {
  const change = update => { update(); drawAll(); };
  document.querySelectorAll("[data-axis]").forEach(button => button.addEventListener("click", () => change(() => {
    view.axis = button.dataset.axis;
    view.zoom = null;
    document.querySelectorAll("[data-axis]").forEach(other => other.setAttribute("aria-pressed", other === button));
  })));
  document.querySelectorAll("[data-toggle]").forEach(button => button.addEventListener("click", () => change(() => {
    view[button.dataset.toggle] = !view[button.dataset.toggle];
    button.setAttribute("aria-pressed", view[button.dataset.toggle]);
  })));
  document.getElementById("smooth").addEventListener("input", event => change(() => { view.smooth = event.target.value / 100; }));
  document.getElementById("reset").addEventListener("click", () => change(() => { view.zoom = null; }));
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", drawAll);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
}

function samples() {
  const slider = document.getElementById("when"), last = data.samples.length - 1;
  const show = index => {
    const group = data.samples[index];
    slider.value = index;
    document.getElementById("earlier").disabled = index === 0;
    document.getElementById("later").disabled = index === last;
    document.getElementById("at").textContent = "step " + group.step.toLocaleString("en");
    document.getElementById("texts").replaceChildren(...group.items.map(item => {
      const figure = element("figure"), text = element("pre");
      text.dir = "auto";
      const apart = (item.image || item.reference) && !item.prompt.endsWith("\n");  // an answer, and no continuation
      text.append(element("span", "prompt", item.prompt), apart ? "\n" : "", item.text);
      figure.append(element("figcaption", "", item.note || " "));
      if (item.image) figure.append(picture(item.image));
      if (item.prompt || item.text) figure.append(text);
      if (item.reference) figure.append(element("pre", "reference", item.reference));
      if (item.table) figure.append(shades(item.table));
      return figure;
    }));
  };
  slider.max = last;
  slider.addEventListener("input", () => show(+slider.value));
  document.getElementById("earlier").addEventListener("click", () => show(+slider.value - 1));
  document.getElementById("later").addEventListener("click", () => show(+slider.value + 1));
  show(last);
}

function picture(source) {
  const image = element("img");
  image.src = source;
  return image;
}

// A table of numbers from 0 to 1, each the darker the greater it is.
function shades(table) {
  const body = element("table", "shades"), head = element("tr");
  head.append(element("th"), ...table.columns.map(name => element("th", "", name)));
  body.append(head, ...table.rows.map((name, i) => {
    const row = element("tr");
    row.append(element("th", "", name), ...table.values[i].map(value => {
      const cell = element("td");
      cell.style.setProperty("--shade", Math.round(100 * value) + "%");
      cell.title = value.toFixed(3);
      return cell;
    }));
    return row;
  }));
  const scroll = element("div", "scroll");
  scroll.append(body);
  return scroll;
}

function search() {
  const box = document.getElementById("search"), tree = box.parentElement.querySelector(".tree");
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    for (const leaf of tree.querySelectorAll(".leaf")) {
      const found = (leaf.dataset.path + " " + leaf.textContent).toLowerCase().includes(wanted);
      leaf.classList.toggle("hidden", !found);
      leaf.classList.toggle("hit", found && wanted !== "");
    }
    for (const node of tree.querySelectorAll("details")) {
      node.classList.toggle("hidden", !node.querySelector(".leaf:not(.hidden)"));
      if (wanted) node.open = true;
    }
  });
}

function copy() {
  const button = document.getElementById("copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.nextElementSibling.textContent);
    button.textContent = "copied";
  });
}

if (data.panels.length) { layOut(); drawAll(); listen(); }
if (data.samples.length) samples();
if (document.getElementById("search")) search();
if (document.getElementById("copy")) copy();
