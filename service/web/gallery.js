/** The gallery: reads the address, shows what it asks for, and writes each choice back to it. */

import { Problem, getJson, whyNoPicture } from "./api.js";
import { openCloser } from "./closer.js";
import { controlsOf } from "./controls.js";
import { byId, element, notice, replaceChildren } from "./elements.js";
import { IMAGES_A_PAGE, grid } from "./grid.js";
import {
  figuresTable,
  firstToShow,
  middle,
  modelItems,
  reason,
  revealChosen,
  summary,
} from "./models.js";
import {
  POINTS_A_PAGE,
  describePlot,
  describePoint,
  draw,
  featureNames,
  nearest,
  plotOf,
} from "./scatter.js";
import { curl, queryFromView, samplePath, viewFromQuery, viewOfModel } from "./view.js";

/** @typedef {import("./models.js").Model} Model */
/** @typedef {import("./view.js").View} View */

const LOADING_POLL_MS = 1500;
const COPIED_MS = 1500;
const EMPTY = "Put a sound bundle into the models folder and start the service again.";

/** Everything that changes while the page is open. */
const state = {
  view: viewFromQuery(location.search),
  /** @type {Model[]} */
  models: [],
  /** Ends what the last view still fetches and watches. */
  leaving: new AbortController(),
};

/** Show another view and put it into the address.
 * @param {Partial<View>} changes @param {"push" | "replace"} how */
function go(changes, how = "push") {
  state.view = { ...state.view, ...changes };
  history[how === "push" ? "pushState" : "replaceState"](null, "", queryFromView(state.view));
  render();
}

/** Return the model that the view names, if the service has it. */
const chosen = () => state.models.find(({ name }) => name === state.view.model);

const anyLoads = () => state.models.some((model) => model.state === "loading");

/** @param {string} name */
const choose = (name) => go({ ...viewOfModel(state.view, name), version: servedVersion(name) });

/** @param {string} name */
function servedVersion(name) {
  const version = state.models.find((model) => model.name === name)?.version;
  return version ? String(version) : null;
}

/** @param {Model} model */
const pageSize = (model) => (model.event.kind === "image" ? IMAGES_A_PAGE : POINTS_A_PAGE);

/** Fetch the list of models, show what is asked for, and look again while some still load. */
async function begin() {
  const before = chosen()?.state;
  let standard;
  try {
    ({ models: state.models, default: standard } = await getJson("models"));
  } catch (error) {
    byId("models").replaceChildren();
    fail(/** @type {Error} */ (error));
    return;
  } finally {
    byId("models").removeAttribute("aria-busy");
  }
  const name = state.view.model ?? standard ?? firstToShow(state.models)?.name ?? null;
  const unchanged = before !== undefined && before === chosen()?.state;
  if (unchanged) renderList();
  else go({ model: name, version: state.view.version ?? (name && servedVersion(name)) }, "replace");
  if (anyLoads()) setTimeout(begin, LOADING_POLL_MS);
}

/** Show state.view. */
function render() {
  state.leaving.abort();
  state.leaving = new AbortController();
  renderList();
  const model = chosen();
  const ready = model?.state === "ready";
  for (const id of ["bar", "again"]) byId(id).hidden = !ready;
  renderAbout(model);
  if (!ready) {
    renderAbsence(model);
    return;
  }
  if (model.context && state.view.context === null) {
    go({ context: middle(model.context) }, "replace");
    return;
  }
  replaceChildren(byId("controls"), controlsOf(state.view, model, go));
  renderPager(model);
  renderAgain(model);
  if (model.event.kind === "image") renderGrid(model);
  else renderScatter(model).catch(fail);
}

function renderList() {
  const list = byId("models");
  replaceChildren(list, modelItems(state.models, state.view, choose));
  revealChosen(list);
}

/** @param {Model | undefined} model */
function renderAbout(model) {
  const title = model?.title ?? state.view.model ?? "No model";
  document.title = `${title} · Pushforward`;
  byId("title").textContent = title;
  byId("summary").textContent = model?.state === "ready" ? summary(model) : "\u00a0";
  const figures = model?.evaluation ?? [];
  byId("figures").hidden = figures.length === 0;
  byId("figures-table").replaceChildren(figuresTable(figures));
}

/** Say why there is nothing to see: no models, still loading, refused, or unknown.
 * @param {Model | undefined} model */
