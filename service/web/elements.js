/** Small makers of elements. Text is always set as text, never as markup. */

/**
 * Return a new element.
 * @param {string} tag
 * @param {Record<string, any>} [properties]  Attributes; null and false leave one out, and a
 *   function listens (`onclick`).
 * @param {...(Node | string | null)} children
 * @returns {HTMLElement}
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/**
 * Return the element that the page is known to have.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}: this is a bug`);
  return found;
}

/**
 * Put new children into an element and leave the keyboard on the one of the same id.
 * @param {HTMLElement} parent
 * @param {HTMLElement[]} children
 */
export function replaceChildren(parent, children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement?.id : null;
  parent.replaceChildren(...children);
  if (focused) document.getElementById(focused)?.focus();
}

/**
 * Return a panel that says in words what is wrong or missing.
 * @param {string} title
 * @param {string} detail
 * @param {...Node} more
 */
export function notice(title, detail, ...more) {
  return element(
    "div",
    { class: "notice", role: "alert" },
    element("h2", {}, title),
    element("p", {}, detail),
    ...more,
  );
}

/**
 * Return a control with its visible label.
 * @param {string} name
 * @param {HTMLElement} control
 * @param {...Node} more
 */
export function field(name, control, ...more) {
  control.id = name.toLowerCase().replace(/\W+/g, "-");
  const label = element("label", { for: control.id }, name);
  return element("div", { class: "field" }, label, element("div", {}, control, ...more));
}

/**
 * Return a select.
 * @param {string[][]} options  Value and text of each.
 * @param {string} chosen
 * @param {(value: string) => void} choose
 */
export function select(options, chosen, choose) {
  const made = element(
    "select",
    { onchange: () => choose(/** @type {HTMLSelectElement} */ (made).value) },
    ...options.map(([value, text]) =>
      element("option", { value, selected: value === chosen }, text),
    ),
  );
  return made;
}
