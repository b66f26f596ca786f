// Every action as one line of code: Python where the study has a variable, else the magic.

function literal(value) {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "boolean") return value ? "True" : "False";
  if (value instanceof Name) return value.text;
  if (Array.isArray(value)) return `(${value.map(literal).join(", ")}${value.length === 1 ? "," : ""})`;
  return typeof value === "object" ? `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`).join(", ")}}` : String(value);
}

/** A variable of the notebook, where a verb takes one. */
export class Name {
  constructor(text) { this.text = text; }
  toString() { return this.text; }
}

const word = (value) => (/^[\w.:/=-]+$/.test(String(value)) ? String(value) : `'${String(value).replaceAll("'", `'"'"'`)}'`);

/** The line that calls a verb of the study; options that are null are left out, `first` are its arguments without a name. */
export function lineOf(subject, verb, options = {}, first = []) {
  const given = Object.entries(options).filter(([, value]) => value !== null && value !== undefined);
  if (subject.style === "python") return `${subject.name}.${verb}(${[...first.map(literal), ...given.map(([name, value]) => `${name}=${literal(value)}`)].join(", ")})`;
  const flags = given.flatMap(([name, value]) => {
    const flag = `--${name.replaceAll("_", "-")}`;
    const each = Array.isArray(value) ? value : typeof value === "object" && !(value instanceof Name) ? Object.entries(value).map((pair) => pair.join("=")) : [value];
    return each.filter((one) => one !== false).map((one) => (one === true ? flag : `${flag} ${word(one)}`));
  });
  return ["%aimass", verb, ...(subject.name ? [subject.name] : []), ...first.map(word), ...flags].join(" ");
}

/** The line that calls a verb which needs no model, on a file or folder. */
export const lineOn = (subject, verb, path) => (subject.style === "python" ? `aimass_lab.${verb}(${JSON.stringify(path)})` : `%aimass ${verb} ${word(path)}`);

/** Put a code cell after the one that shows `element`; false where the front-end gives no access to its notebook. */
export function insertCell(model, element, source) {
  const notebook = model.widget_manager?.context?.model?.sharedModel;
  const cell = element.closest(".jp-Cell");
  if (!notebook?.insertCell || !cell) return false;
  const listed = cell.closest("[data-windowed-list-index]")?.dataset.windowedListIndex;
  const index = listed === undefined ? [...cell.parentElement.querySelectorAll(":scope > .jp-Cell")].indexOf(cell) : Number(listed);
  notebook.insertCell(index + 1, { cell_type: "code", source, metadata: {} });
  return true;
}
