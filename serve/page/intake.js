/** How images come in: dropped anywhere on the page, chosen, or pasted. Everything ends as a list of files. */

import { byId } from "./dom.js";

/**
 * @param {(files: File[]) => void} onFiles called with at least one file
 * @param {(message: string) => void} onNothing called with the reason where something came that is not a file
 */
export function listen(onFiles, onNothing) {
  const chooser = byId("files");
  chooser.addEventListener("change", () => {
    const files = [...chooser.files];
    chooser.value = ""; // the same file can be chosen again
    if (files.length) onFiles(files);
  });
  const take = (transfer, verb) => {
    const files = filesOf(transfer);
    if (files.length) onFiles(files);
    else onNothing(`Nothing to inspect was ${verb}: give image files, not folders, links or text.`);
  };
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.('input[type="text"], input[type="password"]')) return; // a word or token for its field
    take(event.clipboardData, "pasted");
  });
  listenForDrops((transfer) => take(transfer, "dropped"));
}

/** The files among what was dropped or pasted; a folder can't be read as one. */
function filesOf(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  return items
    .filter((item) => !item.webkitGetAsEntry?.()?.isDirectory)
    .map((item) => item.getAsFile())
    .filter(Boolean);
}

function listenForDrops(take) {
  let depth = 0; // enter and leave fire for every element the pointer crosses
  const show = (change) => {
    depth = Math.max(0, depth + change);
    byId("drop").classList.toggle("is-over", depth > 0);
  };
  document.addEventListener("dragenter", () => show(1));
  document.addEventListener("dragleave", () => show(-1));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    show(-depth);
    take(event.dataTransfer);
  });
}
