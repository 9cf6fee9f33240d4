/** A page of images: one tile a sample, each a cacheable picture with an address of its own. */

import { element } from "./elements.js";
import { samplePath } from "./view.js";

/** Divides by every number of columns that gallery.css lays out: 4, 5 and 8. */
export const IMAGES_A_PAGE = 40;

/**
 * Return a grid of rows view.start, view.start + 1, ...
 * @param {import("./view.js").View} view
 * @param {import("./models.js").Model} model
 * @param {object} events
 * @param {(row: number) => void} events.open  A tile was chosen.
 * @param {(path: string) => void} events.fail  A picture did not come.
 * @returns {HTMLElement}
 */
export function grid(view, model, { open, fail }) {
  const rows = Array.from({ length: IMAGES_A_PAGE }, (_, index) => view.start + index);
  const [, height, width] = model.event.shape;
  const tiles = rows.map((row, place) => {
    const src = samplePath(view, { start: row, n: 1 });
    const picture = element("img", {
      src,
      width,
      height,
      loading: "lazy",
      decoding: "async",
      alt: describe(view, model, row),
      onerror: () => fail(src),
    });
    const address = element(
      "span",
      { class: "address", "aria-hidden": "true" },
      `seed ${view.seed} · row ${row}`,
    );
    const said = { type: "button", class: "tile", id: `tile-${place}`, onclick: () => open(row) };
    return element("li", {}, element("button", said, picture, address));
  });
  return element("ol", { class: "grid", role: "list" }, ...tiles);
}

/**
 * Return the words for one sample, which are its address.
 * @param {import("./view.js").View} view
 * @param {import("./models.js").Model} model
 * @param {number} row
 */
export function describe(view, model, row) {
  const label = view.label === null ? "" : `, label ${model.labels?.[Number(view.label)]}`;
  return `sample row ${row} of seed ${view.seed}${label}`;
}
