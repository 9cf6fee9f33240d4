/** One sample, seen closer: a dialog that steps from row to row. */

import { byId } from "./elements.js";
import { describe } from "./grid.js";
import { curl, samplePath } from "./view.js";

/** Show a row of a view in the dialog, and let it step from there.
 * @param {import("./view.js").View} view
 * @param {import("./models.js").Model} model
 * @param {number} first
 */
export function openCloser(view, model, first) {
  const dialog = byId("closer");
  let row = first;
  const show = () => {
    const path = samplePath(view, { start: row, n: 1 });
    const image = byId("closer-image");
    image.src = path;
    image.alt = describe(view, model, row);
    byId("closer-title").textContent = `Row ${row} of seed ${view.seed}`;
    byId("closer-curl").textContent = curl(
      new URL(path, document.baseURI).href,
      `${view.model}-${view.seed}-${row}.png`,
    );
    byId("closer-previous").disabled = row === 0;
  };
  const step = (/** @type {number} */ by) => {
    row = Math.max(0, row + by);
    show();
  };
  byId("closer-previous").onclick = () => step(-1);
  byId("closer-next").onclick = () => step(1);
  byId("closer-close").onclick = () => dialog.close();
  dialog.onclick = (/** @type {MouseEvent} */ event) => {
    if (event.target === dialog) dialog.close();
  };
  dialog.onkeydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  };
  show();
  dialog.showModal();
}
