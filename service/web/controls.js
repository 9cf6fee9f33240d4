/** The form: what of a model to show. Each control calls `go` with what it changes in the view. */

import { element, field, select } from "./elements.js";
import { newSeed } from "./view.js";
import { featureNames } from "./scatter.js";

/** @typedef {(changes: Partial<import("./view.js").View>) => void} Go */

/**
 * Return the controls that make sense for a model.
 * @param {import("./view.js").View} view
 * @param {import("./models.js").Model} model
 * @param {Go} go
 * @returns {HTMLElement[]}
 */
export function controlsOf(view, model, go) {
  const made = [seedField(view, go)];
  if (model.labels) made.push(labelField(view, model.labels, go));
  if (model.context) made.push(...contextFields(view, model.context, go));
  if (model.observation) made.push(observationField(view, go));
  if (model.rejection) made.push(rejectionField(view, go));
  // The critic knows samples of temperature 1.
  if (!view.rejection) made.push(temperatureField(view, go));
  if (model.ode) made.push(stepsField(view, model.ode, go));
  if (model.ode && model.ode.guidance !== null) made.push(guidanceField(view, model.ode.guidance, go));
  if (model.event.kind === "vector" && model.event.shape[0] > 2) {
    made.push(...axisFields(view, featureNames(model), go));
  }
  return made;
}

/** @param {import("./view.js").View} view @param {Go} go */
function seedField(view, go) {
  const input = element("input", {
    value: view.seed,
    inputmode: "numeric",
    pattern: "[0-9]+",
    autocomplete: "off",
    spellcheck: "false",
    onchange: (/** @type {Event} */ event) => {
      const typed = /** @type {HTMLInputElement} */ (event.target);
      go({ seed: typed.value.trim() || view.seed, start: 0 });
    },
  });
  const another = element("button", { type: "button", id: "new-seed" }, "New seed");
  another.addEventListener("click", () => go({ seed: newSeed(), start: 0 }));
  return field("Seed", input, another);
}

/** @param {import("./view.js").View} view @param {string[]} labels @param {Go} go */
function labelField(view, labels, go) {
  const options = [["", "any"], ...numbered(labels)];
  return field("Label", select(options, view.label ?? "", (value) => go({ label: value || null })));
}

/**
 * Return a slider for each number that the model is told, over its range in training.
 * @param {import("./view.js").View} view
 * @param {import("./models.js").Context} context
 * @param {Go} go
 */
function contextFields(view, { names, minimum, maximum }, go) {
  const given = (view.context ?? "").split(",");
  return names.map((name, index) => {
    const short = (/** @type {number} */ value) => String(Number(value.toPrecision(4)));
    const told = Number(given[index]);
    const shown = element("output", {}, Number.isFinite(told) ? short(told) : given[index] ?? "");
    const slider = element("input", {
      type: "range",
      min: String(minimum[index]),
      max: String(maximum[index]),
      step: String((maximum[index] - minimum[index]) / 200),
      value: given[index] ?? "",
      title: `The model was trained from ${short(minimum[index])} to ${short(maximum[index])}`,
      oninput: (/** @type {Event} */ event) => {
        shown.textContent = short(Number(/** @type {HTMLInputElement} */ (event.target).value));
      },
      onchange: (/** @type {Event} */ event) => {
        const typed = /** @type {HTMLInputElement} */ (event.target).value;
        go({ context: names.map((_, k) => (k === index ? typed : given[k])).join(",") });
      },
    });
    return field(`Given ${name}`, slider, shown);
  });
}

/** @param {import("./view.js").View} view @param {Go} go */
function observationField(view, go) {
  const options = [
    ["", "mean of p(x|z)"],
    ["draw", "a draw of p(x|z)"],
  ];
  const choose = (/** @type {string} */ value) => go({ observation: value || null });
  return field("Shown", select(options, view.observation ?? "", choose));
}

/** @param {import("./view.js").View} view @param {Go} go */
function rejectionField(view, go) {
  const options = [
    ["", "none"],
    ["true", "by its critic"],
  ];
  const choose = (/** @type {string} */ value) => go({ rejection: value || null, temperature: "1" });
  return field("Rejection", select(options, view.rejection ?? "", choose));
}

/** @param {import("./view.js").View} view @param {Go} go */
function temperatureField(view, go) {
  const shown = element("output", {}, Number(view.temperature).toFixed(2));
  const slider = element("input", {
    type: "range",
    min: "0.1",
    max: "1.5",
    step: "0.05",
    value: view.temperature,
    title: "Factor on the noise: 1 is the model itself, less is nearer to its mode",
    oninput: (/** @type {Event} */ event) => {
      const value = Number(/** @type {HTMLInputElement} */ (event.target).value);
      shown.textContent = value.toFixed(2);
    },
    onchange: (/** @type {Event} */ event) => {
      go({ temperature: String(Number(/** @type {HTMLInputElement} */ (event.target).value)) });
    },
  });
  return field("Temperature", slider, shown);
}

/** Numbers of steps to compare, beside the model's own: the error falls visibly along them. */
const STEPS = [1, 2, 4, 8, 16, 32, 64];

/** @param {import("./view.js").View} view @param {import("./models.js").Ode} ode @param {Go} go */
function stepsField(view, { solver, steps }, go) {
  const options = [
    ["", `${steps}, its own`],
    ...STEPS.filter((each) => each !== steps).map((each) => [String(each), String(each)]),
  ];
  const choose = (/** @type {string} */ value) => go({ steps: value || null });
  return field(`Steps of ${solver}`, select(options, view.steps ?? "", choose));
}

/** Guidance to compare, beside the model's own: from none to where all of a label look alike. */
const GUIDANCE = [0, 0.5, 1, 2, 4];

/** @param {import("./view.js").View} view @param {number} own @param {Go} go */
function guidanceField(view, own, go) {
  const options = [
    ["", `${own}, its own`],
    ...GUIDANCE.filter((each) => each !== own).map((each) => [String(each), String(each)]),
  ];
  const choose = (/** @type {string} */ value) => go({ guidance: value || null });
  return field("Guidance", select(options, view.guidance ?? "", choose));
}

/** @param {import("./view.js").View} view @param {string[]} names @param {Go} go */
function axisFields(view, names, go) {
  const { horizontal, vertical } = view;
  const options = numbered(names);
  const across = select(options, String(horizontal), (value) => go({ horizontal: Number(value) }));
  const up = select(options, String(vertical), (value) => go({ vertical: Number(value) }));
  return [field("Across", across), field("Up", up)];
}

/** Return options whose values are places in a list. @param {string[]} names */
const numbered = (names) => names.map((name, index) => [String(index), name]);
