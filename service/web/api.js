/** The service's answers, and its errors as sentences. */

/**
 * @typedef {object} Figure
 * @property {string} name
 * @property {number} value
 * @property {number | null} standard_error
 * @property {number} n
 * @property {string} unit
 * @property {string} note
 */

/** An error that has a sentence for people. */
export class Problem extends Error {
  /** @param {string} title @param {string} detail */
  constructor(title, detail) {
    super(detail);
    this.title = title;
  }
}

/**
 * Return what the service answers as JSON.
 * @param {string} path  Relative to the page.
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 * @throws {Problem} With the service's own sentence where it gave one.
 */
export async function getJson(path, signal) {
  const response = await ask(path, "application/json", signal);
  return response.json();
}

/**
 * Return why a picture did not come: an `<img>` knows only that it did not.
 * @param {string} path
 * @returns {Promise<Problem>}
 */
export async function whyNoPicture(path) {
  try {
    await ask(path, "image/png");
  } catch (error) {
    return /** @type {Problem} */ (error);
  }
  return new Problem("A picture did not load", "The service has it now. Reload the page.");
}

/** @param {string} path @param {string} accept @param {AbortSignal} [signal] */
async function ask(path, accept, signal) {
  let response;
  try {
    response = await fetch(path, { headers: { Accept: accept }, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem("The service does not answer", "Check that it runs, then reload the page.");
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

/** @param {Response} response @returns {Promise<Problem>} */
async function problemOf(response) {
  const spoken = response.headers.get("content-type")?.includes("json");
  const body = spoken ? await response.json() : {};
  return new Problem(
    body.title ?? `The service answered ${response.status}`,
    body.detail ?? `${response.statusText || "It gave no reason"}.`,
  );
}
