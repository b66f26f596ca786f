// What stays of a panel in a saved notebook: its picture, in place of a live view that nothing could fill without a kernel.

const VIEW = "application/vnd.jupyter.widget-view+json";
const SAVED = Symbol.for("aimass-lab: pictures of panels");

/** The panel as it looks, without what only works live: HTML that needs no script, no kernel and no other file. */
export function pictureOf(root, style) {
  const copy = root.cloneNode(true);
  for (const dead of copy.querySelectorAll("[data-live]")) dead.remove();
  for (const control of copy.querySelectorAll("button")) {
    const text = document.createElement("span");
    text.className = control.className;
    if (control.getAttribute("aria-pressed") === "true") text.setAttribute("data-pressed", "");
    text.append(...control.childNodes);
    control.replaceWith(text);
  }
  for (const node of copy.querySelectorAll("[tabindex], [role=tabpanel], [role=tablist]")) for (const name of ["tabindex", "role", "aria-labelledby", "aria-controls"]) node.removeAttribute(name);
  copy.classList.add("aw-picture");
  return `<style>${style}</style>${copy.outerHTML}`;
}

/**
 * Let the notebook save pictures instead of live views.
 *
 * JupyterLab shows a saved live view as an error once its kernel is gone, and no event tells the kernel of a save. So the document's own
 * `toJSON`, which is what gets written, leaves the live view out of what it gives, and puts the picture that is now true into its place.
 */
export function savePictures(model, picture) {
  const document_ = model.widget_manager?.context?.model;
  if (typeof document_?.toJSON !== "function") return () => {};
  if (!document_[SAVED]) {
    const pictures = (document_[SAVED] = new Map());
    const original = document_.toJSON.bind(document_);
    document_.toJSON = () => {
      const saved = original();
      for (const cell of saved?.cells ?? []) {
        for (const output of cell.outputs ?? []) {
          const draw = pictures.get(output.data?.[VIEW]?.model_id);
          if (!draw) continue;
          output.data = { ...output.data, "text/html": draw() };
          delete output.data[VIEW];
        }
      }
      return saved;
    };
  }
  const id = model.get("identity");
  document_[SAVED].set(id, picture);
  return () => document_[SAVED].delete(id);
}