function renderAbsence(model) {
  if (model?.state === "failed") {
    fail(new Problem("This model is not served", reason(model)));
  } else if (model || (state.view.model === null && anyLoads())) {
    settle(element("p", { class: "quiet" }, "Being loaded and checked …"));
  } else if (state.view.model === null) {
    fail(new Problem("No model is served", EMPTY));
  } else {
    const path = `models/${encodeURIComponent(state.view.model)}`;
    getJson(path, state.leaving.signal).then(begin, fail);
  }
}

/** @param {Model} model */
function renderPager(model) {
  const { start } = state.view;
  const last = start + pageSize(model) - 1;
  byId("rows").textContent = `Rows ${start} – ${last}`;
  byId("previous").disabled = !(start > 0);
}

/** @param {number} pages */
function turn(pages) {
  const model = chosen();
  if (model?.state !== "ready") return;
  const start = Math.max(0, state.view.start + pages * pageSize(model));
  if (start !== state.view.start) go({ start });
}

/** @param {Model} model */
function renderAgain(model) {
  const { model: name, seed, start } = state.view;
  const images = model.event.kind === "image";
  const slice = { start, n: pageSize(model), columns: images ? 8 : undefined };
  const address = new URL(samplePath(state.view, slice), document.baseURI).href;
  byId("link").textContent = location.href;
  byId("curl").textContent = curl(address, images ? `${name}-${seed}-${start}.png` : null);
}

/** @param {Model} model */
function renderGrid(model) {
  const { view, leaving } = state;
  const explain = once(async (/** @type {string} */ path) => {
    const problem = await whyNoPicture(path);
    if (!leaving.signal.aborted) fail(problem);
  });
  const open = (/** @type {number} */ row) => openCloser(view, model, row);
  settle(grid(view, model, { open, fail: explain }));
}

/** @param {Model} model */
async function renderScatter(model) {
  const { view } = state;
  const { signal } = state.leaving;
  byId("stage").setAttribute("aria-busy", "true");
  const answer = await getJson(samplePath(view, { start: view.start, n: POINTS_A_PAGE }), signal);
  const names = featureNames(model);
  const plot = plotOf(answer.x, view, names);
  const canvas = /** @type {HTMLCanvasElement} */ (
    element("canvas", { role: "img", "aria-label": describePlot(plot, view) })
  );
  const caption = element("figcaption", {}, describePlot(plot, view));
  settle(element("figure", { class: "scatter" }, canvas, caption));
  canvas.addEventListener("pointermove", ({ offsetX: x, offsetY: y }) => {
    const point = nearest(canvas, plot, { x, y });
    caption.textContent = point ? describePoint(plot, point) : describePlot(plot, view);
  });
  const redraw = () => draw(canvas, plot);
  const sizes = new ResizeObserver(redraw);
  sizes.observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw, { signal });
  signal.addEventListener("abort", () => sizes.disconnect());
}

/** Put what is ready on the stage. @param {HTMLElement} shown */
function settle(shown) {
  replaceChildren(byId("stage"), [shown]);
  byId("stage").removeAttribute("aria-busy");
}

/** Show an error in words; what was left behind on purpose is none. @param {Error} error */
function fail(error) {
  if (error.name === "AbortError") return;
  const title = error instanceof Problem ? error.title : "The page failed, which is a bug";
  byId("again").hidden = true;
  settle(notice(title, error.message));
}

/** Return a function that acts on its first call only. @param {(value: any) => void} act */
function once(act) {
  let called = false;
  return (/** @type {any} */ value) => {
    if (!called) act(value);
    called = true;
  };
}

/** Copy a line, or where the browser forbids it, select it for the person to copy.
 * @param {HTMLElement} button */
async function copy(button) {
  const line = byId(button.getAttribute("data-copy") ?? "");
  const name = button.textContent;
  let done = "Copied";
  try {
    await navigator.clipboard.writeText(line.textContent ?? "");
  } catch {
    getSelection()?.selectAllChildren(line);
    done = "Selected: press Ctrl C";
  }
  button.textContent = byId("status").textContent = done;
  setTimeout(() => {
    button.textContent = name;
    byId("status").textContent = "";
  }, COPIED_MS);
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  if (target.closest("input, select, dialog")) return;
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
}

byId("previous").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
byId("controls").addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(/** @type {HTMLElement} */ (button)));
}
addEventListener("keydown", onKey);
addEventListener("popstate", () => {
  state.view = viewFromQuery(location.search);
  render();
});
begin();
