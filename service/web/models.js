/** The models: a list to choose from, and what is said of the chosen one. */

import { element } from "./elements.js";
import { queryFromView, viewOfModel } from "./view.js";

/**
 * @typedef {object} Ode  How a continuous flow is solved if nobody says otherwise.
 * @property {string} solver
 * @property {number} steps
 * @property {number | null} guidance  null: it cannot be guided.
 */

/**
 * @typedef {object} Context  Numbers that a model is told, and their range in training.
 * @property {string[]} names
 * @property {number[]} minimum
 * @property {number[]} maximum
 */

/**
 * @typedef {object} Model
 * @property {string} name
 * @property {string} title
 * @property {string} family
 * @property {{kind: "vector" | "image", shape: number[], features: string[]}} event
 * @property {string[] | null} labels
 * @property {Context | null} context
 * @property {string | null} observation
 * @property {Ode | null} ode  Of a continuous flow.
 * @property {object | null} rejection  How its critic rejects samples, of a GAN that kept it.
 * @property {string[]} capabilities
 * @property {number | null} version
 * @property {"loading" | "ready" | "failed"} state
 * @property {Record<string, string>} problems  By version that was refused, why.
 * @property {import("./api.js").Figure[]} evaluation
 */

const FAMILIES = { vae: "VAE", flow: "Flow", "continuous-flow": "Continuous flow", gan: "GAN" };

/** Return what a family is called: a new one by its own name. @param {string} family */
const familyName = (family) => /** @type {Record<string, string>} */ (FAMILIES)[family] ?? family;

const ABILITIES = {
  sample: "samples",
  encode: "codes",
  "log-density": "densities",
  elbo: "bounds",
};

/**
 * Return the model to open with, where the service names none: the one whose samples are largest;
 * of equals one that can be asked for a label, then one that solves no ode, which takes its time.
 * @param {Model[]} models
 * @returns {Model | undefined}
 */
export function firstToShow(models) {
  const size = (/** @type {Model} */ model) =>
    model.event.shape.reduce((a, b) => a * b, 1) + (model.labels ? 0.5 : 0) - (model.ode ? 0.25 : 0);
  const ready = models.filter((model) => model.state === "ready");
  return ready.find((model) => ready.every((other) => size(other) <= size(model)));
}

/**
 * Bring the chosen model into sight where the list is one line to swipe.
 * @param {HTMLElement} list
 */
export function revealChosen(list) {
  const chosen = /** @type {HTMLElement | null} */ (list.querySelector("[aria-current]"));
  if (chosen) list.scrollLeft = chosen.offsetLeft - parseFloat(getComputedStyle(list).paddingLeft);
}

/**
 * Return the items of the list of models.
 * @param {Model[]} models
 * @param {import("./view.js").View} view
 * @param {(name: string) => void} choose
 * @returns {HTMLElement[]}
 */
export function modelItems(models, view, choose) {
  return models.map((model) => {
    const link = element(
      "a",
      {
        href: queryFromView(viewOfModel(view, model.name)),
        id: `model-${model.name}`,
        class: model.state,
        "aria-current": model.name === view.model ? "page" : null,
        onclick: (/** @type {MouseEvent} */ event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey) return;
          event.preventDefault();
          choose(model.name);
        },
      },
      element("strong", {}, model.name),
      ...(model.state === "ready" ? readyLines(model) : troubleLines(model)),
    );
    return element("li", {}, link);
  });
}

/** @param {Model} model */
function readyLines(model) {
  const headline = model.evaluation[0];
  const said = [
    element("span", {}, model.title),
    element("span", {}, `${familyName(model.family)} · ${abilities(model)}`),
  ];
  if (headline) said.push(element("span", { class: "figure" }, sentenceOf(headline)));
  return said;
}

/** @param {Model} model */
function troubleLines(model) {
  if (model.state === "loading") return [element("span", {}, "Loading and checking …")];
  return [element("span", { class: "trouble" }, `Not served. ${reason(model)}`)];
}

/** Return why a model failed, its newest version first. @param {Model} model */
export function reason(model) {
  return Object.entries(model.problems ?? {})
    .sort(([a], [b]) => Number(b) - Number(a))
    .map(([version, why]) => `Version ${version}: ${why}`)
    .join(" ");
}

/** Return the middle of each number's range, as an address has it. @param {Context} context */
export function middle({ minimum, maximum }) {
  return minimum.map((low, index) => String((low + maximum[index]) / 2)).join(",");
}

/** @param {Model} model */
function abilities(model) {
  const named = Object.entries(ABILITIES).filter(([name]) => model.capabilities.includes(name));
  return named.map(([, text]) => text).join(", ");
}

/** Return a line on what a model makes. @param {Model} model */
export function summary({ name, family, event, labels, context, version }) {
  const [channels, height, width] = event.shape;
  const colour = channels === 3 ? "colour" : "grey";
  const made =
    event.kind === "image"
      ? `${colour} images of ${width} × ${height} pixels`
      : `${event.shape[0]} number${event.shape[0] === 1 ? "" : "s"} a sample`;
  const classes = labels ? `${labels.length} labels` : null;
  const given = context ? `given ${context.names.join(", ")}` : null;
  const said = [`${name}, version ${version}`, familyName(family), made, classes, given];
  return said.filter(Boolean).join(" · ");
}

/**
 * Return a table of what was measured.
 * @param {import("./api.js").Figure[]} figures
 */
export function figuresTable(figures) {
  const head = ["Figure", "Value", "Events", "Note"].map((text) =>
    element("th", { scope: "col" }, text),
  );
  const lines = figures.map((figure) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, words(figure.name)),
      element("td", {}, `${measured(figure)} ${figure.unit}`),
      element("td", {}, figure.n.toLocaleString("en")),
      element("td", { class: "note" }, figure.note),
    ),
  );
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...lines),
  );
}

/** @param {import("./api.js").Figure} figure */
function sentenceOf(figure) {
  const unit = figure.unit ? ` ${figure.unit}` : "";
  return `${words(figure.name)} ${measured(figure)}${unit}`;
}

/** @param {string} name */
const words = (name) => name.replaceAll("_", " ");

/**
 * Return a value with its standard error, both to that error's first digit.
 * @param {import("./api.js").Figure} figure
 */
export function measured({ value, standard_error: error }) {
  if (!error) return value.toLocaleString("en", { maximumSignificantDigits: 4 });
  const digits = Math.min(6, Math.max(0, -Math.floor(Math.log10(error))));
  return `${value.toFixed(digits)} ± ${error.toFixed(digits)}`.replace("-", "−");
}
