/** A scatter plot of two features on a canvas, drawn by hand: points, axes, ticks, names. */

import { Problem } from "./api.js";

export const POINTS_A_PAGE = 1000;

const MARGIN = { top: 16, right: 20, bottom: 48, left: 64 };
const RADIUS = 2.25;
/** Pixels from a point within which pointing means it. */
const REACH = 16;

/**
 * @typedef {object} Axis
 * @property {string} name
 * @property {number} low
 * @property {number} high
 * @property {number[]} ticks
 *
 * @typedef {object} Plot
 * @property {{row: number, x: number, y: number}[]} points  Those that can be drawn.
 * @property {number} missing  How many cannot: not finite.
 * @property {Axis} horizontal
 * @property {Axis} vertical
 */

/**
 * Return the names of a model's features, in order.
 * @param {import("./models.js").Model} model
 * @returns {string[]}
 */
export function featureNames({ event }) {
  if (event.features.length > 0) return event.features;
  return Array.from({ length: event.shape[0] }, (_, index) => `x${index}`);
}

/**
 * Return what to draw. A model of one feature is drawn against the row.
 * @param {(number | string)[][]} samples  The service's x; "NaN" and "Infinity" are text there.
 * @param {import("./view.js").View} view
 * @param {string[]} names
 * @returns {Plot}
 * @throws {Problem} The view names a feature that there is not.
 */
export function plotOf(samples, view, names) {
  const single = names.length === 1;
  if (!names[view.horizontal] || !(single || names[view.vertical])) {
    const known = `The features are 0 to ${names.length - 1}: ${names.join(", ")}.`;
    throw new Problem("No such feature", known);
  }
  const all = samples.map((values, index) => {
    const row = view.start + index;
    const y = single ? row : values[view.vertical];
    return { row, x: Number(values[view.horizontal]), y: Number(y) };
  });
  const points = all.filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y));
  return {
    points,
    missing: all.length - points.length,
    horizontal: axis(names[view.horizontal], points.map((point) => point.x)),
    vertical: axis(single ? "row" : names[view.vertical], points.map((point) => point.y)),
  };
}

/** @param {string} name @param {number[]} values @returns {Axis} */
function axis(name, values) {
  const [least, most] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  const step = tickStep(least, most);
  const first = Math.floor(least / step);
  const last = Math.max(first + 1, Math.ceil(most / step));
  const ticks = Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
  return { name, low: first * step, high: last * step, ticks };
}

/**
 * Return a step of 1, 2 or 5 times a power of ten that cuts a range into about eight.
 * @param {number} low
 * @param {number} high
 */
export function tickStep(low, high) {
  const rough = (high - low || 1) / 8;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
}

/** Return the words for a plot. @param {Plot} plot @param {import("./view.js").View} view */
export function describePlot({ points, missing, horizontal, vertical }, view) {
  const range = (/** @type {Axis} */ { name, low, high }) =>
    `${name} from ${tidy(low)} to ${tidy(high)}`;
  const hidden = missing ? ` ${missing} more are not finite and not drawn.` : "";
  return (
    `Scatter plot of ${points.length} samples of seed ${view.seed}: ` +
    `${range(horizontal)}, ${range(vertical)}.${hidden}`
  );
}

/** Return the words for one point. @param {Plot} plot @param {Plot["points"][0]} point */
export function describePoint({ horizontal, vertical }, { row, x, y }) {
  return `Row ${row}: ${horizontal.name} ${tidy(x)}, ${vertical.name} ${tidy(y)}`;
}

/** @param {number} value */
const tidy = (value) => String(Number(value.toPrecision(4)));

/**
 * Return how values become pixels on a canvas of this size.
 * @param {Plot} plot
 * @param {{width: number, height: number}} size
 */
function scales({ horizontal, vertical }, { width, height }) {
  const across = width - MARGIN.left - MARGIN.right;
  const down = height - MARGIN.top - MARGIN.bottom;
  const part = (/** @type {Axis} */ { low, high }, /** @type {number} */ value) =>
    (value - low) / (high - low);
  return {
    x: (/** @type {number} */ value) => MARGIN.left + across * part(horizontal, value),
    y: (/** @type {number} */ value) => MARGIN.top + down * (1 - part(vertical, value)),
  };
}

/**
 * Draw a plot in the colours that the page has now.
 * @param {HTMLCanvasElement} canvas
 * @param {Plot} plot
 */
export function draw(canvas, plot) {
  const size = { width: canvas.clientWidth, height: canvas.clientHeight };
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(size.width * density);
  canvas.height = Math.round(size.height * density);
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.scale(density, density);
  const style = getComputedStyle(canvas);
  const colour = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
  const to = scales(plot, size);
  context.font = `12px ${style.fontFamily}`;
  drawAxes(context, plot, { to, size, line: colour("--line"), ink: colour("--quiet") });
  context.fillStyle = colour("--accent");
  context.globalAlpha = 0.7;
  for (const { x, y } of plot.points) {
    context.beginPath();
    context.arc(to.x(x), to.y(y), RADIUS, 0, 2 * Math.PI);
    context.fill();
  }
  context.globalAlpha = 1;
}

/** @param {CanvasRenderingContext2D} context @param {Plot} plot @param {any} how */
function drawAxes(context, { horizontal, vertical }, { to, size, line, ink }) {
  const floor = size.height - MARGIN.bottom;
  const crowded = size.width < 480;
  context.strokeStyle = line;
  context.fillStyle = ink;
  context.textAlign = "center";
  context.textBaseline = "top";
  horizontal.ticks.forEach((tick, index) => {
    stroke(context, [to.x(tick), MARGIN.top], [to.x(tick), floor]);
    if (!crowded || index % 2 === 0) context.fillText(tidy(tick), to.x(tick), floor + 8);
  });
  context.fillText(horizontal.name, (MARGIN.left + size.width - MARGIN.right) / 2, floor + 28);
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const tick of vertical.ticks) {
    stroke(context, [MARGIN.left, to.y(tick)], [size.width - MARGIN.right, to.y(tick)]);
    context.fillText(tidy(tick), MARGIN.left - 8, to.y(tick));
  }
  context.save();
  context.translate(14, (MARGIN.top + floor) / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText(vertical.name, 0, 0);
  context.restore();
}

/** @param {CanvasRenderingContext2D} context @param {number[]} from @param {number[]} to */
function stroke(context, from, to) {
  context.beginPath();
  context.moveTo(Math.round(from[0]) + 0.5, Math.round(from[1]) + 0.5);
  context.lineTo(Math.round(to[0]) + 0.5, Math.round(to[1]) + 0.5);
  context.stroke();
}

/**
 * Return the point nearest to a place on the canvas, if one is near enough to be meant.
 * @param {HTMLCanvasElement} canvas
 * @param {Plot} plot
 * @param {{x: number, y: number}} place  In CSS pixels from the canvas's corner.
 */
export function nearest(canvas, plot, place) {
  const to = scales(plot, { width: canvas.clientWidth, height: canvas.clientHeight });
  const distance = (/** @type {Plot["points"][0]} */ point) =>
    Math.hypot(to.x(point.x) - place.x, to.y(point.y) - place.y);
  const distances = plot.points.map(distance);
  const least = Math.min(...distances);
  return least < REACH ? plot.points[distances.indexOf(least)] : null;
}
