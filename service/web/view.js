/**
 * What the page shows, as one object, and the same thing as an address.
 *
 * Values that only the service can judge (seed, version, label, context, temperature, steps, guidance)
 * stay the text of the address: seeds go beyond what a JavaScript number can hold, and a bad one gets the
 * service's own sentence.
 */

/**
 * @typedef {object} View
 * @property {string | null} model  Name; null before one is chosen.
 * @property {string | null} version  null: the one that serves.
 * @property {string} seed
 * @property {number} start  First row.
 * @property {string | null} label  Index of a class; null: drawn from the seed.
 * @property {string | null} context  Numbers of a model that is told some, separated by commas; null:
 *   the middle of their range.
 * @property {string} temperature  Factor on the noise.
 * @property {string | null} observation  "draw", or null for the model's mean.
 * @property {string | null} rejection  "true": those that the model's critic accepts; null: all.
 * @property {string | null} steps  Of a continuous flow's solver; null: its own number.
 * @property {string | null} guidance  Of a continuous flow that can be guided; null: its own.
 * @property {number} horizontal  Feature along the horizontal axis of a scatter plot.
 * @property {number} vertical
 */

/**
 * @typedef {object} Slice
 * @property {number} start
 * @property {number} n
 * @property {number} [columns]  Images in one line of a picture of many.
 */

/** What a view is when its address says nothing. @type {Readonly<View>} */
export const DEFAULTS = Object.freeze({
  model: null,
  version: null,
  seed: "7",
  start: 0,
  label: null,
  context: null,
  temperature: "1",
  observation: null,
  rejection: null,
  steps: null,
  guidance: null,
  horizontal: 0,
  vertical: 1,
});

/** In the order of the address; the seed is always in it, so that a link keeps its meaning. */
const KEYS = /** @type {(keyof View)[]} */ (Object.keys(DEFAULTS));

/** Return the view that the query of an address asks for. @param {string} query @returns {View} */
export function viewFromQuery(query) {
  const given = new URLSearchParams(query);
  const entries = KEYS.map((key) => {
    const text = given.get(key);
    if (text === null || text === "") return [key, DEFAULTS[key]];
    return [key, typeof DEFAULTS[key] === "number" ? wholeOr(DEFAULTS[key], text) : text];
  });
  return Object.fromEntries(entries);
}

/** @param {any} otherwise @param {string} text */
function wholeOr(otherwise, text) {
  const value = Number(text);
  return Number.isSafeInteger(value) && value >= 0 ? value : otherwise;
}

/** Return the shortest query that asks for a view. @param {View} view @returns {string} */
export function queryFromView(view) {
  const said = KEYS.filter((key) => key === "seed" || view[key] !== DEFAULTS[key]);
  return "?" + new URLSearchParams(said.map((key) => [key, String(view[key])]));
}

/** Return the view of another model: of this one, only the seed means anything there.
 * @param {View} view @param {string} model @returns {View} */
export function viewOfModel(view, model) {
  return { ...DEFAULTS, model, seed: view.seed };
}

/**
 * Return where the service keeps some rows of a view, relative to the page.
 * @param {View} view
 * @param {Slice} slice
 * @returns {string}
 */
export function samplePath(view, { start, n, columns }) {
  const { model, version, seed, label, context, observation, rejection, steps, guidance } = view;
  const temperature = view.temperature === DEFAULTS.temperature ? null : view.temperature;
  const address = { model, version, seed, start, n, label, context };
  const wanted = { ...address, temperature, observation, rejection, steps, guidance, columns };
  const said = Object.entries(wanted).filter(([, value]) => value !== null && value !== undefined);
  return "sample?" + new URLSearchParams(said.map(([key, value]) => [key, String(value)]));
}

/**
 * Return the command that asks for the same rows, as a picture or as JSON.
 * @param {string} address  Whole, with its host. Percent-encoded, so quotes cannot end early.
 * @param {string | null} picture  Name of the file to write, made of what a link may bring: what a
 *   shell could read as more than a name is replaced.
 * @returns {string}
 */
export function curl(address, picture) {
  if (!picture) return `curl '${address}' -H 'Accept: application/json'`;
  return `curl '${address}' -H 'Accept: image/png' -o ${picture.replace(/[^\w.-]/g, "_")}`;
}

/** Return a seed to try next: short enough to read aloud. @returns {string} */
export function newSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000);
}
